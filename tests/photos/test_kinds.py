import io
import struct

import pytest
from PIL import Image, TiffImagePlugin

from tests.benchmarks.fuzz import whole_files
from tests.photos.test_decode import encoded, photo, refusal
from zimage.photos.kinds import HEAD_BYTES, is_sidecar, kind_refusal, name_refusal

JUNK = bytes(range(256)) * 20


def tiff_with(tags: dict[int, int | bytes], order: str = "II") -> bytes:
    """Return a TIFF as raw files are: a small picture that every decoder opens, and tags that say what else it is."""
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=order.encode())
    for tag, value in tags.items():
        ifd[tag] = value
        ifd.tagtype[tag] = 1 if isinstance(value, bytes) else 4
    return encoded(photo(), "TIFF", tiffinfo=ifd)


def nef() -> bytes:
    """Return a TIFF with a thumbnail in its first directory, and the sensor's mosaic in a directory below it."""
    thumbnail = bytearray(tiff_with({330: 1}))  # SubIFDs
    sensor = (
        struct.pack("<H", 2) + struct.pack("<HHIHH", 259, 3, 1, 34713, 0) + struct.pack("<HHIHH", 262, 3, 1, 32803, 0)
    )
    at = thumbnail.index(struct.pack("<HHII", 330, 4, 1, 1)) + 8
    thumbnail[at : at + 4] = struct.pack("<I", len(thumbnail))
    return bytes(thumbnail) + sensor + bytes(4)


FILES = {
    "DNG": (tiff_with({50706: b"\1\4\0\0"}), "raw"),
    "linear DNG": (nef().replace(struct.pack("<H", 32803), struct.pack("<H", 34892)), "raw"),
    "NEF": (nef(), "raw"),
    "preview first": (tiff_with({254: 1}), "raw"),
    "CR3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + JUNK, "raw"),
    "RAF": (b"FUJIFILMCCD-RAW 0201" + JUNK, "raw"),
    "ORF": (b"IIRO\x08\0\0\0" + JUNK, "raw"),
    "RW2": (b"IIU\0\x18\0\0\0" + JUNK, "raw"),
    "MOV": (b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + JUNK, "video"),
    "old MOV": (b"\0\0\x10\0moov" + JUNK, "video"),
    "MP4": (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + JUNK, "video"),
    "3GP": (b"\0\0\0\x18ftyp3gp4\0\0\0\x003gp4isom" + JUNK, "video"),
    "AVI": (b"RIFF\0\x10\0\0AVI LIST" + JUNK, "video"),
    "WebM": (b"\x1aE\xdf\xa3" + JUNK, "video"),
    "MTS": ((b"\0\0\0\0G" + bytes(187)) * 6, "video"),
    "WAV": (b"RIFF\0\x10\0\0WAVEfmt " + JUNK, "sound"),
    "M4A": (b"\0\0\0\x18ftypM4A \0\0\0\0" + JUNK, "sound"),
    "PDF": (b"%PDF-1.7\n" + JUNK, "document"),
    "JPEG XL": (b"\xff\x0a" + JUNK, "jpeg_xl"),
    "JPEG XL in a container": (b"\0\0\0\x0cJXL \r\n\x87\n" + JUNK, "jpeg_xl"),
    "JPEG 2000": (encoded(photo(), "JPEG2000"), "jpeg_2000"),
    "PSD": (b"8BPS\0\1" + JUNK, "layered"),
    "iCloud": (b"bplist00\xd3\1\2\3_\x10\x12NSURLFileSizeKey" + JUNK, "icloud_placeholder"),
    "RAR": (b"Rar!\x1a\7\1\0" + JUNK, "archive"),
    "AppleDouble": (b"\0\5\x16\7\0\2\0\0Mac OS X" + JUNK, "sidecar"),
}


@pytest.mark.parametrize("kind", list(FILES))
def test_what_is_no_photo_to_use_is_called_by_its_kind_with_a_remedy(kind: str) -> None:
    content, reason = FILES[kind]
    error = refusal(content)
    assert error.reason == reason
    assert error.detail.endswith(".") and len(error.detail) < 130
    head = kind_refusal(content[:HEAD_BYTES])
    assert head is not None and head[0] == reason


def test_a_raw_file_is_refused_though_its_thumbnail_opens() -> None:
    with Image.open(io.BytesIO(nef())) as thumbnail:
        assert thumbnail.size == photo().size
    assert "export it as JPEG" in refusal(nef()).detail


@pytest.mark.parametrize("name", list(whole_files()))
def test_no_photo_is_taken_for_another_kind(name: str) -> None:
    assert kind_refusal(whole_files()[name]) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [(".IMG_1.HEIC.icloud", "icloud_placeholder"), ("a/IMG_1.NEF", "raw"), ("IMG_1.mov", "video"), ("a.jpg", None)],
)
def test_a_name_says_what_the_content_leaves_open(name: str, reason: str | None) -> None:
    found = name_refusal(name, b"")
    assert (found[0] if found else None) == reason


@pytest.mark.parametrize(
    "content", [b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff\xfe\0"]
)
def test_a_tiff_that_ends_early_is_looked_at_without_harm(content: bytes) -> None:
    assert kind_refusal(content) is None


def test_sidecars_are_known_by_name() -> None:
    sidecars = ["__MACOSX/a/._b.jpg", "._b.jpg", "a.jpg.json", "IMG_1.AAE", "b/.DS_Store", "Thumbs.db", "a.xmp"]
    assert all(map(is_sidecar, sidecars))
    assert not any(map(is_sidecar, ["a.jpg", "IMG_1.HEIC", "a.mov", "json.png"]))
