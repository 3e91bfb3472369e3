"""Real pictures to be judged: views of one portrait in the public domain, other people, a warped face, nobody."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from zimage.captions.measure import measure
from zimage.core.jsonl import write_rows
from zimage.demo import other_people
from zimage.faces.engine import Engine, EngineParams
from zimage.photos.pictures import write_png
from zimage.photos.rows import CropRow

Picture = NDArray[np.uint8]

DLIB = EngineParams(name="dlib", pack=None, identity=None, min_score=0.0, max_distance=0.6)
SIDE_PX = 256
FACE_XY, FACE_PX = (223.0, 127.0), 88.0  # of skimage.data.astronaut(), by dlib


def views(count: int, seed: int) -> list[Picture]:
    """Return views of the portrait: turned, shifted, nearer or farther, in other light, with a camera's noise."""
    rng = np.random.default_rng(seed)
    return [_view(rng) for _ in range(count)]


def others() -> list[Picture]:
    """Return six other people, one picture each."""
    group = other_people()
    faces = [(515, 362), (118, 336), (786, 418), (1166, 336), (936, 141), (319, 223)]  # by dlib
    half = 105
    crops = [group[max(0, y - half) : y + half, max(0, x - half) : x + half] for x, y in faces]
    return [np.asarray(cv2.resize(crop, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8) for crop in crops]


def of_another(count: int, seed: int) -> list[Picture]:
    """Return views of one and the same other person: what another subject's LoRA draws."""
    person, rng = others()[1], np.random.default_rng(seed)
    made = []
    for _ in range(count):
        matrix = cv2.getRotationMatrix2D((SIDE_PX / 2, SIDE_PX / 2), rng.uniform(-8, 8), rng.uniform(0.95, 1.15))
        view = cv2.warpAffine(person, matrix, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        light = view.astype(np.float32) * rng.uniform(0.8, 1.1) + rng.normal(0, 4, view.shape)
        made.append(np.clip(light, 0, 255).astype(np.uint8))
    return made


def nobody() -> list[Picture]:
    """Return photos without a human face."""
    shots = (skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket())
    return [np.asarray(cv2.resize(shot, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8) for shot in shots]


def noise(count: int, seed: int) -> list[Picture]:
    """Return pictures of pure noise."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8) for _ in range(count)]


def twin(amount: float) -> Picture:
    """Return the portrait with eyes and mouth drawn apart by up to `amount` of half the face's width: a look-alike."""
    portrait = skimage.data.astronaut()[:SIDE_PX, 96 : 96 + SIDE_PX]
    (cx, cy), half = (FACE_XY[0] - 96, FACE_XY[1]), FACE_PX / 2
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX].astype(np.float32)
    u, v = (x - cx) / half, (y - cy) / half
    shift = -amount * np.sin(np.clip(v, -1, 1) * np.pi) * np.exp(-(u * u + v * v) / 1.2)
    return np.asarray(cv2.remap(portrait, x, (y + shift * half).astype(np.float32), cv2.INTER_CUBIC), np.uint8)


@dataclass(frozen=True)
class Frontal:
    """A picture of a head seen from the front.

    Args:
        picture: (SIDE_PX, SIDE_PX, 3).
        middle_xy: Between the eyes across, at the tip of the nose down, px.
        nose_x: Of the tip of the nose, px.
        eyes_px: Distance of the eyes.
    """

    picture: Picture
    middle_xy: tuple[float, float]
    nose_x: float
    eyes_px: float


def turned(deg: float) -> Picture:
    """Return the portrait as if the head had turned by `deg`, positive where its nose goes to the picture's right."""
    portrait = skimage.data.astronaut()[:SIDE_PX, 96 : 96 + SIDE_PX]
    return turned_head(Frontal(portrait, (127.6, 124.7), 124.2, 47.0), deg)


def turned_head(of: Frontal, deg: float) -> Picture:
    """Return a picture as if the head had turned by `deg`, positive where its nose goes to the picture's right.

    Its pixels are carried by a model of a head, an ellipsoid with a nose, so the turn is known, and what is on it
    is the photograph; the background is blurred.
    """
    (cx, cy), nose_x, eyes, picture = of.middle_xy, of.nose_x, of.eyes_px, of.picture
    half, angle = 1.15 * eyes, np.radians(deg)
    y, x = np.mgrid[0:SIDE_PX, 0:SIDE_PX].astype(np.float32)
    source = x.copy()
    for _ in range(40):  # the pixel that the turn carries to x
        head = half * np.sqrt(np.maximum(1 - ((source - cx) / half) ** 2 - ((y - cy) / (1.5 * half)) ** 2, 0))
        nose = 0.35 * eyes * np.exp(-(((source - nose_x) / (0.22 * eyes)) ** 2) - ((y - cy) / (0.35 * eyes)) ** 2)
        from_x = (x - cx - (head + nose) * np.sin(angle)) / np.cos(angle) + cx
        source = np.clip((source + from_x) / 2, cx - half, cx + half)
    view = np.asarray(cv2.remap(picture, source.astype(np.float32), y, cv2.INTER_LINEAR), np.uint8)
    beside = np.abs(source - cx) >= 0.995 * half
    view[beside] = cv2.GaussianBlur(picture, (0, 0), 12)[beside]
    return view


def small(pictures: Sequence[Picture], side_px: int = 128) -> list[Picture]:
    """Return pictures at the size at which the demo generates."""
    return [np.asarray(cv2.resize(one, (side_px, side_px), interpolation=cv2.INTER_AREA), np.uint8) for one in pictures]


def write_detect(folder: Path, engine: Engine, *, training: Sequence[Picture], holdout: Sequence[Picture]) -> Path:
    """Write a folder as the detect stage leaves it, with one crop of each photo."""
    rows = []
    for split, pictures in (("train", training), ("holdout", holdout)):
        (folder / split).mkdir(parents=True)
        for number, picture in enumerate(pictures):
            photo = f"{split}{number:02d}"
            file = f"{split}/{photo}-full.png" if split == "train" else f"{split}/{photo}.png"
            write_png(folder / file, picture)
            rows.append(_crop(file, photo, split, picture, engine))
    write_rows(folder / "crops.jsonl", rows)
    return folder


def _crop(file: str, photo: str, split: str, picture: Picture, engine: Engine) -> CropRow:
    (face, *_) = engine.find(picture)
    measured = measure(picture, face.box_xyxy, yaw_deg=face.yaw_deg, roll_deg=face.roll_deg)
    return CropRow(
        file=file,
        photo=photo,
        split=split,  # type: ignore[arg-type]
        kind="full",
        width=picture.shape[1],
        height=picture.shape[0],
        scale=1.0,
        face_box_xyxy=face.box_xyxy,
        points_xy=[(float(x), float(y)) for x, y in face.points_xy],
        mask=None,
        yaw_deg=face.yaw_deg,
        roll_deg=face.roll_deg,
        sharpness=40.0,
        face_luma=measured.face_luma,
        chroma=measured.chroma,
        warmth=measured.warmth,
        background_rgb=measured.background_rgb or (0, 0, 0),
        burst=0,
    )


def _view(rng: np.random.Generator) -> Picture:
    portrait = skimage.data.astronaut()
    centre = (FACE_XY[0] + rng.normal(0, 6), FACE_XY[1] + rng.normal(0, 6))
    matrix = cv2.getRotationMatrix2D(centre, rng.uniform(-10, 10), SIDE_PX / rng.uniform(170, 240))
    matrix[:, 2] += np.array([SIDE_PX / 2 - centre[0], SIDE_PX / 2 - centre[1]])
    view = cv2.warpAffine(portrait, matrix, (SIDE_PX, SIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    light = view.astype(np.float32) * rng.uniform(0.75, 1.15) + rng.normal(0, 5, view.shape)
    return np.clip(light, 0, 255).astype(np.uint8)
