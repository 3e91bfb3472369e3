"""Split photos into training and hold-out by whole bursts, at random among those that show the face well."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from zimage.core.section import Section


class SplitParams(Section):
    """What is held out, and how much is trained on."""

    holdout_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the photos that passed."""
    min_holdout: Annotated[int, Field(ge=1)]
    """Photos; fewest that are held out."""
    min_train: Annotated[int, Field(ge=1)]
    """Photos; fewest that must be left for training."""
    max_train: Annotated[int, Field(ge=1)]
    """Photos; of more, the best are trained on."""
    seed: int
    """Of the lot by which bursts are held out."""


@dataclass(frozen=True)
class Candidate:
    """A photo that may be held out.

    Args:
        photo: Its short hash.
        burst: Number of its burst.
        shows_well: Frontal or three-quarter, so that a score against it means something.
        forced: A human put it there.
    """

    photo: str
    burst: int
    shows_well: bool
    forced: bool


def held_out(candidates: Sequence[Candidate], *, share: float, at_least: int, seed: int) -> set[str]:
    """Return the photos to hold out: about `share` of all, `at_least` so many, never part of a burst.

    The lot is drawn by hashing, so that photos added later move as few of the others as possible. Bursts that are
    larger than what is still wanted come last, and so do those with a photo that does not show the face well.

    Args:
        candidates: All photos that passed.
        share: Of all photos, 0 to 1.
        at_least: Fewest photos.
        seed: Of the lot.
    """
    by_burst: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_burst.setdefault(candidate.burst, []).append(candidate)
    wanted = max(at_least, round(share * len(candidates)))
    chosen = [burst for burst in by_burst.values() if any(one.forced for one in burst)]
    rest = sorted((burst for burst in by_burst.values() if burst not in chosen), key=lambda burst: _lot(burst, seed))
    while rest and (missing := wanted - sum(map(len, chosen))) > 0:
        fitting = [burst for burst in rest if len(burst) <= missing]
        well = [burst for burst in fitting if all(one.shows_well for one in burst)]
        following = (well or fitting or sorted(rest, key=len))[0]
        rest.remove(following)
        chosen.append(following)
    return {one.photo for burst in chosen for one in burst}


def _lot(burst: list[Candidate], seed: int) -> str:
    first = min(one.photo for one in burst)
    return hashlib.sha256(f"{seed} {first}".encode()).hexdigest()
