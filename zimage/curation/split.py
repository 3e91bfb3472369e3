"""Split photos into training and hold-out by whole bursts, at random among those that show the face well.

Where whole bursts would leave too little to train on, as in an album of one session, a burst is divided between two of
its shots. What is held out of it is the end of the session; the score then says less, and report and gate say so.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
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
        shot: Number of its shot: copies of one photo, which are never divided.
        taken_at: In s; None where the file does not say.
        shows_well: Frontal or three-quarter, so that a score against it means something.
        forced: A human put it there.
    """

    photo: str
    burst: int
    shot: int
    taken_at: float | None
    shows_well: bool
    forced: bool


def held_out(candidates: Sequence[Candidate], *, share: float, at_least: int, min_train: int, seed: int) -> set[str]:
    """Return the photos to hold out: about `share` of all, `at_least` so many, whole bursts where that is possible.

    The lot is drawn by hashing, so that photos added later move as few of the others as possible. Bursts that are
    larger than what is still wanted come last, and so do those with a photo that does not show the face well. A burst
    is divided only where as a whole it would leave fewer than `min_train` photos; a shot never is.

    Args:
        candidates: All photos that passed.
        share: Of all photos, 0 to 1.
        at_least: Fewest photos.
        min_train: Fewest photos that are left.
        seed: Of the lot.
    """
    wanted = max(at_least, round(share * len(candidates)))
    bursts = _groups(candidates, lambda one: one.burst)
    chosen = _forced(bursts, most=len(candidates) - min_train)
    rest = [burst for burst in bursts if burst not in chosen]
    taken = {one.photo for burst in chosen for one in burst}
    rest = [left for burst in rest if (left := [one for one in burst if one.photo not in taken])]
    rest.sort(key=lambda burst: _lot(burst, seed))
    while rest and (missing := wanted - sum(map(len, chosen))) > 0:
        fitting = [burst for burst in rest if len(burst) <= missing]
        well = [burst for burst in fitting if all(one.shows_well for one in burst)]
        following = (well or fitting or sorted(rest, key=len))[0]
        if not fitting and sum(map(len, rest)) - len(following) < min_train:
            chosen.append(_end_of(max(rest, key=len), missing))
            break
        rest.remove(following)
        chosen.append(following)
    return {one.photo for burst in chosen for one in burst}


def _forced(bursts: list[list[Candidate]], *, most: int) -> list[list[Candidate]]:
    """Return what a human holds out: whole bursts, or, where these hold more than `most` photos, whole shots."""
    forced = [burst for burst in bursts if any(one.forced for one in burst)]
    if sum(map(len, forced)) <= most:
        return forced
    shots = (shot for burst in forced for shot in _groups(burst, lambda one: one.shot))
    return [shot for shot in shots if any(one.forced for one in shot)]


def _end_of(burst: list[Candidate], wanted: int) -> list[Candidate]:
    """Return the last shots of a burst, `wanted` photos or a little more, those that show the face well first."""
    shots = _groups(burst, lambda one: one.shot)
    shots.sort(key=lambda shot: (all(one.shows_well for one in shot), max(one.taken_at or 0.0 for one in shot)))
    ending: list[Candidate] = []
    while len(shots) > 1 and len(ending) < wanted:
        ending += shots.pop()
    return ending


def _groups(candidates: Iterable[Candidate], number: Callable[[Candidate], int]) -> list[list[Candidate]]:
    groups: dict[int, list[Candidate]] = {}
    for one in candidates:
        groups.setdefault(number(one), []).append(one)
    return list(groups.values())


def _lot(burst: list[Candidate], seed: int) -> str:
    first = min(one.photo for one in burst)
    return hashlib.sha256(f"{seed} {first}".encode()).hexdigest()
