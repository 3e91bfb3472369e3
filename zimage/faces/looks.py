"""Measure how a picture looks, whoever it shows: contrast, saturation, structure of the skin, light, size of the face,
and how degraded it is.

These are what training too long changes first: pictures become hard, colourful, and waxy or rough.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from zimage.faces.degradation import blocking, blur, noise
from zimage.faces.engine import Face
from zimage.faces.landmarks import PointsKind, aligned
from zimage.faces.quality import INNER, SIDE_PX, chroma, sharpness
from zimage.photos.pictures import Picture


@dataclass(frozen=True)
class Looks:
    """How a picture looks.

    Args:
        contrast: Standard deviation of the luma, 0 to 0.5.
        saturation: Mean distance of the strongest from the weakest channel, 0 to 1.
        skin: Fine structure of the largest face; see zimage.faces.quality.sharpness. None without a face.
        face_luma: Mean luma of that face, 0 to 1.
        face_share: Height of that face over the picture's.
        blur: See zimage.faces.degradation, as the next two.
        noise: In levels of 255.
        blocking: 1 for none.
    """

    contrast: float
    saturation: float
    skin: float | None
    face_luma: float | None
    face_share: float | None
    blur: float
    noise: float
    blocking: float


def looks_of(image_rgb: Picture, face: Face | None, kind: PointsKind) -> Looks:
    """Return the looks of a picture (H, W, 3) whose largest face has points of this kind."""
    luma = np.asarray(cv2.cvtColor(image_rgb, cv2.COLOR_RGB2GRAY), np.uint8)
    of_picture = Looks(
        contrast=float(luma.std() / 255),
        saturation=chroma(image_rgb),
        skin=None,
        face_luma=None,
        face_share=None,
        blur=blur(luma),
        noise=noise(luma),
        blocking=blocking(luma),
    )
    if face is None:
        return of_picture
    upright = aligned(image_rgb, face.points_xy, kind, SIDE_PX)
    grey = np.asarray(cv2.cvtColor(upright, cv2.COLOR_RGB2GRAY), np.uint8)
    return replace(
        of_picture,
        skin=sharpness(grey),
        face_luma=float(grey[INNER, INNER].mean() / 255),
        face_share=float((face.box_xyxy[3] - face.box_xyxy[1]) / image_rgb.shape[0]),
    )
