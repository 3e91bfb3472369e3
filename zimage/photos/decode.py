"""Decode an untrusted picture file to upright sRGB; of its metadata only the capture time is kept."""

import contextlib
import datetime
import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from zimage.photos.heif import colour_codes
from zimage.photos.kinds import kind_refusal
from zimage.photos.profile import profile_of_codes

logger = logging.getLogger(__name__)

Picture = NDArray[np.uint8]

# Only these decoders ever see a file; others would run interpreters (EPS) or read what nobody photographs in. MPO, what
# phones make of several JPEGs, is opened by JPEG's.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF")
KNOWN = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC and AVIF"
# First bytes by which a damaged photo is told from a file that never was one.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF8")
# Memory that decoding takes at most, in bytes for each pixel that is allowed. Some decoders need more for a pixel
# (measured at 54 MP, see infra/benchmarks.md), and get pictures that are as much smaller.
BYTES_A_PIXEL = 6
BYTES_A_PIXEL_OF = {"HEIF": 10, "AVIF": 12, "WEBP": 16}
COEFFICIENT_BYTES = 2  # of a progressive JPEG, whose coefficients are in memory until its last scan was read
MIN_SIDE_PX, MAX_ASPECT = 32, 10.0
# What the clocks of cameras begin at until somebody sets them.
UNSET_CLOCKS = frozenset(datetime.date(year, 1, 1) for year in (1970, 1980, 2000))
# What decoders raise on damaged data. Programming mistakes of ours would hide here too, so nothing of ours runs inside.
DECODER_FAULTS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, struct.error, zlib.error, ImageCms.PyCMSError,
)  # fmt: skip
# EXIF 3.0, 4.6.5.1.6: what brings a picture (H, W, 3) upright.
TURNS: dict[int, Callable[[Picture], Picture]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, 3),
    7: lambda pixels: pixels.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
EOI = b"\xff\xd9"  # ends a JPEG
PADS = (b"\x55" * 64, b"\xaa" * 64)  # bits of two kinds, without the byte that begins a marker
BAND_PIXELS = 1_000_000  # that are converted at once; each takes some 30 bytes meanwhile
LANCZOS_RADIUS = 3  # px of the result
TRANSPARENT = "transparent parts laid over white"
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

    Args:
        max_megapixels: Larger pictures are refused before they are decoded.
        max_side_px: Larger pictures are brought down to this long side.
    """

    max_megapixels: int
    max_side_px: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """An upright picture in sRGB, (H, W, 3), and what is worth telling of its file.

    Args:
        pixels_rgb: uint8.
        format: By content, whatever the name says.
        notes: What was done to the picture on the way.
        taken_s: Capture time in s since 1970 by the camera's clock; None where the file does not say.
        orientation: How the file's pixels lay, 1 to 8, as its EXIF says.
        profile: The file's ICC profile; empty where it has none.
    """

    pixels_rgb: Picture
    format: str
    notes: list[str]
    taken_s: float | None
    orientation: int
    profile: bytes


def decoded(content: bytes, limits: Limits) -> Decoded:
    """Return the first or primary picture in a file, upright, in sRGB, without any of its metadata.

    Raises:
        RefusedError: it is empty, no photo, a raw file, damaged, truncated, absurdly large or absurdly small.
    """
    with _quiet():
        try:
            return _decoded(content, limits)
        except MemoryError:
            raise RefusedError("too_many_pixels", "The picture does not fit in memory; export a smaller one.") from None


def _decoded(content: bytes, limits: Limits) -> Decoded:
    image = _opened(content, limits)
    form = str(image.format)
    notes = _frames(image)
    image = _loaded(image, content, limits, notes)
    taken_s, orientation, profile = _capture_time(image), _orientation(image), image.info.get("icc_profile")
    codes = _colour_codes(image, content)
    if codes is not None and (form == "PNG" or not profile):
        image.info["icc_profile"] = profile_of_codes(*codes)
    turn = TURNS.get(orientation)
    size = _size(image, limits)
    pixels = _in_srgb(image, size, notes)
    if turn is not None:
        pixels = np.ascontiguousarray(turn(pixels))
        notes.append("turned upright as its EXIF says")
    if size != image.size:
        notes.append(f"brought down to {pixels.shape[1]}x{pixels.shape[0]} px")
    return Decoded(pixels, form, notes, taken_s, orientation, profile if isinstance(profile, bytes) else b"")


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


def _opened(content: bytes, limits: Limits) -> Image.Image:
    """Return a picture whose size was checked; of a JPEG it may be 1/2, 1/4 or 1/8 of what the file holds."""
    if not content:
        raise RefusedError("empty", "The file has no bytes.")
    refusal = kind_refusal(content)
    if refusal is not None:
        raise RefusedError(*refusal)
    _know_formats()
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        whole = image.size
        if image.format in ("JPEG", "MPO"):  # a draft of HEIF would be a thumbnail
            scale = min(1.0, limits.max_side_px / max(whole))
            image.draft(None, (math.floor(image.width * scale), math.floor(image.height * scale)))
    except UnidentifiedImageError:
        raise _unidentified(content) from None
    except DECODER_FAULTS as error:
        raise RefusedError("damaged", f"The file's header is damaged ({_said(error)}).") from None
    _check_size(image, whole, limits)
    return image


def begins_like_a_picture(content: bytes) -> bool:
    """Return whether a file's first bytes are those of a known kind of picture; that it is one, only decoding tells."""
    return content.startswith(SIGNATURES) or content[4:8] == b"ftyp"


