import numpy as np
import pytest

from zimage.evaluation.select.choice import Sweep, choose


def sweep(*levels: float, noise: float = 0.02, seed: int = 0) -> Sweep:
    """Candidates of given quality over the same prompts and seeds; prompts differ far more than candidates."""
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(0, 0.2, 12)
    closeness = [
        {f"prompt {i}": [float(level + of_prompt[i] + rng.normal(0, noise)) for _ in range(2)] for i in range(12)}
        for level in levels
    ]
    labels = [f"candidate {number}" for number in range(len(levels))]
    return choose(labels, closeness, resamples=400, generator=np.random.default_rng(1))


@pytest.mark.parametrize(
    ("levels", "chosen"),
    [
        ((0.3, 0.5, 0.5, 0.5), 1),  # the earliest of equals
        ((0.3, 0.4, 0.5), 2),  # the best where it is measurably better
        ((0.5, 0.3, 0.2), 0),  # the best may be the first
        ((0.5,), 0),
    ],
)
def test_the_first_candidate_that_is_as_good_as_the_best_is_chosen(levels: tuple[float, ...], chosen: int) -> None:
    assert sweep(*levels).chosen == chosen


def test_the_difference_decides_although_the_intervals_overlap() -> None:
    found = sweep(0.45, 0.5)
    first, second = found.candidates
    assert second.closeness.low < first.closeness.value  # type: ignore[operator]
    assert (found.chosen, first.as_good, second.as_good) == (1, False, True)


def test_a_difference_by_chance_decides_only_as_often_as_95_percent_intervals_allow() -> None:
    first = [sweep(0.5, 0.5, noise=0.2, seed=seed).chosen == 0 for seed in range(100)]
    assert 0.89 <= np.mean(first) <= 0.99
