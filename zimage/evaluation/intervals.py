"""Intervals that hold for a handful of prompts with a few seeds each. Pictures of one prompt are alike, so the prompt,
not the picture, is what is drawn at random; tests/evaluation/test_intervals.py checks the coverage by simulation.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
MOST_UNDEFINED = 0.01  # share of resamples without a value beyond which the ends of an interval mean nothing

Sums = NDArray[np.float64]  # (resamples, columns)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, of 95 % unless another confidence was asked for.

    Args:
        value: The estimate itself; None where nothing could be measured.
        low: Lower end; None where there are fewer than two clusters.
        high: Upper end.
        n: How many pictures (or pairs) it rests on.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def rate(passed_by_prompt: Sequence[Sequence[bool]], *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the share of passes with Wilson's interval, widened by the design effect of the prompts.

    Wilson (1927), JASA 22:209, with n divided by the design effect 1 <= s²/(p(1-p)/n) (Kish 1965), where s² is the
    variance of the mean over prompts; where prompts do differ, Student's t takes the place of the normal quantile.
    """
    counts = np.array([len(passed) for passed in passed_by_prompt if len(passed)], float)
    passes = np.array([sum(passed) for passed in passed_by_prompt if len(passed)], float)
    n = int(counts.sum())
    if n == 0:
        return Estimate(None, None, None, 0)
    p = float(passes.sum() / n)
    effect, quantile = _design_effect(passes, counts, p), normal_quantile(confidence)
    if effect > 1:
        quantile = student_quantile(len(counts) - 1, confidence)
    low, high = wilson(p, n / effect, quantile)
    return Estimate(p, low, high, n)