def _unidentified(content: bytes) -> RefusedError:
    if begins_like_a_picture(content):
        return RefusedError("damaged", "The file begins like a photo, but its header is damaged or of an unknown kind.")
    return RefusedError("not_an_image", f"The content is none of {KNOWN}, whatever the name says.")


def _check_size(image: Image.Image, whole: tuple[int, int], limits: Limits) -> None:
    """Pass a picture that can be decoded within the limits.

    Args:
        image: At the size at which it will be decoded.
        whole: Width and height in px that the file claims.
        limits: What a picture may take.

    Raises:
        RefusedError: it is too large, or no photo of a person by its shape.
    """
    width, height = whole
    if min(width, height) < MIN_SIDE_PX or max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedError("absurd_size", f"A picture of {width}x{height} px is no photo of a person.")
    if image.width * image.height > limits.max_megapixels * 1_000_000:
        megapixels = width * height / 1_000_000
        raise RefusedError(
            "too_many_pixels", f"The picture claims {width}x{height} px ({megapixels:.0f} MP; ingest.max_megapixels is "
            f"{limits.max_megapixels}); export a smaller one."
        )  # fmt: skip
    cost = BYTES_A_PIXEL_OF.get(str(image.format), BYTES_A_PIXEL) * image.width * image.height / (width * height)
    if image.info.get("progressive"):
        cost += _coefficients_a_pixel(image) * COEFFICIENT_BYTES
    if width * height * cost > limits.max_megapixels * 1_000_000 * BYTES_A_PIXEL:
        raise RefusedError(
            "too_many_pixels", f"The picture claims {width}x{height} px, and its kind of {image.format} takes "
            f"{cost:.0f} bytes of memory for each; export at most "
            f"{limits.max_megapixels * BYTES_A_PIXEL / cost:.0f} MP, or a JPEG that is not progressive."
        )  # fmt: skip


def _coefficients_a_pixel(image: Image.Image) -> float:
    """Return how many numbers a JPEG holds for each pixel: 3 without subsampling of its colours, 1.5 with the usual."""
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    samples = [across * down for _, across, down, _ in layers]
    return sum(samples) / max(samples) if samples else 3.0


def _frames(image: Image.Image) -> list[str]:
    """Return a note where the file holds more than one picture, and choose its first, of HEIF its primary one."""
    if image.format == "MPO":
        return []
    with contextlib.suppress(*DECODER_FAULTS):
        if getattr(image, "is_animated", False):
            if image.format == "HEIF":  # opened at the primary picture, which need not be the first
                return ["several pictures: only the primary one is used"]
            image.seek(0)
            return ["several frames: only the first is used"]
    return []


