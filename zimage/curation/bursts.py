"""Group photos of one moment, thin out near duplicates, and keep each group on one side of the split."""

import itertools
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zimage.core.section import Section
from zimage.faces.engine import Metric, between

STEP = 0.02  # of quality; finer differences come from noise and recoding


class DuplicateParams(Section):
    """What counts as one moment, and as the same picture."""

    burst_gap_s: Annotated[float, Field(ge=0)]
    """In s; photos without a longer pause between them are one burst."""
    same_bits: Annotated[int, Field(ge=0, le=64)]
    """Bits of 64 in which the hashes of two equal pictures may differ."""
    same_face: Annotated[float, Field(ge=0, le=1)]
    """Share of the engine's threshold within which two equal faces lie."""


@dataclass(frozen=True, eq=False)
class Moment:
    """What tells when, and of what, a photo is.

    Args:
        photo: Its short hash.
        taken_at: In s; None where the file does not say.
        dhash: See zimage.faces.quality.dhash.
        embedding: Of the subject's face, (D,).
        quality: Higher is better.
        size_bytes: Of the file; of two equally good photos the larger file lost less.
    """

    photo: str
    taken_at: float | None
    dhash: int
    embedding: NDArray[np.float32]
    quality: float
    size_bytes: int


@dataclass(frozen=True)
class Sameness:
    """When two photos show the same: a changed expression or turn of the head is not the same.

    Args:
        bits: Most of the 64 bits of the pictures' hashes that differ.
        face: Largest distance of the faces, in `metric`.
        metric: Of the engine that found the faces.
    """

    bits: int
    face: float
    metric: Metric

    def holds(self, one: Moment, other: Moment) -> bool:
        """Return whether two photos are near duplicates."""
        if (one.dhash ^ other.dhash).bit_count() > self.bits:
            return False
        return float(between(one.embedding[None], other.embedding[None], self.metric)[0, 0]) <= self.face


def bursts(moments: list[Moment], *, gap_s: float, same_bits: int) -> list[int]:
    """Return the number of each photo's burst, counted from 0 in the order in which bursts first appear.

    A burst is what was taken without a pause of more than `gap_s`, or looks the same at any time: copies of one
    picture must not sit on both sides of a split because one of them lost its date.
    """
    parent = list(range(len(moments)))
    timed = sorted((m.taken_at, i) for i, m in enumerate(moments) if m.taken_at is not None)
    for (earlier, i), (later, j) in itertools.pairwise(timed):
        if later - earlier <= gap_s:
            _join(parent, i, j)
    for i, one in enumerate(moments):
        for j, other in enumerate(moments[:i]):
            if (one.dhash ^ other.dhash).bit_count() <= same_bits:
                _join(parent, i, j)
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parent, i), len(numbers)) for i in range(len(moments))]


def near_duplicates(moments: list[Moment], burst_of: list[int], same: Sameness) -> dict[str, str]:
    """Return, for each photo that adds nothing to a better one of its burst, the photo that stands for it."""
    best_first = sorted(range(len(moments)), key=lambda i: _rank(moments[i]))
    stands_for: dict[str, str] = {}
    kept: list[int] = []
    for i in best_first:
        twin = next((j for j in kept if burst_of[i] == burst_of[j] and same.holds(moments[i], moments[j])), None)
        if twin is None:
            kept.append(i)
        else:
            stands_for[moments[i].photo] = moments[twin].photo
    return stands_for


def _rank(moment: Moment) -> tuple[float, int, str]:
    return -round(moment.quality / STEP), -moment.size_bytes, moment.photo


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


def _join(parent: list[int], i: int, j: int) -> None:
    first, second = sorted((_root(parent, i), _root(parent, j)))
    parent[second] = first
