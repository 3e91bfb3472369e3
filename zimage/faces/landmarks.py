"""Geometry of five facial landmarks: position of the eyes, yaw, roll, and alignment of the face."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]  # (5, 2) x, y in px

# "corners": outer and inner corner of the eye on the picture's right, outer and inner corner of the eye on its left,
#            base of the nose (dlib's shape_predictor_5_face_landmarks).
# "centres": eye on the picture's left, eye on its right, tip of the nose, left and right corner of the mouth
#            (RetinaFace, SCRFD and all ArcFace packs).
PointsKind = Literal["corners", "centres"]

# Depth of the nose point in front of the eyes in units of the eyes' distance (outer corners, or centres), from the
# mean of 68 three-dimensional landmarks in insightface's wheel (insightface/data/objects/meanshape_68.pkl).
NOSE_DEPTH: dict[PointsKind, float] = {"corners": 0.296, "centres": 0.586}

# Where the points lie in an upright face, as shares of the side of the aligned square.
# corners: davisking/dlib@v20.0:dlib/image_transforms/interpolation.h, get_face_chip_details (before its padding).
# centres: deepinsight/insightface@v2:python-package/insightface/utils/face_align.py, arcface_dst over 112 px.
UPRIGHT: dict[PointsKind, tuple[tuple[float, float], ...]] = {
    "corners": (
        (0.8595674595992, 0.2134981538014),
        (0.6460604764104, 0.2289674387677),
        (0.1205750620789, 0.2137274526848),
        (0.3340850613712, 0.2290642403242),
        (0.4901123135679, 0.6277975316475),
    ),
    "centres": (
        (38.2946 / 112, 51.6963 / 112),
        (73.5318 / 112, 51.5014 / 112),
        (56.0252 / 112, 71.7366 / 112),
        (41.5493 / 112, 92.3655 / 112),
        (70.7299 / 112, 92.2041 / 112),
    ),
}
# dlib's template is tight around eyes and nose; its ResNet was trained with this border on every side (share of side).
BORDER: dict[PointsKind, float] = {"corners": 0.25, "centres": 0.0}
# dlib's template counts from the corner of the first pixel, arcface_dst from its centre (checked against both).
FIRST_PIXEL: dict[PointsKind, float] = {"corners": -0.5, "centres": 0.0}


def eyes(points_xy: Points, kind: PointsKind) -> tuple[Points, Points]:
    """Return the points that span the eyes, the one on the picture's left first: outer corners, or centres."""
    return (points_xy[2], points_xy[0]) if kind == "corners" else (points_xy[0], points_xy[1])


def eye_centres(points_xy: Points, kind: PointsKind) -> tuple[Points, Points]:
    """Return the centres of the eyes, the one on the picture's left first."""
    if kind == "corners":
        return np.asarray(points_xy[2:4].mean(0), np.float32), np.asarray(points_xy[:2].mean(0), np.float32)
    return points_xy[0], points_xy[1]


def nose(points_xy: Points, kind: PointsKind) -> Points:
    """Return the base of the nose (corners) or its tip (centres)."""
    return np.asarray(points_xy[4 if kind == "corners" else 2], np.float32)


def between_eyes(points_xy: Points, kind: PointsKind) -> Points:
    """Return the middle of the eyes; of all four corners where the engine gives corners."""
    return np.asarray(points_xy[:4].mean(0) if kind == "corners" else points_xy[:2].mean(0), np.float32)


def roll_deg(points_xy: Points, kind: PointsKind) -> float:
    """Return the angle of the line of the eyes, positive where the head leans clockwise in the picture."""
    left, right = eyes(points_xy, kind)
    return float(np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0])))


def yaw_deg(points_xy: Points, kind: PointsKind) -> float:
    """Return the turn of the head, positive where the nose points to the picture's right; good to about 10 degrees.

    For a head turned by t, the nose moves along the line of the eyes by depth * sin(t) and the eyes' distance shrinks
    by cos(t), so the ratio of the two is depth * tan(t). Pitch cannot be had in this way: it needs the length of the
    nose, which differs between people by more than a nod changes it.
    """
    left, right = eyes(points_xy, kind)
    span = right - left
    along = float(np.dot(nose(points_xy, kind) - between_eyes(points_xy, kind), span) / max(np.dot(span, span), 1e-6))
    return float(np.degrees(np.arctan(along / NOSE_DEPTH[kind])))


