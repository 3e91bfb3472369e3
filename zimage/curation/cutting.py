"""Cutting one photo: crops, soft face masks and the aligned face, cached so that they are cut once."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from zimage.curation.crops import Plan, cut
from zimage.faces.landmarks import Points, PointsKind, chip, similarity, upright_points, yaw_deg
from zimage.faces.observation import Measured
from zimage.faces.quality import chroma, warmth
from zimage.photos.cache import Cache, filled
from zimage.photos.clean import read_clean
from zimage.photos.pictures import Mask, Picture, write_png
from zimage.photos.rows import Cut, Point

# Centre and half axes of the face (ears left out, forehead in) in the aligned square, as shares of its side. Measured
# by eye on skimage's astronaut and the six people of insightface's t1; corners and centres see different squares.
OVAL: dict[PointsKind, tuple[tuple[float, float], tuple[float, float]]] = {
    "corners": ((0.495, 0.50), (0.37, 0.52)),
    "centres": ((0.50, 0.50), (0.42, 0.60)),
}
TURNED = 0.28  # shift of the oval, times the sine of the yaw: the points follow the nose, the cheek stays behind
SOFT = 0.05  # of the half width: the edge fades over this standard deviation
BACKGROUND_PX = 256  # long side, at most, of the pixels of which the background's colour is taken
FINEST_SOFT_PX = 4.0  # standard deviation of an edge at which a mask is drawn at least
OUTSIDE_HEAD = 1.5  # the oval times this holds hair and ears, so that what is beyond is background or clothes


Ellipse = tuple[tuple[float, float], tuple[float, float], float]  # centre, both axes, angle in degrees; see cv2.ellipse


def face_mask(size: tuple[int, int], points_xy: Points, kind: PointsKind) -> Mask:
    """Return 255 on the face, 0 off it and a soft edge between, (height, width) for `size` = (width, height)."""
    return _oval(size, points_xy, kind, 1.0)


def background_rgb(crop_rgb: Picture, points_xy: Points, kind: PointsKind) -> tuple[int, int, int]:
    """Return the median colour outside the head in the upper part of a crop; of its corners where the head fills it."""
    step = math.ceil(max(crop_rgb.shape[:2]) / BACKGROUND_PX)
    crop_rgb, points_xy = crop_rgb[::step, ::step], points_xy / np.float32(step)
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
    soft_px = max(SOFT * axes[0] / 2, 0.5)
    mask = np.zeros((size[1], size[0]), np.uint8)
    reach = max(axes) / 2 + 4 * soft_px + 2  # px from the centre beyond which the mask is 0: OpenCV's blur ends at 3
    left, top = np.clip(centre - reach, 0, size).astype(int)
    right, bottom = np.clip(centre + reach + 1, 0, size).astype(int)
    if left < right and top < bottom:
        middle = (float(centre[0] - left), float(centre[1] - top))
        mask[top:bottom, left:right] = _soft_ellipse((right - left, bottom - top), (middle, axes, angle), soft_px)
    return mask


def _soft_ellipse(size: tuple[int, int], ellipse: Ellipse, soft_px: float) -> Mask:
    """Return a filled ellipse whose edge fades; a wide edge is drawn small, where it looks the same, and enlarged."""
    width, height = size
    (x, y), axes, angle = ellipse
    step = max(1, int(soft_px / FINEST_SOFT_PX))
    small = np.zeros((math.ceil(height / step), math.ceil(width / step)), np.uint8)
    middle = ((x + 0.5) / step - 0.5, (y + 0.5) / step - 0.5)
    outline = 1 - 1 / step  # OpenCV also draws the outline, which is `step` px wide in the large picture
    drawn = (max(axes[0] / step - outline, 0.0), max(axes[1] / step - outline, 0.0))
    cv2.ellipse(small, (middle, drawn, angle), 255, -1, cv2.LINE_AA)
    soft = cv2.GaussianBlur(small, (0, 0), soft_px / step)
    if step > 1:
        soft = cv2.resize(soft, (small.shape[1] * step, small.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    return np.asarray(soft[:height, :width], np.uint8)


ALIGNED, CUTS = "aligned.png", "cuts.json"


@dataclass(frozen=True)
class Job:
    """The crops to make of one photo.

    Args:
        picture: The photo's file.
        long_px: The photo's long side.
        turns: Quarter turns, against the clock, that bring it upright.
        identity: Stands for its content, at this size.
        plans: The crops to make; at most one of each kind.
        face: Numbers of the subject's face.
        points_xy: The subject's five points in px of the photo.
        points_kind: Which points these are.
        aligned_px: Side of the aligned face.
    """

    picture: Path
    long_px: int
    turns: int
    identity: str
    plans: tuple[Plan, ...]
    face: Measured
    points_xy: tuple[Point, ...]
    points_kind: PointsKind
    aligned_px: int

    @property
    def key(self) -> str:
        """Everything that the crops depend on."""
        what = f"{self.identity} {self.turns} {self.plans} {self.face}"
        return f"{what} {self.points_xy} {self.points_kind} {self.aligned_px}"


@dataclass(frozen=True)
class Cutter:
    """Makes the crops of photos in a worker process; `cache` and `salt`: see zimage.photos.cache."""

    cache: Path
    salt: str

    def __call__(self, job: Job) -> Path:
        """Return the cache folder that holds a photo's crops."""
        return filled(Cache(self.cache, self.salt).entry(job.key), lambda folder: _cut_all(job, folder))


def read_cuts(entry: Path) -> list[Cut]:
    """Return the rows of the crops in a cache folder, in the order of the job's plans."""
    return [Cut.model_validate(cut) for cut in json.loads((entry / CUTS).read_bytes())]


def _cut_all(job: Job, folder: Path) -> None:
    image_rgb = np.ascontiguousarray(np.rot90(read_clean(job.picture, job.long_px), job.turns))
    points_xy = np.asarray(job.points_xy, np.float32)
    rows = []
    for plan in job.plans:
        crop_rgb, carried = cut(image_rgb, plan), plan.carried(points_xy)
        write_png(folder / f"{plan.kind}.png", crop_rgb)
        write_png(folder / f"{plan.kind}-mask.png", face_mask((plan.width, plan.height), carried, job.points_kind))
        rows.append(_row(job, plan, crop_rgb, carried))
    write_png(folder / ALIGNED, chip(image_rgb, points_xy, job.points_kind, job.aligned_px))
    (folder / CUTS).write_text(json.dumps([row.model_dump() for row in rows]), encoding="utf-8")


def _row(job: Job, plan: Plan, crop_rgb: Picture, points_xy: Points) -> Cut:
    box = plan.carried(np.asarray(job.face.box_xyxy, np.float32).reshape(2, 2)).ravel()
    left, top, right, bottom = (round(float(side), 2) for side in box)
    return Cut(
        kind=plan.kind,
        width=plan.width,
        height=plan.height,
        scale=round(plan.scale, 4),
        face_box_xyxy=(left, top, right, bottom),
        points_xy=[(round(float(x), 2), round(float(y), 2)) for x, y in points_xy],
        yaw_deg=job.face.yaw_deg,
        roll_deg=job.face.roll_deg,
        sharpness=job.face.sharpness,
        face_luma=job.face.luma,
        chroma=chroma(crop_rgb),
        warmth=warmth(crop_rgb),
        background_rgb=background_rgb(crop_rgb, points_xy, job.points_kind),
    )
