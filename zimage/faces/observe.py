"""Looking at one photo: all that is ever measured on it, kept so that it is measured once."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage.faces.cache import Cache, filled
from zimage.faces.engine import Attempt, Engine, EngineParams, Face, open_engine
from zimage.faces.pictures import Mask, Picture, fitted, jpeg, read_rgb
from zimage.faces.points import Points
from zimage.faces.quality import dhash, look
from zimage.faces.rows import Box, PhotoRow
from zimage.records import Row

FACES, FACTS, THUMBNAIL = "faces.npz", "facts.json", "thumbnail.jpg"
THUMBNAIL_PX, THUMBNAIL_QUALITY = 320, 78


class Measured(Row):
    """The numbers of one face; see zimage.faces.engine.Face and zimage.faces.quality.Look."""

    box_xyxy: Box
    score: float
    yaw_deg: float | None
    roll_deg: float | None
    attempt: Attempt
    sharpness: float
    luma: float
    clipped: float

    @property
    def side_px(self) -> float:
        """The square root of the box's area."""
        left, top, right, bottom = self.box_xyxy
        return float((max(right - left, 0) * max(bottom - top, 0)) ** 0.5)


@dataclass(frozen=True, eq=False)
class Seen:
    """One face in one photo: its numbers, five points (5, 2) in px, embedding (D,), and texture (see Look)."""

    measured: Measured
    points_xy: Points
    embedding: NDArray[np.float32]
    texture: Mask


@dataclass(frozen=True, eq=False)
class Observation:
    """One photo and the faces in it, largest first.

    Attributes:
        width, height: In px.
        dhash: See zimage.faces.quality.dhash.
        faces: What was found.
        entry: The cache folder it was read from; its name stands for the photo's content and how it was looked at.
    """

    width: int
    height: int
    dhash: int
    faces: list[Seen]
    entry: Path

    @property
    def thumbnail(self) -> Path:
        """A small JPEG of the photo, for the contact sheet."""
        return self.entry / THUMBNAIL


class _Facts(Row):
    width: int
    height: int
    dhash: int
    faces: list[Measured]


@dataclass(frozen=True)
class Observer:
    """The work of one process that looks at photos.

    Attributes:
        params: The engine, which is opened at the first photo that is not in the cache.
        folder: The folder of ingest.
        cache, salt: Where observations are kept, by the content of the pictures (see zimage.faces.cache).
    """

    params: EngineParams
    folder: Path
    cache: Path
    salt: str

    @cached_property
    def engine(self) -> Engine:
        """The opened engine."""
        return open_engine(self.params)

    def __call__(self, row: PhotoRow) -> Path:
        """Return the cache folder that holds the observation of a kept photo."""
        assert row.file is not None
        picture = self.folder / row.file
        with picture.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()
        return filled(Cache(self.cache, self.salt).entry(key), lambda folder: self._look(read_rgb(picture), folder))

    def _look(self, image_rgb: Picture, folder: Path) -> None:
        seen = [_seen(image_rgb, face, self.engine) for face in self.engine.find(image_rgb)]
        height, width = image_rgb.shape[:2]
        facts = _Facts(width=width, height=height, dhash=dhash(image_rgb), faces=[one.measured for one in seen])
        (folder / THUMBNAIL).write_bytes(jpeg(fitted(image_rgb, THUMBNAIL_PX), THUMBNAIL_QUALITY))
        (folder / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")
        if seen:
            np.savez(
                folder / FACES,
                points=np.stack([one.points_xy for one in seen]),
                embeddings=np.stack([one.embedding for one in seen]),
                textures=np.stack([one.texture for one in seen]),
            )


def _seen(image_rgb: Picture, face: Face, engine: Engine) -> Seen:
    measured = look(image_rgb, face.points_xy, engine.info.points_kind)
    numbers = Measured(
        box_xyxy=face.box_xyxy,
        score=face.score,
        yaw_deg=face.yaw_deg,
        roll_deg=face.roll_deg,
        attempt=face.attempt,
        sharpness=measured.sharpness,
        luma=measured.luma,
        clipped=measured.clipped,
    )
    return Seen(numbers, face.points_xy, face.embedding, measured.texture)


def read_observation(entry: Path) -> Observation:
    """Return the observation in a cache folder."""
    facts = _Facts.model_validate_json((entry / FACTS).read_bytes())
    faces: list[Seen] = []
    if facts.faces:
        with np.load(entry / FACES) as arrays:
            points, embeddings, textures = (arrays[name] for name in ("points", "embeddings", "textures"))
        faces = [Seen(*one) for one in zip(facts.faces, points, embeddings, textures, strict=True)]
    return Observation(facts.width, facts.height, facts.dhash, faces, entry)
