"""Compare sets of pictures of the same prompts and seeds by paired differences.

Two pictures of one prompt and seed begin with the same noise, so the difference is taken picture by picture; what is
resampled is the prompt, as everywhere in the evaluation. Intervals of one measure hold together: with k pairs of sets
each has a confidence of 1 - 0.05 / k (Bonferroni).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from zimage.core.jsonl import Row
from zimage.evaluation.figures import by_prompt, paired
from zimage.evaluation.intervals import Estimate, mean, rate, rate_difference
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.wording import counted, quantity

ERROR = 0.05  # that any interval of one measure misses
MOSTLY = 0.5  # share of pictures of the same person from which a set keeps the face at all

Better = Literal["first", "second", "not shown"]


class Difference(Row):
    """The first set's measure less the second's, over the same prompts and seeds."""

    measure: str
    first: str
    second: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    """Pairs of pictures."""
    confidence: float
    """Of the interval by itself; all intervals of this measure hold together with 95 %."""
    better: Better | None
    """The set that the interval shows to be better; `not shown` where it holds 0 or could not be measured; null where
    the measure is one of the person, and less than half of the pictures of each set are the same person."""


@dataclass(frozen=True)
class Measure:
    """A measure by which two pictures of the same prompt and seed are compared.

    Args:
        name: Its key in metrics.json.
        says: It in words.
        of: Its value for one picture; None where it was not measured. True and false make a share.
        more_is_better: Whether a larger value is better; None where neither is.
        leaks: Whether it is taken on the leak prompts, instead of those that ask for the person.
        of_person: Whether it says how well a face is kept.
    """

    name: str
    says: str
    of: Callable[[PictureRow], float | bool | None]
    more_is_better: bool | None = True
    leaks: bool = False
    of_person: bool = False


@dataclass(frozen=True)
class ComparedSet:
    """A set of pictures that is compared, and the share of them that are the same person."""

    name: str
    same: Estimate


def _leaked(row: PictureRow) -> bool:
    return row.matching_faces > (1 if row.kind == "leak_two" else 0)


def _first(row: PictureRow) -> bool | None:
    return None if row.rank is None else row.rank == 1


def _properties(row: PictureRow) -> float | None:
    named = row.properties.split()
    return len(row.properties_found.split()) / len(named) if named else None


def _log(value: float | None) -> float | None:
    return math.log(value) if value else None


MEASURES = (
    Measure("likeness", "likeness to the person (closeness, 0 to 1)", lambda row: row.closeness, of_person=True),
    Measure("same_person", "share of pictures that are the same person", lambda row: row.same, of_person=True),
    Measure("second_engine", "the same share by the second engine", lambda row: row.second_same, of_person=True),
    Measure("face_found", "share of pictures that show a face", lambda row: row.faces > 0),
    Measure("following", "share of the prompt that is found in the picture", lambda row: row.following),
    Measure("clip", "agreement of prompt and picture in CLIP", lambda row: row.clip),
    Measure("ranked_first", "share of pictures that are nearer to the person than to others", _first, of_person=True),
    Measure("contrast", "contrast (ln of its ratio)", lambda row: _log(row.contrast), more_is_better=None),
    Measure("saturation", "saturation (ln of its ratio)", lambda row: _log(row.saturation), more_is_better=None),
    Measure("skin", "fine structure of the skin (ln of its ratio)", lambda row: _log(row.skin), more_is_better=None),
    Measure("leaks", "share of pictures of others that show the person", _leaked, more_is_better=False, leaks=True),
    # Behind the others, so that these keep their draws and with them the bits of their intervals.
    Measure("blur", "blur (ln of its ratio)", lambda row: _log(row.blur), more_is_better=None),
    Measure("noise", "noise (ln of its ratio)", lambda row: _log(row.noise), more_is_better=None),
    Measure("blocking", "blocking on a grid of 8 px (ln of its ratio)", lambda row: _log(row.blocking), None),
    Measure("properties", "share of what the prompt names and can be measured", _properties),
)
LIKENESS = MEASURES[0]


def differences(
    sets: Mapping[str, Sequence[PictureRow]],
    *,
    resamples: int,
    generator: np.random.Generator,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Difference]:
    """Return the difference of every measure for every pair of sets, those of likeness first.

    Args:
        sets: The scored pictures of each LoRA, or other source, by its name; leak prompts among them.
        resamples: Bootstrap resamples of the prompts.
        generator: Where the draws come from.
        pairs: The names of the sets that are compared; None for every two.
    """
    pairs = list(combinations(sets, 2)) if pairs is None else pairs
    same = {name: same_person(rows) for name, rows in sets.items()}
    found = []
    for measure in MEASURES:
        for first, second in pairs:
            confidence = 1 - ERROR / len(pairs)
            rows = [
                [row for row in sets[name] if (row.kind != "likeness") == measure.leaks] for name in (first, second)
            ]
            estimate = _difference(rows, measure, confidence, resamples, generator)
            if estimate.n:
                both = ComparedSet(first, same[first]), ComparedSet(second, same[second])
                found.append(difference_of(measure, both, estimate, confidence=confidence))
    return found


def sentence(difference: Difference, same: tuple[Estimate, Estimate]) -> str:
    """Return what a difference of likeness says, for a person.

    Args:
        difference: Of likeness.
        same: The share of pictures that are the same person, of the first set and of the second.
    """
    interval = f"{_signed(difference.value)} [{_signed(difference.low)}, {_signed(difference.high)}]"
    first, second = difference.first, difference.second
    pictures = f"over {quantity(difference.n, 'pair')} of pictures"
    if difference.better is None:
        shares = " and ".join(
            f"{counted(share.value or 0.0, share.n)} pictures of {name}"
            for share, name in zip(same, (first, second), strict=True)
        )
        return (
            f"Neither {first} nor {second} is the person: {shares} show the same person. Likeness differs by "
            f"{interval} ({first} less {second}) {pictures}, most of which show somebody else or nobody."
        )
    if difference.better == "first":
        return f"{first} keeps the face better than {second}: {interval} {pictures}."
    if difference.better == "second":
        return f"{second} keeps the face better than {first}: {interval} ({first} less {second}) {pictures}."
    return f"No difference in likeness between {first} and {second} is shown: {interval} {pictures}."


def same_person(rows: Sequence[PictureRow]) -> Estimate:
    """Return the share of the pictures that ask for the person and show the same person."""
    return rate([[row.same for row in group] for group in by_prompt([row for row in rows if row.kind == "likeness"])])


def _difference(
    rows: Sequence[Sequence[PictureRow]],
    measure: Measure,
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> Estimate:
    groups = list(zip(*paired(rows[0], rows[1]), strict=True))
    both = [
        [
            (one, other)
            for one, other in ((measure.of(here), measure.of(there)) for here, there in zip(*group, strict=True))
            if one is not None and other is not None
        ]
        for group in groups
    ]
    both = [values for values in both if values]
    if both and isinstance(both[0][0][0], bool):
        sides = [[[bool(pair[side]) for pair in values] for values in both] for side in (0, 1)]
        return rate_difference(sides[0], sides[1], confidence=confidence)
    values = [[float(one) - float(other) for one, other in pairs] for pairs in both]
    return mean(values, resamples=resamples, generator=generator, confidence=confidence)


def better_of(measure: Measure, difference: Estimate, same: tuple[Estimate, Estimate]) -> Better | None:
    """Return which of two sets a difference (the first's value less the second's) shows to be better; see Difference.

    Args:
        measure: What was compared.
        difference: The first's value less the second's.
        same: The share of pictures that are the same person, of the first set and of the second.
    """
    if measure.of_person and all(share.value is not None and share.value < MOSTLY for share in same):
        return None
    low, high = difference.low, difference.high
    if measure.more_is_better is None or low is None or high is None or low <= 0 <= high:
        return "not shown"
    return "first" if (low > 0) == measure.more_is_better else "second"


def difference_of(
    measure: Measure, sets: tuple[ComparedSet, ComparedSet], estimate: Estimate, *, confidence: float
) -> Difference:
    """Return the first set's measure less the second's as a row of differences.csv."""
    first, second = sets
    return Difference(
        measure=measure.name,
        first=first.name,
        second=second.name,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        n=estimate.n,
        confidence=confidence,
        better=better_of(measure, estimate, (first.same, second.same)),
    )


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.3f}"