def rate_difference(
    first_by_prompt: Sequence[Sequence[bool]],
    second_by_prompt: Sequence[Sequence[bool]],
    *,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Return the first share of passes less the second, over the same pictures of the same prompts.

    The interval is Newcombe's hybrid of two score intervals (1998, Statistics in Medicine 17:873, method 10), each that
    of `rate`. It ignores that pairs are alike, which could only narrow it. A bootstrap would have no width where all
    pairs agree, however few they are.
    """
    first, second = (rate(each, confidence=confidence) for each in (first_by_prompt, second_by_prompt))
    if first.value is None or second.value is None:
        return Estimate(None, None, None, 0)
    difference = first.value - second.value
    low = difference - math.hypot(first.value - _end(first.low), _end(second.high) - second.value)
    high = difference + math.hypot(_end(first.high) - first.value, second.value - _end(second.low))
    return Estimate(difference, low, high, first.n)


def wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share `p` of `n` independent trials."""
    square = quantile**2
    centre = (p + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * (p * (1 - p) / n + square / (4 * n * n)) ** 0.5
    return max(min(centre - half, p), 0.0), min(max(centre + half, p), 1.0)


def mean(
    values_by_prompt: Sequence[Sequence[float]],
    *,
    resamples: int,
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Return the mean over all values with its cluster-bootstrap interval by prompt."""
    clusters = np.array([(sum(values), len(values)) for values in values_by_prompt if len(values)], float).reshape(
        -1, 2
    )
    n = int(clusters[:, 1].sum())
    if n == 0:
        return Estimate(None, None, None, 0)
    value = float(clusters[:, 0].sum() / n)
    low, high = bootstrap([clusters], lambda sums: sums[0][:, 0] / sums[0][:, 1], resamples, generator, confidence)
    return Estimate(value, low, high, n)


def two_way_mean(values: Mapping[tuple[int, str], Sequence[float]], *, confidence: float = CONFIDENCE) -> Estimate:
    """Return the mean over all values with an interval that holds for other trainings and other prompts.

    The variance is clustered both ways (Cameron, Gelbach and Miller 2011, Journal of Business and Economic Statistics
    29:238): that over trainings plus that over prompts, less that over both, and at least the larger of the two. The
    quantile is Student's with one less than the fewer clusters. With one training it is the prompts' alone.

    Args:
        values: By training and prompt.
        confidence: Of the interval.
    """
    cells = {key: np.asarray(each, float) for key, each in values.items() if len(each)}
    n = sum(len(each) for each in cells.values())
    if n == 0:
        return Estimate(None, None, None, 0)
    value = float(sum(each.sum() for each in cells.values()) / n)
    rests = {key: float((each - value).sum()) / n for key, each in cells.items()}
    by_training, by_prompt = _clustered(rests, lambda key: key[0]), _clustered(rests, lambda key: key[1])
    clusters = [counted for counted, _ in (by_training, by_prompt) if counted > 1]
    if not clusters or by_prompt[0] < 2:
        return Estimate(value, None, None, n)
    both = by_training[1] + by_prompt[1] - (_clustered(rests, lambda key: key)[1] if len(clusters) > 1 else 0.0)
    variance = max(both, by_training[1], by_prompt[1])
    half = student_quantile(min(clusters) - 1, confidence) * variance**0.5
    return Estimate(value, value - half, value + half, n)


def _clustered(rests: Mapping[tuple[int, str], float], of: Callable[[tuple[int, str]], Hashable]) -> tuple[int, float]:
    """Return how many clusters there are, and the variance of the mean over them; 0 of one."""
    sums: dict[Hashable, float] = {}
    for key, rest in rests.items():
        sums[of(key)] = sums.get(of(key), 0.0) + rest
    count = len(sums)
    return count, count / (count - 1) * sum(each**2 for each in sums.values()) if count > 1 else 0.0


def bootstrap(
    groups: Sequence[NDArray[np.float64]],
    statistic: Callable[[list[Sums]], NDArray[np.float64]],
    resamples: int,
    generator: np.random.Generator,
    confidence: float = CONFIDENCE,
) -> tuple[float | None, float | None]:
    """Return the expanded percentile interval of a statistic of sums over clusters.

    Hesterberg (2015), The American Statistician 69:371, section 4.3: the percentiles are those at which the normal
    distribution reaches sqrt(k/(k-1)) times Student's quantile, because k resampled clusters vary too little.

    Args:
        groups: For each group of clusters that is drawn independently, its sums per cluster, (clusters, columns).
        statistic: Takes the resampled sums of each group, (resamples, columns), and returns (resamples,) values; NaN
            where a resample has none. With more than a few of those there is no interval.
        resamples: How often clusters are drawn.
        generator: Where the draws come from.
        confidence: Of the interval.
    """
    fewest = min(len(group) for group in groups)
    if fewest < 2:
        return None, None
    drawn = [group[generator.integers(0, len(group), (resamples, len(group)))].sum(axis=1) for group in groups]
    values = statistic(drawn)
    if np.isnan(values).mean() > MOST_UNDEFINED:
        return None, None
    tail = _normal_share(-((fewest / (fewest - 1)) ** 0.5) * student_quantile(fewest - 1, confidence))
    low, high = np.nanquantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _end(end: float | None) -> float:
    assert end is not None, "a rate that has a value has an interval"
    return end


def _design_effect(passes: NDArray[np.float64], counts: NDArray[np.float64], p: float) -> float:
    clusters, n = len(counts), counts.sum()
    if clusters < 2 or p in (0.0, 1.0):
        return 1.0
    between = clusters / (clusters - 1) * float(((passes - p * counts) ** 2).sum()) / n**2
    return max(1.0, float(between / (p * (1 - p) / n)))


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return how many standard deviations an interval of this confidence reaches to either side."""
    from scipy.special import ndtri  # scipy.stats has the same and takes half a second to import

    return float(ndtri((1 + confidence) / 2))


def _normal_share(quantile: float) -> float:
    from scipy.special import ndtr

    return float(ndtr(quantile))


def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the same of Student's distribution with this many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))
