"""Tell from the colours of an upright face whether a mask covers its lower half or sunglasses hide its eyes.

Both compare parts of one face with each other, so that light and the colour of the skin matter little. The limits are
set for hardly any false alarm: masks in the colour of skin, lightly tinted or mirrored lenses, and masks in photos
without colour are missed. The error rates are in infra/benchmarks.md (tests/benchmarks/covering.py).
"""

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from zimage.faces.landmarks import Points, PointsKind, eye_centres, upright_points
from zimage.photos.pictures import Picture

Covering = Literal["mask", "sunglasses"]
Colours = NDArray[np.float32]  # (..., 3): CIE L* (0 to 100), a* and b* (0 is grey)

# Left, top, right and bottom of the parts of a face, from the middle of the eyes, in distances of the eyes.
PARTS: dict[str, tuple[float, float, float, float]] = {
    "forehead": (-0.5, -0.82, 0.5, -0.47),
    "bridge": (-0.18, -0.12, 0.17, 0.22),
    "left eye": (-0.8, -0.22, -0.2, 0.22),
    "right eye": (0.2, -0.22, 0.8, 0.22),
    "left lens": (-0.8, 0.1, -0.2, 0.32),
    "right lens": (0.2, 0.1, 0.8, 0.32),
    "nose": (-0.2, 0.42, 0.2, 0.72),
    "left cheek": (-0.7, 0.57, -0.35, 0.87),
    "right cheek": (0.35, 0.57, 0.7, 0.87),
    "upper lip": (-0.25, 0.77, 0.25, 0.94),
    "mouth": (-0.4, 0.97, 0.4, 1.32),
    "chin": (-0.3, 1.42, 0.3, 1.7),
}
UPPER = ("bridge", "left eye", "right eye", "forehead")
LOWER = ("nose", "left cheek", "right cheek", "upper lip", "mouth")
LENSES = ("left lens", "right lens", "left eye", "right eye")
BESIDE_LENSES = ("nose", "left cheek", "right cheek", "upper lip")

# Sunglasses: mean L* of the lenses over that of nose, cheeks and upper lip, for all four parts and for the brightest.
# Below a hat or with sunken eyes it is 0.24 and more.
LENSES_MOST, LENS_MOST = 0.22, 0.5
LIT_LEAST = 0.5  # of that L*, for each of the parts below the lenses; a shadow darkens one of them too
SKIN_LEAST = 20.0  # L* of skin below which a photo is too dark to tell lenses from shadow
# Mask: every lower part has a colour that differs from the upper face's by this in a* and b*, and by this share of that
# colour. The highest of faces without a mask was 9.9, of faces by lamps of two colours.
COLOUR_LEAST, COLOUR_SHARE_LEAST = 11.0, 0.5
SKIN_COLOUR_LEAST, SKIN_HUES_DEG = 8.0, (5.0, 95.0)  # what is not so between hair and eyes is not skin
LIPS_MOST = 3.0  # in a*: lips that are redder than what is around them are not covered


def covering(upright_rgb: Picture, kind: PointsKind) -> Covering | None:
    """Return what covers an upright face; None where nothing does, or where that cannot be told.

    Args:
        upright_rgb: A square as `zimage.faces.landmarks.aligned` returns it.
        kind: Of the points by which it was aligned.
    """
    colours = _colours(upright_rgb, kind)
    if _has_sunglasses(colours):
        return "sunglasses"
    return "mask" if _has_mask(colours) else None


def _colours(upright_rgb: Picture, kind: PointsKind) -> dict[str, Colours]:
    """Return the median colour of each part of the face."""
    left, right = eye_centres(upright_points(kind, upright_rgb.shape[0]), kind)
    middle, distance = np.asarray((left + right) / 2, np.float32), float(right[0] - left[0])
    lab = cv2.cvtColor(upright_rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab = (lab - np.array([0, 128, 128], np.float32)) * np.array([100 / 255, 1, 1], np.float32)
    return {name: _median(lab, middle, distance, part) for name, part in PARTS.items()}


def _median(lab: Colours, middle: Points, distance: float, part: tuple[float, float, float, float]) -> Colours:
    """Return the median colour of a part of the face, of which the square holds at least some rows."""
    (left, top), (right, bottom) = (middle + distance * np.reshape(part, (2, 2))).round().astype(int)
    return np.asarray(np.median(lab[max(top, 0) : bottom, max(left, 0) : right].reshape(-1, 3), axis=0), np.float32)


def _has_sunglasses(colours: dict[str, Colours]) -> bool:
    beside = [float(colours[part][0]) for part in BESIDE_LENSES]
    skin, lenses = float(np.median(beside)), [float(colours[part][0]) for part in LENSES]
    if skin < SKIN_LEAST or min(beside) < LIT_LEAST * skin:
        return False
    return float(np.mean(lenses)) <= LENSES_MOST * skin and max(lenses) <= LENS_MOST * skin


def _has_mask(colours: dict[str, Colours]) -> bool:
    skin = np.median([colours[part] for part in UPPER], axis=0)[1:]
    strength = float(np.linalg.norm(skin))
    hue_deg = float(np.degrees(np.arctan2(skin[1], skin[0])))
    if strength < SKIN_COLOUR_LEAST or not SKIN_HUES_DEG[0] < hue_deg < SKIN_HUES_DEG[1]:
        return False
    around = np.median([colours[part][1] for part in ("upper lip", "left cheek", "right cheek", "chin")])
    if colours["mouth"][1] - around >= LIPS_MOST:
        return False
    least = min(_unlike_skin(colours[part][1:], skin / strength, strength) for part in LOWER)
    return least >= max(COLOUR_LEAST, COLOUR_SHARE_LEAST * strength)


def _unlike_skin(colour: Colours, hue: NDArray[np.floating], strength: float) -> float:
    """Return how much less a colour (a*, b*) has of the skin's hue, or how much of another; more of it is no sign."""
    along, across = float(colour @ hue), float(abs(colour[0] * hue[1] - colour[1] * hue[0]))
    return max(strength - along, across)