def _loaded(image: Image.Image, content: bytes, limits: Limits, notes: list[str]) -> Image.Image:
    try:
        image.load()
    except MemoryError:
        raise
    except DECODER_FAULTS as error:
        if image.format in ("JPEG", "MPO") and (whole := _without_end_marker(content, limits)) is not None:
            notes.append("its end marker is missing")
            return whole
        if "truncated" in str(error).lower() or isinstance(error, EOFError):
            raise RefusedError("truncated", "The file ends early; copy it again from the camera.") from None
        raise RefusedError("damaged", f"The file is damaged ({_said(error)}); copy it again from the camera.") from None
    return image


def _without_end_marker(content: bytes, limits: Limits) -> Image.Image | None:
    """Return the picture of a JPEG that lacks nothing but its end marker; None where data is missing too.

    A decoder fills what is missing with grey, without an error. So other bits are put in its place, of two kinds: where
    they are decoded into the picture, it was not whole.
    """
    images = []
    for pad in PADS:
        image = _opened(content.rstrip(b"\xff") + pad + EOI, limits)
        try:
            image.load()
        except MemoryError:
            raise
        except DECODER_FAULTS:
            return None
        images.append(image)
    one, other = images
    rows = max(1, BAND_PIXELS // one.width)
    bands = ((0, top, one.width, min(top + rows, one.height)) for top in range(0, one.height, rows))
    return one if all(one.crop(band).tobytes() == other.crop(band).tobytes() for band in bands) else None


def _colour_codes(image: Image.Image, content: bytes) -> tuple[int, int] | None:
    """Return the codes of primaries and transfer function (ITU-T H.273) of a picture; None where it has none."""
    match image.format:
        case "HEIF" | "AVIF":
            return colour_codes(content)
        case "PNG":  # PNG, third edition, 11.3.2.6: cICP comes before the picture's data
            at = content.find(b"\0\0\0\4cICP", 0, max(content.find(b"IDAT"), 0))
            return (content[at + 8], content[at + 9]) if at > 0 else None
    return None


def _orientation(image: Image.Image) -> int:
    with contextlib.suppress(*DECODER_FAULTS):
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if isinstance(value, int) else 1
    return 1


def _capture_time(image: Image.Image) -> float | None:
    """Return when the shutter was pressed, in s since 1970, or None where the file does not say that.

    EXIF's DateTime is when the file was written, and DateTimeDigitized when a print was scanned: exports and scans
    carry these alone, and all of one afternoon would be taken for one session.
    """
    with contextlib.suppress(*DECODER_FAULTS):
        inner = image.getexif().get_ifd(ExifTags.IFD.Exif)
        return _seconds(inner.get(ExifTags.Base.DateTimeOriginal), inner.get(ExifTags.Base.SubsecTimeOriginal))
    return None


def _seconds(when: object, fraction: object) -> float | None:
    """Return an EXIF time such as `2024:05:04 10:30:00` in s since 1970, as if the camera stood at Greenwich.

    None for a time at which the clock of a camera begins that nobody has set.
    """
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.datetime.strptime(str(when).strip("\0 "), "%Y:%m:%d %H:%M:%S")
        if moment.date() in UNSET_CLOCKS:
            return None
        digits = str(fraction).strip("\0 ")
        part = float(f"0.{digits}") if digits.isdecimal() else 0.0
        return moment.replace(tzinfo=datetime.UTC).timestamp() + part
    return None


def _size(image: Image.Image, limits: Limits) -> tuple[int, int]:
    """Return width and height of what is made of a picture, in px, before it is turned upright."""
    scale = min(1.0, limits.max_side_px / max(image.size))
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _in_srgb(image: Image.Image, size: tuple[int, int], notes: list[str]) -> Picture:
    """Return the picture as 8-bit RGB in sRGB, (H, W, 3), converted and brought down band by band.

    So the whole of it is in memory once only, as the decoder left it.

    Args:
        image: The loaded picture.
        size: Width and height of the result in px.
        notes: Get what was done.
    """
    to_srgb = _ToSrgb(image)
    width, height = size
    scale = image.height / height  # rows of the picture for one of the result
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, int(BAND_PIXELS / (image.width * scale)))
    margin = math.ceil(LANCZOS_RADIUS * scale) if size != image.size else 0
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        start, end = top * scale, min(bottom * scale, image.height)
        first, last = max(0, math.floor(start) - margin), min(image.height, math.ceil(end) + margin)
        band = to_srgb(image.crop((0, first, image.width, last)))
        if size != image.size:
            region = (0.0, start - first, float(image.width), end - first)
            band = band.resize((width, bottom - top), Image.Resampling.LANCZOS, box=region)
        pixels[top:bottom] = np.asarray(band)
    notes += to_srgb.notes
    return pixels


