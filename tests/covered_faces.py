"""Photographs of faces that ship in packages, and masks and sunglasses that are drawn onto them."""

from typing import Any

import cv2
import numpy as np
from insightface.data import get_image
from matplotlib import cbook
from numpy.typing import NDArray
from PIL import Image
from skimage import data

Picture = NDArray[np.uint8]
Points = NDArray[np.float32]
Colour = tuple[int, int, int]

MASKS: dict[str, Colour] = {
    "white": (236, 240, 243), "black": (24, 24, 27), "blue": (120, 180, 220), "navy": (30, 42, 90),
    "green": (110, 190, 150), "grey": (130, 134, 138), "violet": (150, 110, 190), "red": (190, 25, 60),
}  # fmt: skip
LENSES: dict[str, Colour] = {"black": (12, 12, 14), "brown": (38, 24, 16), "green": (18, 30, 24), "blue": (14, 20, 38)}
# In distances of the eyes from their middle, upright; down to below the chin, and up to the bridge of the nose.
MASK = ((-0.98, 0.42), (-0.35, 0.36), (0, 0.26), (0.35, 0.36), (0.98, 0.42), (0.9, 1.3), (0.5, 1.85), (0, 2.0),
        (-0.5, 1.85), (-0.9, 1.3))  # fmt: skip
LENS = ((-0.44, -0.28), (0.4, -0.3), (0.42, 0.1), (0.25, 0.42), (-0.2, 0.46), (-0.42, 0.2))  # from the eye's centre
BRIDGE = ((-0.2, -0.24), (0.2, -0.24), (0.2, -0.1), (-0.2, -0.1))


def photographs() -> dict[str, Picture]:
    """Return photographs by name; nine people are on them."""
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as image:
        grace = np.asarray(image.convert("RGB"))
    group, hanks = (get_image(name)[:, :, ::-1] for name in ("t1", "Tom_Hanks_54745"))
    return {
        "astronaut": np.asarray(data.astronaut(), np.uint8),
        "grace": grace,
        "group": np.ascontiguousarray(group),
        "hanks": np.ascontiguousarray(cv2.copyMakeBorder(hanks, 40, 40, 40, 40, cv2.BORDER_REPLICATE)),
    }


def masked(photo: Picture, points_xy: Points, colour: Colour) -> Picture:
    """Return a photo with a mask over mouth and nose; `points_xy` begin with the centres of the eyes."""
    return _drawn(photo, points_xy, [MASK], colour, shade=0.3)


def in_sunglasses(photo: Picture, points_xy: Points, colour: Colour) -> Picture:
    """Return a photo with sunglasses over the eyes."""
    eyes = [tuple((x * side + 0.5 * side, y) for x, y in LENS) for side in (-1, 1)]
    return _drawn(photo, points_xy, [*eyes, BRIDGE], colour, shade=0.5)


def in_glasses(photo: Picture, points_xy: Points, colour: Colour) -> Picture:
    """Return a photo with a thin frame of glasses around the eyes."""
    drawn, where = photo.copy(), _places(points_xy)
    for side in (-1, 1):
        lens = where(tuple((x * side + 0.5 * side, y) for x, y in LENS)).astype(np.int32)
        width = max(1, round(0.05 * float(np.linalg.norm(points_xy[1] - points_xy[0]))))
        cv2.polylines(drawn, [lens], isClosed=True, color=colour, thickness=width, lineType=cv2.LINE_AA)
    return drawn


def _places(points_xy: Points) -> Any:
    middle, across = (points_xy[0] + points_xy[1]) / 2, points_xy[1] - points_xy[0]
    down = np.array([-across[1], across[0]])
    return lambda shape: np.array([middle + x * across + y * down for x, y in shape], np.float32)


def _drawn(photo: Picture, points_xy: Points, shapes: list[Any], colour: Colour, *, shade: float) -> Picture:
    """Return a photo with opaque shapes of a colour that darkens by `shade` from the middle to the side, with noise."""
    where = _places(points_xy)
    cover = np.zeros(photo.shape[:2], np.uint8)
    for shape in shapes:
        cv2.fillPoly(cover, [where(shape).round().astype(np.int32)], 255, cv2.LINE_AA)
    away = np.abs((np.arange(photo.shape[1]) - points_xy[:2, 0].mean()) / np.ptp(points_xy[:2, 0]))
    light = 1 - shade * np.clip(away, 0, 1)[None, :, None] + np.random.default_rng(0).normal(0, 0.02, photo.shape)
    opaque = cover[:, :, None] / 255
    return np.asarray(np.clip(photo * (1 - opaque) + np.array(colour) * light * opaque, 0, 255), np.uint8)
