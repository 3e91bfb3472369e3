"""Measure what a template caption can state about a picture, from its pixels and the face."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REC709_LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709-6, item 3.2: luma from R'G'B'

HAIR_SIDE = 0.75  # hair, ears and hat reach this many face widths beyond either side of the face box
HAIR_TOP = 0.75  # and this many face heights above it
LEAST_BACKGROUND = 0.01  # share of the picture that must lie beside the head before its colour is believed


@dataclass(frozen=True)
class Measured:
    """The measures behind a template caption.

    Args:
        framing: Height of the face box over height of the picture.
        yaw_deg: Turn of the head; positive towards the right edge of the picture; None when it was not measured.
        roll_deg: Tilt of the head; positive clockwise as the viewer sees it; None when it was not measured.
        face_luma: Mean Rec. 709 luma inside the face box, 0 to 1.
        chroma: Mean over the picture of the largest minus the smallest of R, G and B, 0 to 1.
        warmth: Mean red minus mean blue over the picture, -1 to 1.
        background_rgb: Median colour beside and above the head, 0 to 255; None when the head fills the picture.
    """

    framing: float
    yaw_deg: float | None
    roll_deg: float | None
    face_luma: float
    chroma: float
    warmth: float
    background_rgb: tuple[int, int, int] | None


def measure(
    image_rgb: NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    *,
    yaw_deg: float | None,
    roll_deg: float | None,
) -> Measured:
    """Return what the template can say of a picture (H, W, 3) whose face lies in `box_xyxy` (pixels)."""
    unit = image_rgb.astype(np.float32) / 255.0
    left, top, right, bottom = _inside(box_xyxy, image_rgb.shape)
    face = unit[top:bottom, left:right]
    return Measured(
        framing=(box_xyxy[3] - box_xyxy[1]) / image_rgb.shape[0],
        yaw_deg=yaw_deg,
        roll_deg=roll_deg,
        face_luma=float((face @ np.asarray(REC709_LUMA, np.float32)).mean()),
        chroma=float((unit.max(axis=2) - unit.min(axis=2)).mean()),
        warmth=float(unit[..., 0].mean() - unit[..., 2].mean()),
        background_rgb=_background(image_rgb, (left, top, right, bottom)),
    )


def _inside(box_xyxy: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the box in whole pixels, clipped to the picture and at least one pixel large."""
    height, width = shape[:2]
    left, top = min(max(round(box_xyxy[0]), 0), width - 1), min(max(round(box_xyxy[1]), 0), height - 1)
    right, bottom = max(min(round(box_xyxy[2]), width), left + 1), max(min(round(box_xyxy[3]), height), top + 1)
    return left, top, right, bottom


def _background(image_rgb: NDArray[np.uint8], box_xyxy: tuple[int, int, int, int]) -> tuple[int, int, int] | None:
    """Return the median colour above the chin and outside the head: below the chin are shoulders, not background."""
    left, top, right, bottom = box_xyxy
    side, above = round(HAIR_SIDE * (right - left)), round(HAIR_TOP * (bottom - top))
    beside = np.zeros(image_rgb.shape[:2], bool)
    beside[:bottom] = True
    beside[max(top - above, 0) : bottom, max(left - side, 0) : right + side] = False
    if beside.mean() < LEAST_BACKGROUND:
        return None
    red, green, blue = (int(value) for value in np.median(image_rgb[beside], axis=0))
    return red, green, blue
