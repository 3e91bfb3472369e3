"""Write and read clean pictures, the form in which ingest keeps photos.

A photo that was coded with loss stays coded as it was (see zimage.photos.strip): coded without loss it would be seven
times as large. It is decoded by the same code as the file that was given, so nothing of the picture changes. All other
photos are PNGs.
"""

import io
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from zimage.photos.decode import Decoded, Limits, RefusedError, decoded
from zimage.photos.pictures import Picture, decoded_rgb, png
from zimage.photos.strip import stripped

Suffix = Literal[".png", ".jpg", ".webp", ".heic", ".avif"]


def clean_file(content: bytes, picture: Decoded, limits: Limits) -> tuple[Suffix, bytes]:
    """Return the file in which a photo is kept, without metadata, and its suffix.

    Args:
        content: The file that was given.
        picture: What it shows; the clean file shows the same to the last bit.
        limits: With which it was decoded.
    """
    found = stripped(content, picture.format, picture.orientation, picture.profile)
    if found is not None and _shows(found[1], picture.pixels_rgb, limits):
        return found
    return ".png", png(picture.pixels_rgb)


def _shows(content: bytes, pixels_rgb: Picture, limits: Limits) -> bool:
    try:
        return np.array_equal(decoded(content, limits).pixels_rgb, pixels_rgb)
    except RefusedError:
        return False


def read_clean(path: Path, long_px: int) -> Picture:
    """Return a clean picture, upright, in sRGB, (H, W, 3).

    Args:
        path: The file.
        long_px: Its long side as ingest's row has it, which may be smaller than what the file holds.
    """
    return decode_clean(path.suffix, path.read_bytes(), long_px)


def decode_clean(suffix: str, content: bytes, long_px: int) -> Picture:
    """Return the picture in a clean file that was read already; see `read_clean`."""
    if suffix == ".png" or (suffix == ".jpg" and _is_plain(content, long_px)):
        return decoded_rgb(content)
    return decoded(content, Limits(max_megapixels=sys.maxsize, max_side_px=long_px)).pixels_rgb


def _is_plain(content: bytes, long_px: int) -> bool:
    """Return whether a JPEG shows its picture as it is coded: in sRGB without a profile, and not brought down.

    OpenCV decodes such a file in two thirds of Pillow's time, by the same library to the same bits; it also turns the
    picture upright.
    """
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        return image.mode == "RGB" and not image.info.get("icc_profile") and max(image.size) <= long_px