class _ToSrgb:
    """Converts bands of one picture to 8-bit RGB in sRGB; what is transparent comes to lie over white.

    Args:
        image: The whole picture, loaded.

    Args:
        notes: What was done to the bands so far.
    """

    def __init__(self, image: Image.Image) -> None:
        self.notes: list[str] = []
        self._full = _full_scale(image) if image.mode in DEEP_MODES else None
        if self._full is not None:
            self.notes.append("brought from 16 or more bits to 8")
        mode = self._split(image.crop((0, 0, 1, 1)))[0].mode
        if mode == "CMYK":
            self.notes.append("converted from CMYK")
        self._mode, self._transform = self._transform_of(image.info.get("icc_profile"), mode)

    def __call__(self, band: Image.Image) -> Image.Image:
        """Return a band in RGB."""
        band, alpha = self._split(band)
        if band.mode != self._mode:
            band = band.convert(self._mode)
        if self._transform is not None:
            band = ImageCms.applyTransform(band, self._transform) or band
        if alpha is None or alpha.getextrema() == (255, 255):
            return band
        if TRANSPARENT not in self.notes:
            self.notes.append(TRANSPARENT)
        return Image.composite(band, Image.new("RGB", band.size, "white"), alpha)

    def _split(self, band: Image.Image) -> tuple[Image.Image, Image.Image | None]:
        """Return a band with 8 bits in a mode to which a profile can apply, and how opaque it is."""
        alpha = None
        if self._full is not None:
            band = _shallow(band, self._full)
        elif band.has_transparency_data:
            band = band.convert("RGBA")
            alpha = band.getchannel("A")
        if band.mode not in PROFILE_SPACES:
            band = band.convert("L" if band.mode == "1" else "RGB")
        return band, alpha

    def _transform_of(self, profile: object, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
        """Return the mode that bands are to have, and what takes them from there to sRGB.

        A profile that is broken or of another colour space is left out, and this noted.
        """
        if not isinstance(profile, bytes) or not profile:
            return "RGB", None
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() != PROFILE_SPACES[mode]:
                mode = "RGB"
            wanted = ImageCms.createProfile("sRGB")
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            transform = ImageCms.buildTransform(source, wanted, mode, "RGB", intent)
        except MemoryError:
            raise
        except DECODER_FAULTS:
            self.notes.append("its colour profile is broken and was left out")
            return "RGB", None
        name = (source.profile.profile_description or "unnamed").strip("\0 ")
        if "sRGB" not in name:
            self.notes.append(f"converted from the colour profile {name[:60]!r}")
        return mode, transform


def _full_scale(image: Image.Image) -> float:
    """Return the value that is white in a grey picture of 16 or 32 bits, by the range that its values show."""
    if image.mode.startswith("I;16"):
        return 65535.0
    rows = max(1, BAND_PIXELS // image.width)
    bands = (image.crop((0, top, image.width, min(top + rows, image.height))) for top in range(0, image.height, rows))
    top = max(float(_levels(band).max()) for band in bands)
    return next((x for x in (1.0, 255.0, 65535.0) if top <= x), top)


def _shallow(band: Image.Image, full: float) -> Image.Image:
    """Return a grey band of 16 or 32 bits with 8; `full` becomes white."""
    return Image.fromarray(np.asarray(np.clip(_levels(band) / full, 0, 1) * 255 + 0.5, np.uint8))


def _levels(band: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(band, np.float64), posinf=0.0, neginf=0.0)


def _said(error: BaseException) -> str:
    """Return a decoder's message as one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
