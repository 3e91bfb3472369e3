"""The plan for a wanted precision, against simulated pictures whose correlation is known."""

import numpy as np
import pytest

from zimage.evaluation.intervals import rate
from zimage.scoring.power import MOST_SEEDS, half_width, plan

RUNS = 1000


def simulated(prompts: int, seeds: int, *, share: float, correlation: float) -> tuple[float, float]:
    """Coverage and mean half width of the interval over runs; each prompt has a share of its own (beta-binomial)."""
    rng = np.random.default_rng(5)
    scale = (1 - correlation) / correlation
    shares = rng.beta(share * scale, (1 - share) * scale, (RUNS, prompts))
    passes = rng.random((RUNS, prompts, seeds)) < shares[:, :, None]
    found = [rate(run.tolist()) for run in passes]
    ends = np.array([(one.low, one.high) for one in found], float)
    covered = (ends[:, 0] <= share) & (share <= ends[:, 1])
    return float(covered.mean()), float((ends[:, 1] - ends[:, 0]).mean() / 2)


@pytest.mark.parametrize(("prompts", "precision"), [(24, 0.17), (100, 0.08)])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_the_planned_seeds_give_the_wanted_interval_and_it_covers(prompts: int, precision: float, share: float) -> None:
    found = plan(precision, prompts)

    coverage, width = simulated(prompts, found.seeds, share=share, correlation=found.correlation)

    assert found.is_reached and 1 < found.seeds < MOST_SEEDS
    assert width <= 1.03 * precision, "the mean of the intervals' half widths"
    assert coverage > 0.95 - 3 * (0.95 * 0.05 / RUNS) ** 0.5 - 0.01
    if share == 0.5:  # a seed fewer would not do
        assert half_width(prompts, found.seeds - 1, correlation=found.correlation) > precision


def test_where_no_number_of_seeds_is_enough_the_plan_says_how_many_prompts_would_be() -> None:
    found = plan(0.05, 24)

    assert not found.is_reached and found.prompts_needed > 100
    assert half_width(found.prompts_needed, found.seeds, correlation=0.5) <= 0.05
    assert half_width(found.prompts_needed - 1, found.seeds, correlation=0.5) > 0.05
    assert found.expected <= 1.1 * half_width(24, MOST_SEEDS, correlation=0.5)
    assert f"cannot be reached with this suite: 24 prompts with {found.seeds} seeds each" in str(found)


def test_independent_pictures_need_what_wilson_s_interval_says() -> None:
    found = plan(0.05, 10, correlation=0.0)

    assert found.seeds == 39  # the least multiple of 10 from n = z² (1 / (4 h²) - 1) = 380.3 on, at p = 1/2
    assert found.is_reached
