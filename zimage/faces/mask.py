"""The soft mask of a face, by which the loss may count it more than its surroundings."""

import cv2
import numpy as np

from zimage.faces.pictures import Mask, Picture
from zimage.faces.points import Points, PointsKind, similarity, upright_points, yaw_deg

# Centre and half axes of the face (ears left out, forehead in) in the aligned square, as shares of its side. Measured
# by eye on skimage's astronaut and the six people of insightface's t1; corners and centres see different squares.
OVAL: dict[PointsKind, tuple[tuple[float, float], tuple[float, float]]] = {
    "corners": ((0.495, 0.50), (0.37, 0.52)),
    "centres": ((0.50, 0.50), (0.42, 0.60)),
}
TURNED = 0.28  # shift of the oval, times the sine of the yaw: the points follow the nose, the cheek stays behind
SOFT = 0.05  # of the half width: the edge fades over this standard deviation
OUTSIDE_HEAD = 1.5  # the oval times this holds hair and ears, so that what is beyond is background or clothes


def face_mask(size: tuple[int, int], points_xy: Points, kind: PointsKind) -> Mask:
    """Return 255 on the face, 0 off it and a soft edge between, (height, width) for `size` = (width, height)."""
    return _oval(size, points_xy, kind, 1.0)


def background_rgb(crop_rgb: Picture, points_xy: Points, kind: PointsKind) -> tuple[int, int, int]:
    """Return the median colour outside the head in the upper part of a crop; of its corners where the head fills it."""
    height, width = crop_rgb.shape[:2]
    outside = _oval((width, height), points_xy, kind, OUTSIDE_HEAD) < 128
    lowest = int(np.clip(points_xy[:, 1].max(), 1, height))  # below the nose or mouth there are clothes
    outside[lowest:] = False
    if not outside.any():
        outside[:: max(height - 1, 1), :: max(width - 1, 1)] = True
    red, green, blue = np.median(crop_rgb[outside], axis=0).round().astype(int)
    return int(red), int(green), int(blue)


def _oval(size: tuple[int, int], points_xy: Points, kind: PointsKind, grown: float) -> Mask:
    back = similarity(upright_points(kind, 1), points_xy)  # from shares of the aligned square to px of the crop
    scale, angle = float(np.hypot(back[0, 0], back[1, 0])), float(np.degrees(np.arctan2(back[1, 0], back[0, 0])))
    (x, y), (half_width, half_height) = OVAL[kind]
    centre = back @ np.array([x - TURNED * np.sin(np.radians(yaw_deg(points_xy, kind))), y, 1.0])
    axes = (2 * half_width * scale * grown, 2 * half_height * scale * grown)
    mask = np.zeros((size[1], size[0]), np.uint8)
    cv2.ellipse(mask, ((float(centre[0]), float(centre[1])), axes, angle), 255, -1, cv2.LINE_AA)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), max(SOFT * axes[0] / 2, 0.5)), np.uint8)
