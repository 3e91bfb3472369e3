"""Find the subject's face among all faces of the album, with a confidence for each photo."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zimage.core.section import Section
from zimage.faces.engine import EngineInfo, Metric, between

Embeddings = NDArray[np.float32]  # (N, D)

# A face this much larger than the next one is whom the photo is of (FaceChain keeps photos from 4 times the area).
DOMINANT = 2.0  # in side, so 4 in area
# Faces of at least half the side of a photo's largest face, and at most three, are whom it may be of.
PROMINENT, MOST_PROMINENT = 0.5, 3
# A second person in at least half as many photos as the first, or in a quarter as many without the first (and in three
# at least): a careful human would ask. Of who is in three photos and a tenth of all, the result says so.
RIVAL, RIVAL_WITHOUT, RIVAL_PHOTOS, SAID = 0.5, 0.25, 3, 0.1
TRIMMED = 0.2  # share of the faces farthest from the middle that the centroid leaves out


class SubjectParams(Section):
    """How certain it must be that a face is the subject's."""

    doubtful_from: Annotated[float, Field(ge=0, le=1)]
    """Share of the engine's threshold; a face that lies farther from the subject's centroid goes to review."""
    reference: list[str] = Field(default_factory=list)
    """Photos of the album that show the subject, by name or by code; empty where most photos decide."""


@dataclass(frozen=True)
class Cluster:
    """Faces of one person, as indices into the clustered list, nearest to the centroid first."""

    members: list[int]


@dataclass(frozen=True, eq=False)
class PhotoFaces:
    """The faces of one photo, largest first.

    Args:
        sides_px: Of their boxes.
        embeddings: (N, D).
    """

    sides_px: list[float]
    embeddings: Embeddings


@dataclass(frozen=True, eq=False)
class Person:
    """A person whom the album may be of.

    Args:
        faces: Place of the photo and of the face in it, nearest to the middle of all these faces first.
        without_first: In how many photos the person is without the one who is in most of them.
        centroid: (1, D).
    """

    faces: list[tuple[int, int]]
    without_first: int
    centroid: Embeddings

    @property
    def photos(self) -> int:
        """In how many photos the person is."""
        return len({photo for photo, _ in self.faces})


@dataclass(frozen=True)
class Match:
    """How far each face of a photo lies from the subject's centroid, and which lies nearest."""

    distances: list[float]
    face: int

    @property
    def distance(self) -> float:
        """Of the nearest face."""
        return self.distances[self.face]

    @property
    def next_distance(self) -> float | None:
        """Of the next face; None where there is one only."""
        return min((d for i, d in enumerate(self.distances) if i != self.face), default=None)


def is_dominant(sides_px: list[float]) -> bool:
    """Return whether the largest of a photo's faces (largest first) is clearly its subject."""
    return len(sides_px) == 1 or (len(sides_px) > 1 and sides_px[0] >= DOMINANT * sides_px[1])


def clusters(embeddings: Embeddings, info: EngineInfo) -> list[Cluster]:
    """Return the people among faces, by average linkage cut at the engine's threshold; the most frequent first."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(embeddings) == 1:
        return [Cluster([0])]
    distances = between(embeddings, embeddings, info.metric).astype(np.float64)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform((distances + distances.T) / 2, checks=False), method="average")
    labels = fcluster(tree, t=info.threshold, criterion="distance")
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    ordered = sorted(groups, key=lambda group: (-len(group), int(group[0])))
    return [Cluster([int(i) for i in _nearest_first(embeddings, group, info.metric)]) for group in ordered]


def people_in(album: Sequence[PhotoFaces], info: EngineInfo) -> list[Person]:
    """Return the people in an album, the subject of most photos first, then by frequency.

    Args:
        album: All photos with a face.
        info: The engine that found the faces.
    """
    places = [
        (photo, face)
        for photo, one in enumerate(album)
        for face, side_px in enumerate(one.sides_px[:MOST_PROMINENT])
        if side_px >= PROMINENT * one.sides_px[0]
    ]
    if not places:
        return []
    embeddings = np.stack([album[photo].embeddings[face] for photo, face in places])
    dominant = {photo for photo, one in enumerate(album) if is_dominant(one.sides_px)}
    groups = [[places[i] for i in cluster.members] for cluster in clusters(embeddings, info)]

    def is_of(faces: list[tuple[int, int]]) -> tuple[int, int]:
        return len({photo for photo, face in faces if face == 0 and photo in dominant}), len(_photos(faces))

    groups.sort(key=is_of, reverse=True)
    middles = [
        centroid(np.stack([album[photo].embeddings[face] for photo, face in faces]), info.metric) for faces in groups
    ]
    near = [
        0,
        *(i for i in range(1, len(groups)) if between(middles[i], middles[0], info.metric)[0, 0] <= info.threshold),
    ]
    first = [face for i in near for face in groups[i]]  # who looks unlike otherwise is still one person
    others = [
        Person(faces, len(_photos(faces) - _photos(first)), middle)
        for i, (faces, middle) in enumerate(zip(groups, middles, strict=True))
        if i not in near
    ]
    return [Person(first, 0, middles[0]), *sorted(others, key=lambda one: -one.photos)]


def rival(people: Sequence[Person]) -> Person | None:
    """Return a second person who is too frequent to assume that the first is meant; None if there is none."""
    for other in people[1:]:
        often = other.photos >= RIVAL * people[0].photos
        apart = other.without_first >= max(RIVAL_PHOTOS, RIVAL_WITHOUT * people[0].photos)
        if often or apart:
            return other
    return None


def noteworthy(people: Sequence[Person], photos: int) -> list[Person]:
    """Return the first person, and those others who are in a substantial part of an album of so many photos."""
    return [
        one
        for number, one in enumerate(people)
        if number == 0 or one.photos >= max(RIVAL_PHOTOS, SAID * photos) or one is rival(people)
    ]


def _photos(faces: Sequence[tuple[int, int]]) -> set[int]:
    return {photo for photo, _ in faces}


def centroid(embeddings: Embeddings, metric: Metric) -> NDArray[np.float32]:
    """Return the trimmed mean of one person's embeddings, (1, D), without the farthest fifth."""
    if metric == "cosine":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = _nearest_first(embeddings, np.arange(len(embeddings)), metric)
    kept = nearest[: max(1, round(len(nearest) * (1 - TRIMMED)))]
    return np.asarray(embeddings[kept].mean(0, keepdims=True), np.float32)


def match(embeddings: Embeddings, subject: NDArray[np.float32], metric: Metric) -> Match:
    """Return the distances of the faces of one photo (N, D) to the subject's centroid (1, D)."""
    distances = between(embeddings, subject, metric)[:, 0]
    return Match([float(distance) for distance in distances], int(distances.argmin()))


def _nearest_first(embeddings: Embeddings, group: NDArray[np.int64], metric: Metric) -> NDArray[np.int64]:
    middle = np.median(embeddings[group], axis=0, keepdims=True).astype(np.float32)
    distances = between(embeddings[group], middle, metric)[:, 0]
    return np.asarray(group[np.argsort(distances, kind="stable")], np.int64)
