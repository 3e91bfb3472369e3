"""Choose the earliest checkpoint and the lowest strength that are as good as the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zimage.evaluation.intervals import Estimate, mean

ByPrompt = dict[str, list[float]]  # closeness by seed, for each prompt


@dataclass(frozen=True)
class Candidate:
    """A checkpoint or a strength in a sweep.

    Args:
        label: Names it in the report.
        closeness: Its mean with interval.
        behind: By how much it is behind the best, over the same prompts and seeds.
        as_good: Whether the interval of that difference holds 0.
    """

    label: str
    closeness: Estimate
    behind: Estimate
    as_good: bool


@dataclass(frozen=True)
class Sweep:
    """All candidates in order, the best of them, and the one to use."""

    candidates: list[Candidate]
    best: int
    chosen: int


def choose(
    labels: Sequence[str], closeness: Sequence[ByPrompt], *, resamples: int, generator: np.random.Generator
) -> Sweep:
    """Return the first candidate that is not measurably behind the best; order them from least to most.

    All candidates have the same prompts, seeds and noise, so it is the difference that is put to the test: its interval
    is much narrower than that of either.
    """
    means = [mean(list(one.values()), resamples=resamples, generator=generator) for one in closeness]
    best = int(np.argmax([estimate.value or 0.0 for estimate in means]))
    candidates = []
    for label, one, estimate in zip(labels, closeness, means, strict=True):
        behind = mean(_differences(closeness[best], one), resamples=resamples, generator=generator)
        as_good = one is closeness[best] or (behind.low is not None and behind.low <= 0)
        candidates.append(Candidate(label, estimate, behind, as_good))
    return Sweep(candidates, best, next(i for i, candidate in enumerate(candidates) if candidate.as_good))


def _differences(best: ByPrompt, other: ByPrompt) -> list[list[float]]:
    return [[a - b for a, b in zip(best[prompt], other[prompt], strict=True)] for prompt in best]
