"""Untrusted bytes in, an upright sRGB picture out: nothing else of the file survives but its capture time."""

import contextlib
import datetime
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

# Only these decoders ever see a file; others would run interpreters (EPS) or read what nobody photographs in. MPO, what
# phones make of several JPEGs, is opened by JPEG's.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
KNOWN = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC and AVIF"
# First bytes by which a damaged photo is told from a file that never was one.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF8")
ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ")
RAWS = ("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2")
BYTES_A_PIXEL = 6  # that decoding takes at most, as measured by tests/faces/test_decode_memory.py
MIN_SIDE_PX, MAX_ASPECT = 32, 10.0
# What decoders raise on damaged data. Programming mistakes of ours would hide here too, so nothing of ours runs inside.
DECODER_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, ImageCms.PyCMSError,
)  # fmt: skip
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 3.0, 4.6.5.1.6
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Colour space of an ICC profile (ICC.1:2022, table 19) for each mode it can be applied to.
PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}


class RefusedError(ValueError):
    """A file that cannot be used: a short code for tables, and a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Limits:
    """What a picture may take: more is refused, or brought down.

    Attributes:
        max_megapixels: Larger pictures are refused before they are decoded.
        max_side_px: Larger pictures are brought down to this long side.
    """

    max_megapixels: int
    max_side_px: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """An upright picture in sRGB, (H, W, 3), and what is worth telling of its file.

    Attributes:
        pixels_rgb: uint8.
        format: By content, whatever the name says.
        notes: What was done to the picture on the way.
        taken_s: Capture time in s since 1970 by the camera's clock; None where the file does not say.
    """

    pixels_rgb: Picture
    format: str
    notes: list[str]
    taken_s: float | None


def decoded(content: bytes, limits: Limits) -> Decoded:
    """Return the first picture in a file, upright, in sRGB, without any of its metadata.

    Raises:
        RefusedError: it is empty, no photo, damaged, truncated, absurdly large or absurdly small.
    """
    with _quiet():
        image = _opened(content)
        form = str(image.format)
        _check_size(image, limits)
        notes = _frames(image)
        image = _loaded(image, limits)
        taken_s, turn = _capture_time(image), TURNS.get(_orientation(image))
        image = _in_srgb(image, notes)
        if turn is not None:
            image = image.transpose(turn)
            notes.append("turned upright as its EXIF says")
        return Decoded(np.asarray(_brought_down(image, limits, notes), np.uint8), form, notes, taken_s)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow from warning about odd files, and leave the limits on size to `_check_size`."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@cache
def _know_formats() -> None:
    """Register the decoders of FORMATS with Pillow, which loads most of them only on demand."""
    import pillow_heif

    Image.init()
    pillow_heif.register_heif_opener()
    assert set(FORMATS) <= set(Image.OPEN), f"Pillow lacks {set(FORMATS) - set(Image.OPEN)}"


def _opened(content: bytes) -> Image.Image:
    if not content:
        raise RefusedError("empty", "The file has no bytes.")
    _know_formats()
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except DECODER_FAULTS as error:
        raise RefusedError("damaged", f"The file's header is damaged ({_said(error)}).") from None


def begins_like_a_picture(content: bytes) -> bool:
    """Return whether a file's first bytes are those of a known kind of picture; that it is one, only decoding tells."""
    return content.startswith(SIGNATURES) or content[4:8] == b"ftyp"


def _unidentified(content: bytes) -> RefusedError:
    if begins_like_a_picture(content):
        return RefusedError("damaged", "The file begins like a photo, but its header is damaged or of an unknown kind.")
    if content.startswith(ARCHIVES):
        return RefusedError("archive", "Archives inside the photos are not opened; unpack it, or give it alone.")
    return RefusedError("not_an_image", f"The content is none of {KNOWN}, whatever the name says.")


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_megapixels * 1_000_000:
        megapixels = width * height / 1_000_000
        raise RefusedError(
            "too_many_pixels", f"The picture claims {width}x{height} px ({megapixels:.0f} MP; ingest.max_megapixels is "
            f"{limits.max_megapixels}); export a smaller one."
        )  # fmt: skip
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedError("absurd_size", f"A picture of {width}x{height} px is no photo of a person.")


