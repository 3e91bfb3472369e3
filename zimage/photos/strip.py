"""Strip the metadata of a coded picture: the compressed data stays bit for bit, the container is rewritten.

A new container holds what decoding needs and nothing else: tables, the frame's header and its scans, and of EXIF and
ICC only the orientation and the numbers of the colour space. So no field has to be known to be left out: places, times,
names, serial numbers, thumbnails, depth maps, second pictures and whatever follows the picture's end.
"""

import re
import struct
from collections.abc import Iterator
from typing import Literal

from zimage.photos.heif import bare_heif, colour_codes
from zimage.photos.profile import bare_profile, profile_of_codes

Suffix = Literal[".jpg", ".webp", ".heic", ".avif"]

SOI, EOI, APP0, APP1, APP2, APP14, SOS = 0xD8, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE, 0xDA
# ITU-T T.81, table B.1: frame headers, Huffman and arithmetic tables, scans, quantization, number of lines, restarts.
JPEG_SEGMENTS = frozenset([*range(0xC0, 0xC8), *range(0xC9, 0xD0), SOS, 0xDB, 0xDC, 0xDD])
BARE_MARKERS = frozenset([0x00, 0x01, *range(0xD0, 0xD9)])  # a stuffed byte, TEM, RSTn and SOI: nothing follows them
SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SEGMENT_BYTES = 65_519  # of a profile that fit in one segment (ICC.1:2022, B.4)
JFIF = struct.pack(">5sHBHHBB", b"JFIF\0", 0x0101, 0, 1, 1, 0, 0)


def stripped(content: bytes, form: str, orientation: int, profile: bytes) -> tuple[Suffix, bytes] | None:
    """Return a picture in a new container, and its file's suffix; None where this kind has to be coded anew.

    Args:
        content: The whole file, which was decoded before.
        form: What it is by content, in Pillow's word.
        orientation: What its EXIF says, 1 to 8 (EXIF 3.0, 4.6.5.1.6).
        profile: Its ICC profile; empty where it has none.
    """
    match form:
        case "JPEG" | "MPO":
            return ".jpg", _jpeg(content, orientation, bare_profile(profile))
        case "WEBP":
            made = _webp(content, orientation, bare_profile(profile))
            return (".webp", made) if made else None
        case "HEIF" | "AVIF":
            codes = None if profile else colour_codes(content)
            if codes is not None and profile_of_codes(*codes):
                return None  # most readers leave colours named by codes as they are, and would show others
            made = bare_heif(content)
            return (".heic" if form == "HEIF" else ".avif", made) if made else None
    return None


def _orientation(orientation: int) -> bytes:
    """Return EXIF that says how a picture lies, and nothing else; nothing where it is upright."""
    if not 2 <= orientation <= 8:
        return b""
    return struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def _jpeg(content: bytes, orientation: int, profile: bytes) -> bytes:
    tiff, jfif, adobe, kept = _orientation(orientation), b"", b"", []
    for marker, segment in _segments(content):
        body = segment[4:]
        if marker in JPEG_SEGMENTS:
            kept.append(segment)
        elif marker == APP0 and body.startswith(b"JFIF\0"):
            jfif = JFIF
        elif marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12:  # the last byte: what the colours are
            adobe = struct.pack(">5sHHHB", b"Adobe", 100, 0, 0, body[11])
    parts = [profile[at : at + SEGMENT_BYTES] for at in range(0, len(profile), SEGMENT_BYTES)]
    head = [
        (APP0, jfif),
        (APP1, b"Exif\0\0" + tiff if tiff else b""),
        *((APP2, b"ICC_PROFILE\0" + bytes([at, len(parts)]) + part) for at, part in enumerate(parts, start=1)),
        (APP14, adobe),
    ]
    written = [struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in head if body]
    return b"".join([bytes([0xFF, SOI]), *written, *kept, bytes([0xFF, EOI])])


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the segments of a JPEG's first picture with their markers; the data of a scan belongs to its segment."""
    at = 2
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content):
        marker = content[at + 1]
        if marker == EOI:
            return
        if marker == 0xFF or marker in BARE_MARKERS:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        if marker == SOS:
            found = SCAN_END.search(content, end)
            end = found.start() if found else len(content)
        yield marker, content[at:end]
        at = end


def _webp(content: bytes, orientation: int, profile: bytes) -> bytes:
    """Return the first chunks that hold a still picture (RFC 9649, 2.7); nothing of an animation."""
    found: dict[bytes, bytes] = {}
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        found.setdefault(name, content[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    picture: dict[bytes, bytes] = {name: found[name] for name in (b"ALPH", b"VP8 ", b"VP8L") if name in found}
    if b"ANMF" in found or not picture:
        return b""
    chunks: dict[bytes, bytes] = {b"ICCP": profile, **picture, b"EXIF": _orientation(orientation)}
    if b"VP8X" in found:  # flags (profile, alpha, EXIF), three bytes that are 0, and the size of the canvas
        flags = 0x20 * bool(profile) | found[b"VP8X"][0] & 0x10 | 0x08 * bool(chunks[b"EXIF"])
        chunks = {b"VP8X": bytes([flags, 0, 0, 0]) + found[b"VP8X"][4:10], **chunks}
    body = b"WEBP" + b"".join(
        struct.pack("<4sI", name, len(chunk)) + chunk + bytes(len(chunk) % 2) for name, chunk in chunks.items() if chunk
    )
    return struct.pack("<4sI", b"RIFF", len(body)) + body
