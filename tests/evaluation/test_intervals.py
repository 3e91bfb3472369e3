"""Do intervals that say 95 % hold the truth in 95 of 100 evaluations? Simulated with prompts that differ."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from zimage.evaluation.intervals import Estimate, mean, rate, rate_difference, wilson

PROMPTS, SEEDS = 12, 4  # the test half of both suites
EVALUATIONS = 1200


def coverage(evaluate: Callable[[np.random.Generator], tuple[Estimate, float]], seed: int) -> float:
    rng = np.random.default_rng(seed)
    held = 0
    for _ in range(EVALUATIONS):
        estimate, truth = evaluate(rng)
        assert estimate.low is not None and estimate.high is not None
        held += estimate.low <= truth <= estimate.high
    return held / EVALUATIONS


def alike(rng: np.random.Generator, icc: float) -> NDArray[np.float64]:
    """Values of which a share `icc` of the variance is between prompts; their true mean is 0."""
    between = rng.normal(0, icc**0.5, (PROMPTS, 1))
    return between + rng.normal(0, (1 - icc) ** 0.5, (PROMPTS, SEEDS))


@pytest.mark.parametrize("icc", [0.0, 0.2, 0.5])
def test_means_are_covered_95_of_100_times_however_much_prompts_differ(icc: float) -> None:
    def one(rng: np.random.Generator) -> tuple[Estimate, float]:
        return mean(alike(rng, icc).tolist(), resamples=500, generator=rng), 0.0

    assert 0.93 <= coverage(one, seed=int(10 * icc)) <= 0.97


@pytest.mark.parametrize("icc", [0.0, 0.1, 0.3])
def test_rates_are_covered_95_of_100_times_however_much_prompts_differ(icc: float) -> None:
    rates = (0.6, 0.7, 0.8, 0.9)

    def one(rng: np.random.Generator) -> tuple[Estimate, float]:
        truth = rates[rng.integers(len(rates))]
        prior = (1 - icc) / icc if icc else np.inf
        of_prompt = rng.beta(truth * prior, (1 - truth) * prior, PROMPTS) if icc else np.full(PROMPTS, truth)
        passed = rng.random((PROMPTS, SEEDS)) < of_prompt[:, None]
        return rate(passed.tolist()), truth

    assert 0.93 <= coverage(one, seed=100 + int(10 * icc)) <= 0.97


def test_a_difference_of_rates_has_newcombes_interval() -> None:
    of_70, of_80 = [[True] * 56 + [False] * 14], [[True] * 48 + [False] * 32]
    estimate = rate_difference(of_70, of_80)
    assert estimate.value == pytest.approx(0.2)
    # Newcombe (1998), Statistics in Medicine 17:873, table II, method 10, contrast (a)
    assert (estimate.low, estimate.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@pytest.mark.parametrize("agreement", [0.0, 0.5, 0.9])
def test_differences_of_paired_rates_are_covered_at_least_94_of_100_times(agreement: float) -> None:
    def one(rng: np.random.Generator) -> tuple[Estimate, float]:
        shared = rng.random((PROMPTS, SEEDS))
        own = np.where(rng.random((PROMPTS, SEEDS)) < agreement, shared, rng.random((PROMPTS, SEEDS)))
        return rate_difference((shared < 0.6).tolist(), (own < 0.3).tolist()), 0.3

    assert coverage(one, seed=200 + int(10 * agreement)) >= 0.94


def test_three_pairs_that_all_differ_keep_their_doubt() -> None:
    estimate = rate_difference([[True]] * 3, [[False]] * 3)
    assert estimate.value == 1 and estimate.low is not None and estimate.low < 0.5


def test_taking_pictures_for_independent_would_cover_far_too_rarely() -> None:
    def naive(rng: np.random.Generator) -> tuple[Estimate, float]:
        values = alike(rng, 0.5)
        half = 1.96 * values.std(ddof=1) / values.size**0.5
        return Estimate(0.0, float(values.mean() - half), float(values.mean() + half), values.size), 0.0

    assert coverage(naive, seed=7) < 0.8


def test_a_rate_of_prompts_that_do_not_differ_has_wilsons_interval() -> None:
    estimate = rate([[True, True, True, False]] * 10)
    expected = binomtest(30, 40).proportion_ci(0.95, "wilson")
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))


def test_a_rate_of_prompts_that_pass_or_fail_as_a_whole_counts_prompts_and_not_pictures() -> None:
    whole = rate([[True] * 4] * 6 + [[False] * 4] * 6)
    prompts = rate([[True]] * 6 + [[False]] * 6)
    assert whole.low is not None and prompts.low is not None
    assert whole.low == pytest.approx(prompts.low, abs=0.04)
    assert whole.low < rate([[True, True, False, False]] * 12).low - 0.1  # type: ignore[operator]


@pytest.mark.parametrize(("passed", "value"), [(True, 1.0), (False, 0.0)])
def test_rates_at_the_ends_keep_their_doubt_and_stay_within_0_and_1(passed: bool, value: float) -> None:
    estimate = rate([[passed] * 4] * 12)
    assert estimate.value == value and estimate.low is not None and estimate.high is not None
    assert 0 <= estimate.low <= value <= estimate.high <= 1 and estimate.high - estimate.low > 0.05


def test_nothing_measured_has_no_value_and_one_prompt_no_interval() -> None:
    rng = np.random.default_rng(0)
    assert rate([]) == Estimate(None, None, None, 0) == mean([[]], resamples=200, generator=rng)
    assert mean([[1.0, 2.0]], resamples=200, generator=rng) == Estimate(1.5, None, None, 2)


def test_wilson_agrees_with_scipy() -> None:
    expected = binomtest(9, 12).proportion_ci(0.95, "wilson")
    assert wilson(0.75, 12, 1.959964) == pytest.approx((expected.low, expected.high), abs=1e-6)