def _frames(image: Image.Image) -> list[str]:
    """Return a note where the file holds more than one picture."""
    if image.format == "MPO":
        return []
    with contextlib.suppress(*DECODER_FAULTS):
        if getattr(image, "is_animated", False):
            image.seek(0)
            return ["several frames: only the first is used"]
    return []


def _loaded(image: Image.Image, limits: Limits) -> Image.Image:
    try:
        image.draft(None, (limits.max_side_px, limits.max_side_px))  # JPEG decodes at 1/2, 1/4 or 1/8 for the asking
        image.load()
    except MemoryError:
        raise RefusedError("too_many_pixels", "The picture does not fit in memory; export a smaller one.") from None
    except DECODER_FAULTS as error:
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise RefusedError("truncated", "The file ends early; copy it again from the camera.") from None
        raise RefusedError("damaged", f"The file is damaged ({_said(error)}); copy it again from the camera.") from None
    return image


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(*DECODER_FAULTS):
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if isinstance(value, int) else 1
    return 1


def _capture_time(image: Image.Image) -> float | None:
    with contextlib.suppress(*DECODER_FAULTS):
        exif = image.getexif()
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        for tags, tag in (
            (inner, ExifTags.Base.DateTimeOriginal),
            (inner, ExifTags.Base.DateTimeDigitized),
            (exif, ExifTags.Base.DateTime),
        ):
            seconds = _seconds(tags.get(tag), inner.get(ExifTags.Base.SubsecTimeOriginal))
            if seconds is not None:
                return seconds
    return None


def _seconds(when: object, fraction: object) -> float | None:
    """Return an EXIF time such as `2024:05:04 10:30:00` in s since 1970, as if the camera stood at Greenwich."""
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.datetime.strptime(str(when).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        digits = str(fraction).strip("\0 ")
        part = float(f"0.{digits}") if digits.isdecimal() else 0.0
        return moment.replace(tzinfo=datetime.UTC).timestamp() + part
    return None


def _in_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return the picture as 8-bit RGB in sRGB; what is transparent lies over white."""
    profile = image.info.get("icc_profile")
    if image.mode in DEEP_MODES:
        image = _shallow(image, notes)
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode not in PROFILE_SPACES:
        image = image.convert("L" if image.mode == "1" else "RGB")
    if image.mode == "CMYK":
        notes.append("converted from CMYK")
    image = _converted(image, profile, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        notes.append("transparent parts laid over white")
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return image


def _converted(image: Image.Image, profile: object, notes: list[str]) -> Image.Image:
    """Return the picture in sRGB; a profile that is broken or of another colour space is left out, and this noted."""
    if not isinstance(profile, bytes) or not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != PROFILE_SPACES[image.mode]:
            image = image.convert("RGB")
        wanted = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(
            image, source, wanted, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
        )
    except DECODER_FAULTS:
        notes.append("its colour profile is broken and was left out")
        return image.convert("RGB")
    assert converted is not None
    name = (source.profile.profile_description or "unnamed").strip("\0 ")
    if "sRGB" not in name:
        notes.append(f"converted from the colour profile {name[:60]!r}")
    return converted


def _shallow(image: Image.Image, notes: list[str]) -> Image.Image:
    """Return a grey picture of 16 or 32 bits with 8, by the range that its values show."""
    levels = np.nan_to_num(np.asarray(image, np.float64), posinf=0.0, neginf=0.0)
    top = float(levels.max())
    full = 65535.0 if image.mode.startswith("I;16") else next((x for x in (1.0, 255.0, 65535.0) if top <= x), top)
    notes.append("brought from 16 or more bits to 8")
    return Image.fromarray(np.asarray(np.clip(levels / full, 0, 1) * 255 + 0.5, np.uint8))


def _brought_down(image: Image.Image, limits: Limits, notes: list[str]) -> Image.Image:
    long_px = max(image.size)
    if long_px <= limits.max_side_px:
        return image
    width, height = (max(1, round(side * limits.max_side_px / long_px)) for side in image.size)
    notes.append(f"brought down to {width}x{height} px")
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)


def _said(error: BaseException) -> str:
    """Return what a decoder said, in one line that a table can hold."""
    return " ".join(str(error).split())[:120] or type(error).__name__
