"""Group photos by shot and by session, and thin out near duplicates.

A shot is one press of the button with all its copies, and is never on both sides of the split. A burst is what was
taken in one go; it is on one side as long as there are photos from other occasions for the other.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from zimage.core.section import Section
from zimage.faces.engine import Metric, between

STEP = 0.02  # of quality; finer differences come from noise and recoding


class DuplicateParams(Section):
    """Limits for bursts, copies of one shot and near duplicates."""

    burst_gap_s: Annotated[float, Field(ge=0)]
    """In s; photos without a longer pause between them are one burst."""
    same_bits: Annotated[int, Field(ge=0, le=64)]
    """Bits of 64 in which the hashes of two equal pictures may differ."""
    same_face: Annotated[float, Field(ge=0, le=1)]
    """Share of the engine's threshold within which two equal faces lie."""
    same_shot: Annotated[float, Field(gt=0.8, le=1)] | None = 0.97
    """Correlation of two registered faces from which the photos are one shot; null compares whole pictures only."""


@dataclass(frozen=True, eq=False)
class Moment:
    """Capture time, hash and face of one photo, by which photos are grouped.

    Args:
        photo: Its short hash.
        taken_at: In s; None where the file does not say.
        dhash: See zimage.faces.quality.dhash.
        embedding: Of the subject's face, (D,).
        in_colour: False where the photo is black and white.
        quality: Higher is better.
        size_bytes: Of the file; of two equally good photos the larger file lost less.
    """

    photo: str
    taken_at: float | None
    dhash: int
    embedding: NDArray[np.float32]
    quality: float
    size_bytes: int
    in_colour: bool = True


@dataclass(frozen=True)
class Sameness:
    """Rule for near duplicates; another expression or turn of the head is none.

    Args:
        bits: Most of the 64 bits of the pictures' hashes that differ.
        face: Largest distance of the faces, in `metric`.
        metric: Of the engine that found the faces.
        copies: Pairs of photos, by short hash, whose faces are one shot (see zimage.curation.same_shot).
    """

    bits: int
    face: float
    metric: Metric
    copies: frozenset[frozenset[str]] = frozenset()

    def one_shot(self, moments: list[Moment]) -> list[tuple[int, int]]:
        """Return the pairs of photos, as places, that are copies of one shot or indistinguishable from that."""
        place = {moment.photo: i for i, moment in enumerate(moments)}
        copies = ((place[one], place[other]) for one, other in map(sorted, self.copies))
        return [*copies, *_alike([moment.dhash for moment in moments], self.bits)]

    def same_face(self, one: Moment, other: Moment) -> bool:
        """Return whether two photos show the face with one expression, turned alike."""
        return float(between(one.embedding[None], other.embedding[None], self.metric)[0, 0]) <= self.face


def mirrored(dhash: int) -> int:
    """Return the dhash of the mirrored picture; bits of equally bright neighbours may differ."""
    rows = ((dhash >> shift) & 0xFF for shift in range(0, 64, 8))
    return sum((int(f"{row:08b}"[::-1], 2) ^ 0xFF) << shift for row, shift in zip(rows, range(0, 64, 8), strict=True))


def _alike(hashes: list[int], bits: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of pictures whose hashes, also mirrored, differ in at most `bits`."""
    plain, flipped = (np.array(each, np.uint64) for each in (hashes, [mirrored(each) for each in hashes]))
    for i, one in enumerate(plain):
        differing = np.minimum(np.bitwise_count(plain[:i] ^ one), np.bitwise_count(flipped[:i] ^ one))
        yield from ((int(j), i) for j in np.flatnonzero(differing <= bits))


def bursts(moments: list[Moment], shot_of: list[int], *, gap_s: float) -> list[int]:
    """Return the number of each photo's burst, counted from 0 in the order in which bursts first appear.

    A burst is what was taken without a pause of more than `gap_s`, and all copies of that, whenever they were made:
    copies must not sit on both sides of a split because one of them lost its date.
    """
    timed = sorted((m.taken_at, i) for i, m in enumerate(moments) if m.taken_at is not None)
    in_one_go = ((i, j) for (earlier, i), (later, j) in itertools.pairwise(timed) if later - earlier <= gap_s)
    first = {shot: i for i, shot in reversed(list(enumerate(shot_of)))}
    return groups(len(moments), itertools.chain(in_one_go, ((first[shot], i) for i, shot in enumerate(shot_of))))


def near_duplicates(moments: list[Moment], one_shot: list[tuple[int, int]], same: Sameness) -> dict[str, str]:
    """Return, for each photo of a shot of which a better one shows the same face, that better photo.

    Args:
        moments: The photos.
        one_shot: Pairs of them that are one shot; see `Sameness.one_shot`.
        same: When two faces are the same.
    """
    copies_of: dict[int, set[int]] = {}
    for i, j in one_shot:
        copies_of.setdefault(i, set()).add(j)
        copies_of.setdefault(j, set()).add(i)
    stands_for: dict[str, str] = {}
    better: list[int] = []
    for i in sorted(range(len(moments)), key=lambda i: _rank(moments[i])):
        copies = copies_of.get(i, set())
        twin = next((j for j in better if j in copies and same.same_face(moments[i], moments[j])), None)
        if twin is None:
            better.append(i)
        else:
            stands_for[moments[i].photo] = moments[twin].photo
    return stands_for


def _rank(moment: Moment) -> tuple[bool, float, int, str]:
    return not moment.in_colour, -round(moment.quality / STEP), -moment.size_bytes, moment.photo


def groups(count: int, joined: Iterable[tuple[int, int]]) -> list[int]:
    """Return the group number of each of `count` items; groups are numbered in order of first appearance.

    Args:
        count: Of items, such as photos.
        joined: Pairs of items in one group, as places: of one shot (see `Sameness.one_shot`) or of one burst.
    """
    parent = list(range(count))
    for i, j in joined:
        first, second = sorted((_root(parent, i), _root(parent, j)))
        parent[second] = first
    numbers: dict[int, int] = {}
    return [numbers.setdefault(_root(parent, i), len(numbers)) for i in range(count)]


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
