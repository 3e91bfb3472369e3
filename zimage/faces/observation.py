"""Measure one photo once, and cache what was measured."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zimage.core.jsonl import Row
from zimage.faces.covering import Covering
from zimage.faces.engine import Attempt, Engine, EngineParams, Face, open_engine
from zimage.faces.landmarks import Points
from zimage.faces.quality import Look, chroma, dhash, frame, look
from zimage.photos.cache import Cache, filled
from zimage.photos.clean import decode_clean
from zimage.photos.pictures import Mask, Picture, fitted, fitted_size, jpeg
from zimage.photos.rows import Box, PhotoRow

FACES, FACTS, THUMBNAIL = "faces.npz", "facts.json", "thumbnail.jpg"
THUMBNAIL_PX, THUMBNAIL_QUALITY = 320, 78
# A face that leans farther is turned. So is one with a lower score than CERTAIN_SCORE, if turning raises that clearly,
# and to that: YuNet finds faces on the side or upside down too, with points as if they were upright, but at 0.84
# to 0.88 instead of 0.92 and more.
LEANING_DEG, CERTAIN_SCORE, CLEARLY = 60.0, 0.9, 0.05
TRIED_PX = 640  # long side of the copy on which turning is tried


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
    visible: float
    covering: Covering | None = None

    @property
    def side_px(self) -> float:
        """The square root of the box's area."""
        left, top, right, bottom = self.box_xyxy
        return float((max(right - left, 0) * max(bottom - top, 0)) ** 0.5)


@dataclass(frozen=True, eq=False)
class ObservedFace:
    """One face in one photo: its numbers, five points (5, 2) in px, embedding (D,), and the file of its texture."""

    measured: Measured
    points_xy: Points
    embedding: NDArray[np.float32]
    file: Path
    number: int

    @property
    def texture(self) -> Mask:
        """See zimage.faces.quality.Look; read from disk each time, because all textures together would fill memory."""
        with np.load(self.file) as arrays:
            texture: Mask = arrays["textures"][self.number]
        return texture


@dataclass(frozen=True, eq=False)
class Observation:
    """One photo and the faces in it, largest first.

    Args:
        width, height: In px.
        dhash: See zimage.faces.quality.dhash.
        chroma: See zimage.faces.quality.chroma; of the whole photo.
        turns: Quarter turns, against the clock, that bring the photo upright; width, height and faces are of it turned.
        frame: See zimage.faces.quality.frame.
        faces: What was found.
        entry: The cache folder it was read from; its name is a hash of the photo's content and the settings.
    """

    width: int
    height: int
    dhash: int
    chroma: float
    turns: int
    frame: float
    faces: list[ObservedFace]
    entry: Path

    @property
    def thumbnail(self) -> Path:
        """A small JPEG of the photo, for the contact sheet."""
        return self.entry / THUMBNAIL

    @property
    def size_of_thumbnail(self) -> tuple[int, int]:
        """Its width and height in px."""
        return fitted_size(self.width, self.height, THUMBNAIL_PX)


class _Facts(Row):
    width: int
    height: int
    dhash: int
    chroma: float
    turns: int
    frame: float
    faces: list[Measured]


@dataclass(frozen=True)
class Observer:
    """The work of one process that detects faces.

    Args:
        params: The engine; it is opened for the first photo that is not in the cache.
        folder: The folder of ingest.
        cache, salt: The cache of observations, keyed by the content of the pictures (see zimage.photos.cache).
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
        assert row.file is not None and row.width is not None and row.height is not None
        picture, long_px = self.folder / row.file, max(row.width, row.height)
        content = picture.read_bytes()
        key = f"{hashlib.sha256(content).hexdigest()} {long_px}"
        entry = Cache(self.cache, self.salt).entry(key)
        return filled(entry, lambda folder: self._look(decode_clean(picture.suffix, content, long_px), folder))

    def _look(self, image_rgb: Picture, folder: Path) -> None:
        faces, turns = found_upright(self.engine, image_rgb)
        image_rgb = np.ascontiguousarray(np.rot90(image_rgb, turns))
        looks = [look(image_rgb, face.points_xy, self.engine.info.points_kind) for face in faces]
        measured = [_measured(face, each) for face, each in zip(faces, looks, strict=True)]
        height, width = image_rgb.shape[:2]
        small = fitted(image_rgb, THUMBNAIL_PX)
        facts = _Facts(
            width=width,
            height=height,
            dhash=dhash(small),
            chroma=chroma(small),
            turns=turns,
            frame=frame(image_rgb),
            faces=measured,
        )
        (folder / THUMBNAIL).write_bytes(jpeg(small, THUMBNAIL_QUALITY))
        (folder / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")
        if faces:
            np.savez(
                folder / FACES,
                points=np.stack([face.points_xy for face in faces]),
                embeddings=np.stack([face.embedding for face in faces]),
                textures=np.stack([each.texture for each in looks]),
            )


def found_upright(engine: Engine, image_rgb: Picture) -> tuple[list[Face], int]:
    """Return the faces in a picture, and by how many quarter turns, against the clock, it had to be turned for them.

    Scans, and what messengers send, may lie on the side or upside down and have no EXIF that says so. A picture is
    turned only where the largest face as it is leans over or is uncertain, or where there is none; whether that helps
    is tried on a small copy.
    """
    faces = engine.find(image_rgb)
    if faces and abs(faces[0].roll_deg or 0.0) <= LEANING_DEG and faces[0].score >= CERTAIN_SCORE:
        return faces, 0
    small = fitted(image_rgb, TRIED_PX)
    best, turns = (faces[0].score if faces and abs(faces[0].roll_deg or 0.0) <= LEANING_DEG else 0.0), 0
    for tried in (1, 2, 3):
        found = engine.find(np.ascontiguousarray(np.rot90(small, tried)))
        upright = found and abs(found[0].roll_deg or 0.0) <= LEANING_DEG
        if upright and found[0].score >= max(CERTAIN_SCORE, best + CLEARLY):
            best, turns = found[0].score, tried
    turned = engine.find(np.ascontiguousarray(np.rot90(image_rgb, turns))) if turns else []
    return (turned, turns) if turned else (faces, 0)


def _measured(face: Face, found: Look) -> Measured:
    return Measured(
        box_xyxy=face.box_xyxy,
        score=face.score,
        yaw_deg=face.yaw_deg,
        roll_deg=face.roll_deg,
        attempt=face.attempt,
        sharpness=found.sharpness,
        luma=found.luma,
        clipped=found.clipped,
        visible=found.visible,
        covering=found.covering,
    )


def read_observation(entry: Path) -> Observation:
    """Return the observation in a cache folder."""
    facts = _Facts.model_validate_json((entry / FACTS).read_bytes())
    faces: list[ObservedFace] = []
    if facts.faces:
        with np.load(entry / FACES) as arrays:
            found = zip(facts.faces, arrays["points"], arrays["embeddings"], strict=True)
            faces = [ObservedFace(*one, entry / FACES, number) for number, one in enumerate(found)]
    return Observation(facts.width, facts.height, facts.dhash, facts.chroma, facts.turns, facts.frame, faces, entry)
