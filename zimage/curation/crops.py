"""Plan the crops of a photo: the whole frame, and at most one head-and-shoulders crop, each of a bucket's size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from zimage.core.section import Section
from zimage.faces.landmarks import Points, PointsKind
from zimage.photos.pictures import Picture
from zimage.photos.rows import Box

Kind = Literal["full", "head"]

# How far a head reaches from the centre of its face box, in sides of the box: to each side, up, and down to the chin.
# corners: dlib's box ends at brows and chin (measured on skimage's astronaut and the six people of insightface's t1).
# centres: WIDER FACE's boxes, on which such detectors are trained, begin at the forehead; YuNet's side is 1.08 times
# dlib's, and its middle 0.08 of dlib's side higher (medians of 39 photos).
HEAD: dict[PointsKind, tuple[float, float, float]] = {"corners": (0.85, 1.15, 0.65), "centres": (0.79, 0.99, 0.68)}
ABOVE = 0.35  # share of a head crop's spare height that lies above the head; shoulders need the larger part
STRANGER = 0.10  # another face of this share of the subject's is a second person in the picture
# So is this share of the head of somebody whose face has at least that part of the subject's side.
STRANGERS_HEAD, STRANGERS_SIDE = 0.15, 0.4
TIGHTEST = 0.7  # share of a head crop's side that the face may take so that somebody else is left out
TIGHTER_STEPS = 3
FULL = 0.85  # a bucket of less than this share of the square's area would waste what the model can see
WHOLE = 0.95  # share of the region that a size may keep without counting as trimmed
LANCZOS_RADIUS = 3  # px of the crop, or of the photo where it is enlarged
REDUCING_GAP = 1.4  # least px of the reduced region for one of the crop; see PIL.Image.Image.resize
HOLDOUT_PX = 1024  # of the longer side: more than any face engine looks at


class CropParams(Section):
    """Sizes and framing of crops."""

    side_px: Annotated[int, Field(ge=64)]
    """Px; a bucket has at most the area of this square."""
    step_px: Annotated[int, Field(ge=8)]
    """Px; sides of buckets are multiples of it (Z-Image needs 16)."""
    max_aspect: Annotated[float, Field(ge=1, le=4)]
    """Longest bucket, long side over short side; 1 makes squares only."""
    max_upscale: Annotated[float, Field(ge=1)]
    """Most px of a crop for one px of the photo; what would need more gets a smaller bucket."""
    head_face_share: Annotated[float, Field(gt=0.1, lt=0.9)]
    """Side of the face over the side of a head-and-shoulders crop."""
    head_below_share: Annotated[float, Field(ge=0, le=1)]
    """A head crop is made where the face's share of the original framing is below this."""
    min_face_px: Annotated[int, Field(ge=8)]
    """Px; the original framing is used only where the face keeps this size in its bucket."""


@dataclass(frozen=True)
class Region:
    """A part of a photo, in px; always within the photo."""

    left: float
    top: float
    width: float
    height: float

    @property
    def box_xyxy(self) -> Box:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


@dataclass(frozen=True)
class Plan:
    """A planned crop: its region of the photo, and its size in px."""

    kind: Kind
    region: Region
    width: int
    height: int

    @property
    def scale(self) -> float:
        """Px of the crop for one px of the photo."""
        return self.width / self.region.width

    def carried(self, xy: Points) -> Points:
        """Return points of the photo (..., 2) in px of the crop."""
        scale = np.array([self.width / self.region.width, self.height / self.region.height], np.float32)
        return np.asarray((xy - np.array([self.region.left, self.region.top], np.float32)) * scale, np.float32)