def upright_points(kind: PointsKind, side_px: int) -> Points:
    """Return where the five points lie in the aligned square of `side_px`, (5, 2)."""
    border = BORDER[kind]
    return np.asarray((np.asarray(UPRIGHT[kind]) + border) / (1 + 2 * border) * side_px, np.float32)


def chip_points(kind: PointsKind, side_px: int) -> Points:
    """Return where the five points lie in the chip of `side_px` that a recogniser was trained on, (5, 2).

    Packs of insightface whose recogniser takes 128 px (or a multiple that is none of 112) have a template of their own:
    that of 112 px in the middle of a wider chip, without a larger scale (deepinsight/insightface, face_align.py).
    """
    if kind == "centres" and side_px % 112 and side_px % 128 == 0:
        scale = side_px / 128
        return np.asarray(upright_points(kind, 112) * scale + np.array([8 * scale, 0]), np.float32)
    return upright_points(kind, side_px)


def similarity(source_xy: Points, target_xy: Points) -> NDArray[np.float64]:
    """Return the 2x3 rotation, scaling and shift that carries `source_xy` to `target_xy` with least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 13 (1991), eq. 40.
    """
    source_mean, target_mean = source_xy.mean(0, dtype=np.float64), target_xy.mean(0, dtype=np.float64)
    source, target = source_xy - source_mean, target_xy - target_mean
    u, singular, vt = np.linalg.svd(target.T @ source / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = (u * sign) @ vt
    scale = (singular * sign).sum() / max(float(source.var(0).sum()), 1e-12)
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def aligned(image_rgb: NDArray[np.uint8], points_xy: Points, kind: PointsKind, side_px: int) -> NDArray[np.uint8]:
    """Return the face as an upright square of `side_px`, black where it reaches beyond the picture.

    A face that is larger than the square is first brought down by areas, so that fine texture does not turn into noise.
    """
    return _moved_to(upright_points(kind, side_px), image_rgb, points_xy, kind, side_px)


def chip(image_rgb: NDArray[np.uint8], points_xy: Points, kind: PointsKind, side_px: int) -> NDArray[np.uint8]:
    """Return the input of a recogniser of `side_px`; see `aligned` and `chip_points`."""
    return _moved_to(chip_points(kind, side_px), image_rgb, points_xy, kind, side_px)


def _moved_to(
    target_xy: Points, image_rgb: NDArray[np.uint8], points_xy: Points, kind: PointsKind, side_px: int
) -> NDArray[np.uint8]:
    import cv2

    carry = similarity(points_xy, target_xy + np.float32(FIRST_PIXEL[kind]))
    scale = float(np.hypot(carry[0, 0], carry[1, 0]))
    if scale < 0.5:
        image_rgb, carry = _shrunk(image_rgb, carry, side_px)
    return np.asarray(cv2.warpAffine(image_rgb, carry, (side_px, side_px), flags=cv2.INTER_LINEAR), np.uint8)


def _shrunk(
    image_rgb: NDArray[np.uint8], carry: NDArray[np.float64], side_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the part of the picture that `carry` moves into the square, at twice its size, and `carry` for that part.

    No more is brought down than the square shows, with a border of two px for the interpolation.
    """
    import cv2

    scale = float(np.hypot(carry[0, 0], carry[1, 0]))
    height, width = image_rgb.shape[:2]
    corners = np.array([[0, 0], [side_px, 0], [0, side_px], [side_px, side_px]])
    reached = (corners - carry[:, 2]) @ np.linalg.inv(carry[:, :2]).T
    left, top = np.clip(reached.min(0) - 1 / scale, 0, (width - 1, height - 1)).astype(int)
    right, bottom = np.ceil(np.clip(reached.max(0) + 1 / scale, (left + 1, top + 1), (width, height))).astype(int)
    part = image_rgb[top:bottom, left:right]
    size = max(1, round(part.shape[1] * 2 * scale)), max(1, round(part.shape[0] * 2 * scale))
    small = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
    back = np.array([[part.shape[1] / size[0], 0, left], [0, part.shape[0] / size[1], top], [0, 0, 1]])
    return small, carry @ back
