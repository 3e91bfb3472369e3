"""Cutting one photo: crops, masks and the aligned face, kept so that they are cut once."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zimage.faces.cache import Cache, filled
from zimage.faces.clean import read_clean
from zimage.faces.crop import Plan, cut
from zimage.faces.mask import background_rgb, face_mask
from zimage.faces.observe import Measured
from zimage.faces.pictures import Picture, write_png
from zimage.faces.points import Points, PointsKind, chip
from zimage.faces.quality import chroma, warmth
from zimage.faces.rows import Cut, Point

ALIGNED, CUTS = "aligned.png", "cuts.json"


@dataclass(frozen=True)
class Job:
    """What to cut out of one photo.

    Attributes:
        picture: The photo's file.
        long_px: The photo's long side.
        identity: Stands for its content, at this size.
        plans: The crops to make; at most one of each kind.
        face: Numbers of the subject's face.
        points_xy: The subject's five points in px of the photo.
        points_kind: Which points these are.
        aligned_px: Side of the aligned face.
    """

    picture: Path
    long_px: int
    identity: str
    plans: tuple[Plan, ...]
    face: Measured
    points_xy: tuple[Point, ...]
    points_kind: PointsKind
    aligned_px: int

    @property
    def key(self) -> str:
        """All that decides about the crops."""
        return f"{self.identity} {self.plans} {self.face} {self.points_xy} {self.points_kind} {self.aligned_px}"


@dataclass(frozen=True)
class Cutter:
    """The work of one process that cuts photos; `cache` and `salt`: see zimage.faces.cache."""

    cache: Path
    salt: str

    def __call__(self, job: Job) -> Path:
        """Return the cache folder that holds a photo's crops."""
        return filled(Cache(self.cache, self.salt).entry(job.key), lambda folder: _cut_all(job, folder))


def read_cuts(entry: Path) -> list[Cut]:
    """Return the rows of the crops in a cache folder, in the order of the job's plans."""
    return [Cut.model_validate(cut) for cut in json.loads((entry / CUTS).read_bytes())]


def _cut_all(job: Job, folder: Path) -> None:
    image_rgb = read_clean(job.picture, job.long_px)
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
