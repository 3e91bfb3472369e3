"""Recognise files that are no usable photos, by content, or by name where the content is not enough.

Raw files have to be found before a decoder sees them: most are TIFFs whose first picture is a thumbnail, which every
decoder of TIFF opens without a word.
"""

import struct
from pathlib import PurePosixPath

Refusal = tuple[str, str]  # a short code for tables, and a sentence for people

HEAD_BYTES = 65_536  # of a file that is too large to be read: enough for all that is looked for here
RAW: Refusal = (
    "raw",
    "It is a raw file, of which only a preview could be read; export it as JPEG, HEIC or 16-bit TIFF.",
)
VIDEO: Refusal = (
    "video",
    "It is a video; of a Live Photo the still picture is used, of others export a frame as JPEG.",
)
SOUND: Refusal = ("sound", "It is a sound recording, not a photo.")
ARCHIVE: Refusal = (
    "archive",
    "It is an archive, and archives inside a folder are not opened; unpack all of them into one folder and name that.",
)
ICLOUD: Refusal = (
    "icloud_placeholder",
    "It stands for a photo that is in iCloud only; download the originals (in Finder: Download Now) and run again.",
)
SIDECAR: Refusal = ("sidecar", "It goes with a photo and is none itself.")

FIRST_BYTES: tuple[tuple[bytes, Refusal], ...] = (
    (b"IIRO", RAW), (b"IIRS", RAW), (b"MMOR", RAW), (b"IIU\0", RAW), (b"FUJIFILMCCD-RAW", RAW), (b"FOVb", RAW),
    (b"\0MRM", RAW), (b"II\x1a\0\0\0HEAPCCDR", RAW),
    (b"\x1aE\xdf\xa3", VIDEO), (b"FLV\1", VIDEO), (b"0&\xb2u\x8ef\xcf\x11", VIDEO), (b"\0\0\1\xba", VIDEO),
    (b"\0\0\1\xb3", VIDEO), (b"OggS", SOUND), (b"ID3", SOUND), (b"fLaC", SOUND),
    (b"PK\3\4", ARCHIVE), (b"PK\5\6", ARCHIVE), (b"PK\7\x08", ARCHIVE), (b"\x1f\x8b", ARCHIVE),
    (b"7z\xbc\xaf", ARCHIVE), (b"Rar!", ARCHIVE), (b"BZh", ARCHIVE), (b"\xfd7zXZ", ARCHIVE),
    (b"%PDF-", ("document", "It is a PDF; export its photos as JPEG or PNG.")),
    (b"8BPS", ("layered", "It is a Photoshop document; export it as JPEG, PNG or TIFF.")),
    (b"\xff\x0a", ("jpeg_xl", "It is a JPEG XL, which is not read; export it as JPEG, PNG or AVIF.")),
    (b"\0\0\0\x0cJXL \r\n\x87\n", ("jpeg_xl", "It is a JPEG XL, which is not read; export it as JPEG, PNG or AVIF.")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", ("jpeg_2000", "It is a JPEG 2000, which is not read; export it as JPEG or PNG.")),
    (b"\0\5\x16\7", SIDECAR),  # AppleDouble: what macOS keeps of a file beside it on other file systems
)  # fmt: skip
RIFF: dict[bytes, Refusal] = {b"AVI ": VIDEO, b"WAVE": SOUND}
# Brands of ISO base media files (ISO/IEC 14496-12) that are no pictures, and first boxes of old QuickTime files.
SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
VIDEO_BRANDS = (
    b"qt  ", b"mp4", b"mp7", b"iso", b"M4V", b"avc1", b"3g", b"dash", b"MSNV", b"mmp4", b"f4v", b"XAVC", b"hvc1",
)  # fmt: skip
MOVIE_BOXES = (b"moov", b"mdat", b"wide", b"skip", b"pnot")
TRANSPORT_PACKETS = (
    (0, 188),
    (4, 192),
)  # MPEG-2 transport streams: where the first packet begins, and how long each is

TIFF_HEADS = {b"II*\0": "<", b"MM\0*": ">"}
SUBFILE, COMPRESSION, PHOTOMETRIC, SUB_IFDS, DNG_VERSION = 254, 259, 262, 330, 50706
# TIFF/EP and DNG 1.7, "PhotometricInterpretation": a mosaic of colour filters, and its linear form; and compressions
# that only raw files have: Sony, Epson, Nikon, Kodak, Pentax (libtiff:tiff.h).
RAW_PHOTOMETRICS, RAW_COMPRESSIONS = (32803, 34892), (32767, 32769, 34713, 65000, 65535)
REDUCED = 1  # bit of SUBFILE: a smaller copy of another picture in the file
MAX_IFDS, MAX_TAGS = 64, 512

RAW_SUFFIXES = frozenset([
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos",
    ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
])  # fmt: skip
VIDEO_SUFFIXES = frozenset([
    ".3g2", ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm",
    ".wmv",
])  # fmt: skip
SIDECAR_SUFFIXES = frozenset([".aae", ".cos", ".dop", ".ini", ".json", ".nomedia", ".on1", ".pp3", ".thm", ".xmp"])
SIDECAR_NAMES = frozenset([".ds_store", "thumbs.db", "ehthumbs.db", ".nomedia"])


def kind_refusal(content: bytes) -> Refusal | None:
    """Return why a file is no usable photo, by its content; None if it may be one.

    Args:
        content: The file, or its first HEAD_BYTES.
    """
    for first, refusal in FIRST_BYTES:
        if content.startswith(first):
            return refusal
    if content.startswith(b"RIFF"):
        return RIFF.get(content[8:12])
    if content[4:8] == b"ftyp":
        return _by_brand(content[8:12])
    if content[4:8] in MOVIE_BOXES or any(_is_transport_stream(content, *packet) for packet in TRANSPORT_PACKETS):
        return VIDEO
    if content.startswith(b"bplist00") and b"NSURL" in content:
        return ICLOUD
    if content[:4] in TIFF_HEADS and _is_raw_tiff(content, TIFF_HEADS[content[:4]]):
        return RAW
    return None


def name_refusal(name: str, content: bytes) -> Refusal | None:
    """Return why a file is no usable photo, by its name; None if it may be one.

    Args:
        name: Of the file.
        content: The file, or its first HEAD_BYTES.
    """
    suffix = PurePosixPath(name.lower()).suffix
    if suffix == ".icloud":
        return ICLOUD
    if suffix in RAW_SUFFIXES and not content.startswith(b"\xff\xd8\xff"):
        return RAW
    if suffix in VIDEO_SUFFIXES:
        return VIDEO
    return None


def is_sidecar(name: str) -> bool:
    """Return whether a file's name is one of those that phones, editors and systems put beside photos."""
    path = PurePosixPath(name.lower())
    return (
        "__macosx" in path.parts
        or path.name.startswith("._")
        or path.name in SIDECAR_NAMES
        or path.suffix in SIDECAR_SUFFIXES
    )


def _by_brand(brand: bytes) -> Refusal | None:
    if brand == b"crx ":
        return RAW
    if brand in SOUND_BRANDS:
        return SOUND
    return VIDEO if brand.startswith(VIDEO_BRANDS) else None


def _is_transport_stream(content: bytes, start: int, packet_bytes: int) -> bool:
    firsts = content[start : start + 4 * packet_bytes + 1 : packet_bytes]
    return len(firsts) == 5 and set(firsts) == {0x47}


def _is_raw_tiff(content: bytes, order: str) -> bool:
    """Return whether any picture in a TIFF is a sensor's data, or the first is only a smaller copy of another one."""
    waiting, seen = [struct.unpack_from(order + "I", content, 4)[0] if len(content) >= 8 else 0], set[int]()
    while waiting and len(seen) < MAX_IFDS:
        at = waiting.pop(0)
        if at in seen or not 8 <= at <= len(content) - 2:
            continue
        tags, following = _ifd(content, order, at)
        if (
            DNG_VERSION in tags
            or tags.get(PHOTOMETRIC, [0])[0] in RAW_PHOTOMETRICS
            or tags.get(COMPRESSION, [0])[0] in RAW_COMPRESSIONS
            or (not seen and tags.get(SUBFILE, [0])[0] & REDUCED)
        ):
            return True
        seen.add(at)
        waiting += [*tags.get(SUB_IFDS, []), following]
    return False


def _ifd(content: bytes, order: str, at: int) -> tuple[dict[int, list[int]], int]:
    """Return the values of the tags that are asked for in a directory of a TIFF, and where the next one lies."""
    (count,) = struct.unpack_from(order + "H", content, at)
    tags: dict[int, list[int]] = {}
    for place in range(at + 2, at + 2 + 12 * min(count, MAX_TAGS), 12):
        if place + 12 > len(content):
            return tags, 0
        tag, kind, number = struct.unpack_from(order + "HHI", content, place)
        if tag in (SUBFILE, COMPRESSION, PHOTOMETRIC, SUB_IFDS):
            tags[tag] = _values(content, order, place + 8, kind, min(number, MAX_IFDS)) or [0]
        elif tag == DNG_VERSION:
            tags[tag] = []
    end = at + 2 + 12 * count
    return tags, struct.unpack_from(order + "I", content, end)[0] if end + 4 <= len(content) else 0


def _values(content: bytes, order: str, place: int, kind: int, number: int) -> list[int]:
    """Return the numbers of a tag; SHORT has two bytes each, LONG and IFD four."""
    code, size = ("H", 2) if kind == 3 else ("I", 4)
    if number * size > 4:
        (place,) = struct.unpack_from(order + "I", content, place)
    if place + number * size > len(content):
        return []
    return list(struct.unpack_from(f"{order}{number}{code}", content, place))