def buckets(params: CropParams) -> list[tuple[int, int]]:
    """Return the sizes crops may have, (width, height): of at most the square's area, within the aspect allowed."""
    step, sizes = params.step_px, set()
    largest = params.side_px // step * step
    for short in range(step, largest + 1, step):
        long = int(min(params.side_px**2 // short, short * params.max_aspect)) // step * step
        if long > short and long * short > params.side_px**2 * FULL:
            sizes |= {(short, long), (long, short)}
    return sorted(sizes | {(largest, largest)})


def plans(size: tuple[int, int], face: Box, others: list[Box], kind: PointsKind, params: CropParams) -> list[Plan]:
    """Return the crops to make of a photo for training; none where the subject cannot be shown alone.

    Args:
        size: Width and height of the photo.
        face: The subject's box.
        others: Boxes of the other faces.
        kind: Which engine's boxes and points these are.
        params: Sizes and framing of crops.
    """
    side = side_of(face)
    full = _sized("full", full_region(size, face, kind, params), params)
    head = _sized("head", _head_alone(size, face, others, kind, params.head_face_share), params)
    full_good = is_alone(full.region, face, others, kind) and side * full.scale >= params.min_face_px
    head_wanted = not full_good or _share(full.region, side) < params.head_below_share
    made = [full] if full_good else []
    if head_wanted and is_alone(head.region, face, others, kind):
        made.append(head)
    return made


def head_plan(size: tuple[int, int], face: Box, kind: PointsKind, params: CropParams) -> Plan:
    """Return the head-and-shoulders crop of a face."""
    return _sized("head", head_region(size, face, kind, params.head_face_share), params)


def holdout_plan(size: tuple[int, int], face: Box, others: list[Box], kind: PointsKind, params: CropParams) -> Plan:
    """Return the crop to score against: the head, or the original framing, with all the pixels the photo has."""
    region = _head_alone(size, face, others, kind, params.head_face_share)
    of: Kind = "head" if is_alone(region, face, others, kind) else "full"
    if of == "full":
        region = full_region(size, face, kind, params)
    scale = min(1.0, HOLDOUT_PX / max(region.width, region.height))
    return Plan(of, region, max(1, round(region.width * scale)), max(1, round(region.height * scale)))


def full_region(size: tuple[int, int], face: Box, kind: PointsKind, params: CropParams) -> Region:
    """Return the largest part of the photo with the aspect of the nearest bucket, moved so that the head is in it."""
    width, height = size
    bucket = min(buckets(params), key=lambda one: abs(math.log(one[0] / one[1]) - math.log(width / height)))
    aspect = bucket[0] / bucket[1]
    part = (width, width / aspect) if width / height < aspect else (height * aspect, height)
    left, top, right, bottom = head_box(face, kind)
    x = _slid((width - part[0]) / 2, part[0], width, (left, right))
    y = _slid((height - part[1]) / 2, part[1], height, (top, bottom))
    return Region(x, y, *part)


def head_region(size: tuple[int, int], face: Box, kind: PointsKind, face_share: float) -> Region:
    """Return the square around a head in which the face has `face_share` of the side, if the photo is large enough."""
    side = min(side_of(face) / face_share, *size)
    left, top, right, bottom = head_box(face, kind)
    spare = max(side - (bottom - top), 0)
    x, y = (left + right) / 2 - side / 2, top - ABOVE * spare
    return Region(float(np.clip(x, 0, size[0] - side)), float(np.clip(y, 0, size[1] - side)), side, side)


def _head_alone(size: tuple[int, int], face: Box, others: list[Box], kind: PointsKind, face_share: float) -> Region:
    """Return the square around a head, a little tighter where that leaves others out."""
    shares = (face_share + step / TIGHTER_STEPS * max(TIGHTEST - face_share, 0) for step in range(TIGHTER_STEPS + 1))
    regions = [head_region(size, face, kind, share) for share in shares]
    return next((region for region in regions if is_alone(region, face, others, kind)), regions[0])


def head_box(face: Box, kind: PointsKind) -> Box:
    """Return the box of the whole head, with hair, of a face's box."""
    beside, above, below = (reach * side_of(face) for reach in HEAD[kind])
    x, y = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
    return x - beside, y - above, x + beside, y + below


def is_alone(region: Region, face: Box, others: list[Box], kind: PointsKind) -> bool:
    """Return whether nobody else is in the region: no other face of a tenth of its size, and no large part of one."""
    for other in others:
        if _overlap(other, region.box_xyxy) >= STRANGER * side_of(face) ** 2:
            return False
        head = head_box(other, kind)
        if (
            side_of(other) >= STRANGERS_SIDE * side_of(face)
            and _overlap(head, region.box_xyxy) >= STRANGERS_HEAD * side_of(head) ** 2
        ):
            return False
    return True


def cut(image_rgb: Picture, plan: Plan) -> Picture:
    """Return the crop, (plan.height, plan.width, 3).

    What is brought down to less than about a third is halved on the way, so that Lanczos' filter, which takes most of
    the time, reads a quarter of the pixels: the crops of a 12-MP photo differ by 51 dB (peak signal to noise).
    """
    left, top, right, bottom = plan.region.box_xyxy
    margin = math.ceil(LANCZOS_RADIUS * max(1.0, 1 / plan.scale)) + 1  # px around the region that the filter reads
    x, y = max(math.floor(left) - margin, 0), max(math.floor(top) - margin, 0)
    part = Image.fromarray(image_rgb[y : math.ceil(bottom) + margin, x : math.ceil(right) + margin])
    box, size = (left - x, top - y, right - x, bottom - y), (plan.width, plan.height)
    return np.asarray(part.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP), np.uint8)


def side_of(box: Box) -> float:
    """Return the square root of a box's area."""
    return math.sqrt(max(box[2] - box[0], 0) * max(box[3] - box[1], 0))


def _sized(kind: Kind, region: Region, params: CropParams) -> Plan:
    """Return the plan with the largest size that needs no more enlargement than allowed.

    Where no bucket is small enough, a smaller size of nearly the region's aspect is taken; what the aspect changes is
    trimmed from the region.
    """
    fitting = [
        plan
        for size in _sizes_near(region, params)
        if (plan := _trimmed(kind, region, size)).scale <= params.max_upscale
    ]
    whole = [plan for plan in fitting if _kept(plan, region) >= WHOLE] or fitting
    smallest = _trimmed(kind, region, (params.step_px, params.step_px))
    return max(whole, key=lambda plan: (plan.width * plan.height, _kept(plan, region)), default=smallest)


def _sizes_near(region: Region, params: CropParams) -> Iterator[tuple[int, int]]:
    step, aspect = params.step_px, region.width / region.height
    for width in range(step, int(params.side_px * math.sqrt(params.max_aspect)) + step, step):
        for height in {math.floor(width / aspect / step) * step, math.ceil(width / aspect / step) * step}:
            in_area = 0 < width * height <= params.side_px**2
            if in_area and max(width, height) <= params.max_aspect * min(width, height):
                yield width, height


def _kept(plan: Plan, region: Region) -> float:
    return plan.region.width * plan.region.height / (region.width * region.height)


def _trimmed(kind: Kind, region: Region, size: tuple[int, int]) -> Plan:
    """Return the middle of a region with exactly the aspect of its size, so that no face is stretched."""
    aspect = size[0] / size[1]
    width, height = min(region.width, region.height * aspect), min(region.height, region.width / aspect)
    left, top = region.left + (region.width - width) / 2, region.top + (region.height - height) / 2
    return Plan(kind, Region(left, top, width, height), *size)


def _share(region: Region, side: float) -> float:
    return side / math.sqrt(region.width * region.height)


def _slid(start: float, length: float, available: float, inside: tuple[float, float]) -> float:
    """Return where a stretch of `length` begins: at `start`, moved as little as possible to hold `inside`."""
    start = min(start, inside[0])
    start = max(start, inside[1] - length)
    return float(np.clip(start, 0, available - length))


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)
