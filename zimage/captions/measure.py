"""Measure what a template caption can state about a picture, from its pixels and the face."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

REC709_LUMA = (0.2126, 0.7152, 0.0722)  # ITU-R BT.709-6, item 3.2: luma from R'G'B'

LEAST_PLAIN = 0.6  # share of the background that must have its median colour, or it has none
SAME_COLOUR = 15.0  # CIELAB distance (CIE76) within which two colours count as one: a plain wall with light falling off
BACKGROUND_PX = 256  # about this number squared of its pixels are compared
HAIR_SIDE = 0.75  # hair, ears and hat reach this many face widths beyond either side of the face box
HAIR_TOP = 0.75  # and this many face heights above it
LEAST_BACKGROUND = 0.01  # least share of the picture outside the head for a background colour


@dataclass(frozen=True)
class Measured:
    """The measures behind a template caption.

    Args:
        framing: Side of the square that has the face box's area, over that of the picture's area; a face that fills
            a tall picture counts as much as in a square one. Only what lies inside the picture counts.
        below: Height of the picture below the chin, in heights of the face box: from about 1 on the chest shows.
        yaw_deg: Turn of the head; positive towards the right edge of the picture; None when it was not measured.
        roll_deg: Tilt of the head; positive clockwise as the viewer sees it; None when it was not measured.
        face_luma: Mean Rec. 709 luma inside the face box, 0 to 1.
        chroma: Mean over the picture of the largest minus the smallest of R, G and B, 0 to 1.
        warmth: Mean red minus mean blue over the picture, -1 to 1.
        background_rgb: Median colour left, right and above the head, 0 to 255; None when the head fills the picture.
        plain: True if most of the background has that colour.
    """

    framing: float
    below: float
    yaw_deg: float | None
    roll_deg: float | None
    face_luma: float
    chroma: float
    warmth: float
    background_rgb: tuple[int, int, int] | None
    plain: bool


def framing_of(box_xyxy: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float]:
    """Return `framing` and `below` (see `Measured`) of a face box (px) in a picture of `width` x `height` px."""
    left, top, right, bottom = box_xyxy
    inside = max(min(right, width) - max(left, 0), 0.0) * max(min(bottom, height) - max(top, 0), 0.0)
    return (inside / (width * height)) ** 0.5, max(height - bottom, 0.0) / max(bottom - top, 1.0)


def measure(
    image_rgb: NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    *,
    yaw_deg: float | None,
    roll_deg: float | None,
) -> Measured:
    """Return the measurements of a picture (H, W, 3) with a face in `box_xyxy` (pixels)."""
    unit = image_rgb.astype(np.float32) / 255.0
    left, top, right, bottom = _inside(box_xyxy, image_rgb.shape)
    face = unit[top:bottom, left:right]
    framing, below = framing_of(box_xyxy, image_rgb.shape[1], image_rgb.shape[0])
    background_rgb, plain = background_of(image_rgb, box_xyxy)
    return Measured(
        framing=framing,
        below=below,
        yaw_deg=yaw_deg,
        roll_deg=roll_deg,
        face_luma=float((face @ np.asarray(REC709_LUMA, np.float32)).mean()),
        chroma=float((unit.max(axis=2) - unit.min(axis=2)).mean()),
        warmth=float(unit[..., 0].mean() - unit[..., 2].mean()),
        background_rgb=background_rgb,
        plain=plain,
    )


def _inside(box_xyxy: tuple[float, float, float, float], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the box in whole pixels, clipped to the picture and at least one pixel large."""
    height, width = shape[:2]
    left, top = min(max(round(box_xyxy[0]), 0), width - 1), min(max(round(box_xyxy[1]), 0), height - 1)
    right, bottom = max(min(round(box_xyxy[2]), width), left + 1), max(min(round(box_xyxy[3]), height), top + 1)
    return left, top, right, bottom


def background_of(
    image_rgb: NDArray[np.uint8], box_xyxy: tuple[float, float, float, float]
) -> tuple[tuple[int, int, int] | None, bool]:
    """Return `background_rgb` and `plain` (see `Measured`): of what lies above the chin and outside the head.

    Args:
        image_rgb: (H, W, 3) uint8.
        box_xyxy: Of the face, in px. Below the chin are shoulders, not background.
    """
    import cv2

    left, top, right, bottom = _inside(box_xyxy, image_rgb.shape)
    side, above = round(HAIR_SIDE * (right - left)), round(HAIR_TOP * (bottom - top))
    outside = np.zeros(image_rgb.shape[:2], bool)
    outside[:bottom] = True
    outside[max(top - above, 0) : bottom, max(left - side, 0) : right + side] = False
    if outside.mean() < LEAST_BACKGROUND:
        return None, False
    pixels = image_rgb[outside]
    red, green, blue = (int(value) for value in np.median(pixels, axis=0))
    some = pixels[:: max(1, len(pixels) // BACKGROUND_PX**2)]
    both = np.concatenate([np.array([[red, green, blue]], np.uint8), some])[None].astype(np.float32) / 255
    lab = cv2.cvtColor(both, cv2.COLOR_RGB2LAB)[0]
    share = float((np.linalg.norm(lab[1:] - lab[0], axis=1) <= SAME_COLOUR).mean())
    return (red, green, blue), share >= LEAST_PLAIN
