"""Settings compared over several trainings: how often the intervals hold, and what the table says."""

from pathlib import Path

import numpy as np

from tests.evaluation.test_compare import picture
from zimage.evaluation.intervals import two_way_mean
from zimage.evaluation.rows import PictureRow, read_csv, write_csv
from zimage.sweep.comparison import Run, compared, table

PROMPTS, COPY = 12, 0.95


def run(seed: int, closeness: np.ndarray, *, same: bool = True, likeness_to_copy: float = 0.1) -> Run:
    """Return a training with one picture of each prompt."""
    rows: list[PictureRow] = [
        picture(f"test-{number}", 0, float(value)).model_copy(
            update={"same": same, "likeness_to_copy": likeness_to_copy, "half": "test"}
        )
        for number, value in enumerate(closeness)
    ]
    return Run(seed, rows, 10.0 * seed)


def shares_that_hold(trainings: int, training_sd: float, prompt_sd: float, confidence: float) -> float:
    """Return how often the interval of a mean of 0 holds 0, where trainings and prompts vary so much."""
    rng, holds, times = np.random.default_rng(trainings), 0, 600
    for _ in range(times):
        values = (
            rng.normal(0, training_sd, (trainings, 1))
            + rng.normal(0, prompt_sd, (1, PROMPTS))
            + rng.normal(0, 0.1, (trainings, PROMPTS))
        )
        cells = {(t, str(p)): [float(values[t, p])] for t in range(trainings) for p in range(PROMPTS)}
        found = two_way_mean(cells, confidence=confidence)
        assert found.low is not None and found.high is not None
        holds += found.low <= 0 <= found.high
    return holds / times


def test_the_interval_holds_for_other_trainings_and_other_prompts() -> None:
    # A standard error of 600 draws is 0.9 %; below 92 % would be a chance of 1 in 1,000 at 95 %.
    for training_sd, prompt_sd in ((0.1, 0.1), (0.2, 0.02), (0.02, 0.2), (0.0, 0.0)):
        assert shares_that_hold(5, training_sd, prompt_sd, 0.95) >= 0.92


def test_an_interval_over_prompts_alone_misses_what_trainings_vary() -> None:
    values = np.random.default_rng(0).normal(0, 0.2, (4, 1)) + np.zeros((1, PROMPTS))
    cells = {(t, str(p)): [float(values[t, p])] for t in range(4) for p in range(PROMPTS)}
    found = two_way_mean(cells)
    of_one = two_way_mean({key: each for key, each in cells.items() if key[0] == 0})
    assert found.high is not None and found.low is not None and found.high - found.low > 0.15
    assert of_one.high == of_one.low  # so the table says that it holds for this one training only


def test_a_setting_that_is_better_is_named_and_one_that_copies_too() -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(0.5, 0.1, (3, PROMPTS))
    runs = {
        "own": [run(seed, common[seed]) for seed in range(3)],
        "better": [run(seed, common[seed] + 0.1 + rng.normal(0, 0.01, PROMPTS)) for seed in range(3)],
        "copying": [run(seed, common[seed] + rng.normal(0, 0.01, PROMPTS), likeness_to_copy=0.99) for seed in range(3)],
        "like own": [run(seed, common[seed] + rng.normal(0, 0.01, PROMPTS)) for seed in range(3)],
    }
    found = compared(runs, copy_correlation=COPY)
    better = {(one.measure, one.first): one.better for one in found.differences}
    assert better["likeness", "better"] == "first" and better["likeness", "like own"] == "not shown"
    assert better["copies", "copying"] == "second" and better["copies", "like own"] == "not shown"
    assert {one.confidence for one in found.differences} == {1 - 0.05 / 3}
    lines = table(found, failed=["too large"])
    assert lines[2].startswith("| own | 3 | 100% of 36 |")
    assert any(line.startswith("better keeps the face better than own: +0.") for line in lines)
    assert "too large: could not be trained; see its messages." in lines
    assert "hold for other trainings and other prompts" in lines[-1]


def test_equal_shares_have_an_interval_with_a_width() -> None:
    found = compared({"own": [run(0, np.ones(PROMPTS))], "other": [run(0, np.ones(PROMPTS))]}, copy_correlation=COPY)
    (same,) = [one for one in found.differences if one.measure == "same_person"]
    assert same.value == 0 and same.low is not None and same.high is not None and same.low < -0.1 and same.high > 0.1
    assert "of this one training only" in table(found, failed=[])[-1]


def test_rows_of_scores_come_back_from_their_table(tmp_path: Path) -> None:
    rows = list(run(1, np.array([0.25, 0.5])).rows)
    write_csv(tmp_path / "scores.csv", rows)
    assert read_csv(tmp_path / "scores.csv") == rows


def test_the_interval_of_two_trainings_is_wide_and_stays_within_what_shares_can_differ_by() -> None:
    ones = np.ones(PROMPTS)
    found = compared(
        {
            "own": [run(seed, ones, likeness_to_copy=0.99) for seed in range(2)],
            "other": [run(seed, ones, likeness_to_copy=0.99 * seed) for seed in range(2)],
        },
        copy_correlation=COPY,
    )
    (copies,) = [one for one in found.differences if one.measure == "copies"]
    assert (copies.value, copies.low, copies.high) == (-0.5, -1.0, 1.0)
