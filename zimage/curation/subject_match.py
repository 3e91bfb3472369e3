"""Find the subject's face among all faces of the album, with a confidence for each photo."""

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
# A second person in at least half as many photos as the first: a careful human would ask.
RIVAL = 0.5
TRIMMED = 0.2  # share of the faces farthest from the middle that the centroid leaves out


class SubjectParams(Section):
    """How sure it must be that a face is the subject's."""

    doubtful_from: Annotated[float, Field(ge=0, le=1)]
    """Share of the engine's threshold; a face that lies farther from the subject's centroid goes to review."""


@dataclass(frozen=True)
class Cluster:
    """Faces of one person: places in the list that was clustered, nearest to their middle first."""

    members: list[int]


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
    """Return whether the largest of a photo's faces (largest first) is whom the photo is of."""
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


def rivals(people: list[Cluster]) -> bool:
    """Return whether the second person is so frequent that choosing the first would be a guess."""
    return len(people) > 1 and len(people[1].members) >= RIVAL * len(people[0].members)


def centroid(embeddings: Embeddings, metric: Metric) -> NDArray[np.float32]:
    """Return the middle of one person's faces, (1, D), without the fifth that lies farthest out."""
    if metric == "cosine":
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    nearest = _nearest_first(embeddings, np.arange(len(embeddings)), metric)
    kept = nearest[: max(1, round(len(nearest) * (1 - TRIMMED)))]
    return np.asarray(embeddings[kept].mean(0, keepdims=True), np.float32)


def match(embeddings: Embeddings, subject: NDArray[np.float32], metric: Metric) -> Match:
    """Return what the subject's centroid (1, D) says of the faces of one photo (N, D)."""
    distances = between(embeddings, subject, metric)[:, 0]
    return Match([float(distance) for distance in distances], int(distances.argmin()))


def _nearest_first(embeddings: Embeddings, group: NDArray[np.int64], metric: Metric) -> NDArray[np.int64]:
    middle = np.median(embeddings[group], axis=0, keepdims=True).astype(np.float32)
    distances = between(embeddings[group], middle, metric)[:, 0]
    return np.asarray(group[np.argsort(distances, kind="stable")], np.int64)
