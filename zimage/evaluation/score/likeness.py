"""Measure by one face engine how similar a picture is to the person."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zimage.core.errors import InputError
from zimage.faces.engine import EngineInfo, Face, between, closeness

logger = logging.getLogger(__name__)

Embeddings = NDArray[np.float32]  # (N, D)


@dataclass(frozen=True)
class Targets:
    """The real photos that pictures are held against.

    Args:
        info: The engine of all embeddings.
        holdout: Held-out photos, (H, D): the person's face as training never saw it.
        training: Training photos at the size of the generated pictures, (T, D): the ceiling, and what may be copied.
            (0, D) where it is not known what was trained on.
        holdout_photos: The photo behind each row of `holdout`.
        training_photos: The photo behind each row of `training`.
    """

    info: EngineInfo
    holdout: Embeddings
    training: Embeddings
    holdout_photos: Sequence[str]
    training_photos: Sequence[str]

    @property
    def centroid(self) -> Embeddings:
        """The mean of the held-out embeddings, (1, D); under cosine each counts by its direction alone."""
        return _centroid(self.holdout, self.info)

    def ceiling(self) -> NDArray[np.float32]:
        """Return the distance of each training photo to the held-out centroid: how a perfect likeness would score."""
        return between(self.training, self.centroid, self.info.metric)[:, 0]

    def genuine(self) -> NDArray[np.float32]:
        """Return the distance of each held-out photo to the centroid of the others; empty where there is only one."""
        rest = [np.delete(self.holdout, index, axis=0) for index in range(len(self.holdout))]
        if len(self.holdout) < 2:
            return np.zeros(0, np.float32)
        pairs = zip(self.holdout, rest, strict=True)
        return np.array(
            [between(one[None], _centroid(others, self.info), self.info.metric)[0, 0] for one, others in pairs]
        )


@dataclass(frozen=True)
class Likeness:
    """The faces of one picture against the targets; see zimage.evaluation.rows.Scored."""

    face: Face | None
    faces: int
    distance: float | None
    median_distance: float | None
    same: bool
    closeness: float
    matching_faces: int
    nearest_photo: str | None
    nearest_distance: float | None
    training_distance: float | None


NOBODY = Likeness(None, 0, None, None, False, 0.0, 0, None, None, None)


def targets_of(
    info: EngineInfo, holdout: Sequence[tuple[str, Sequence[Face]]], training: Sequence[tuple[str, Sequence[Face]]]
) -> Targets:
    """Return the targets made of photos, each with its name and the faces in it, largest first.

    A photo without a face is left out; detection had found one in it at full size.

    Raises:
        InputError: there is no face in any held-out photo, or in none of the training photos that were given.
    """
    held = [(photo, faces[0].embedding) for photo, faces in holdout if faces]
    found = [(photo, faces[0].embedding) for photo, faces in training if faces]
    if not held or (training and not found):
        lacking = "held-out" if not held else "training"
        raise InputError(
            f"{info.engine_id} finds no face in any {lacking} photo, so nothing can be scored; "
            "look at the contact sheet of detect, and use the same engine there and in evaluate."
        )
    logger.info("%s: %d held-out and %d training photos with a face", info.engine_id, len(held), len(found))
    return Targets(
        info,
        holdout=np.stack([embedding for _, embedding in held]),
        training=np.array([embedding for _, embedding in found], np.float32).reshape(-1, len(held[0][1])),
        holdout_photos=[photo for photo, _ in held],
        training_photos=[photo for photo, _ in found],
    )


def likeness(faces: Sequence[Face], targets: Targets) -> Likeness:
    """Return how the faces of one picture (largest first) score; none at all is a failure, not a gap."""
    if not faces:
        return NOBODY
    info = targets.info
    embeddings = np.stack([face.embedding for face in faces])
    distances = between(embeddings, targets.centroid, info.metric)[:, 0]
    nearest_photo, nearest_distance = _nearest(embeddings[:1], targets)
    return Likeness(
        face=faces[0],
        faces=len(faces),
        distance=float(distances[0]),
        median_distance=float(np.median(between(embeddings[:1], targets.holdout, info.metric))),
        same=bool(distances[0] <= info.threshold),
        closeness=closeness(float(distances[0]), info.threshold),
        matching_faces=int((distances <= info.threshold).sum()),
        nearest_photo=nearest_photo,
        nearest_distance=nearest_distance,
        training_distance=_training_distance(embeddings[:1], targets),
    )


def rank_among(found: Likeness, gallery: Embeddings | None, info: EngineInfo) -> int | None:
    """Return the person's rank among other people, nearest first: 1 where none of them is nearer to the picture's face,
    the last without a face, None without other people.

    The person stands there with the median distance of the held-out photos, single photos like those of the others. The
    centroid is nearer to every face than a single photo is, which would flatter.

    Args:
        found: The largest face.
        gallery: Of the others, (N, D); None for none.
        info: The engine.
    """
    if gallery is None or not len(gallery):
        return None
    if found.face is None:
        return len(gallery) + 1
    others = between(found.face.embedding[None], gallery, info.metric)[0]
    return 1 + int((others < found.median_distance).sum())


def _nearest(embedding: Embeddings, targets: Targets) -> tuple[str | None, float | None]:
    """Return the nearest training photo and its distance; None where no training photo is known."""
    if not len(targets.training):
        return None, None
    distances = between(embedding, targets.training, targets.info.metric)[0]
    nearest = int(distances.argmin())
    return targets.training_photos[nearest], float(distances[nearest])


def _training_distance(embedding: Embeddings, targets: Targets) -> float | None:
    """Return the distance to the middle of the training photos; None where no training photo is known."""
    if not len(targets.training):
        return None
    return float(between(embedding, _centroid(targets.training, targets.info), targets.info.metric)[0, 0])


def _centroid(embeddings: Embeddings, info: EngineInfo) -> Embeddings:
    if info.metric == "cosine":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings.mean(axis=0, keepdims=True), np.float32)
