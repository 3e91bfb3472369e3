"""Paired differences: what they show, what they do not, and how often they are wrong."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.test_figures import row
from zimage.evaluation.compare import differences, same_person, sentence
from zimage.evaluation.rows import PictureRow, write_csv

PROMPTS, SEEDS = 12, 2


def picture(prompt: str, seed: int, closeness: float = 0.5) -> PictureRow:
    """Return a picture of the person of which only prompt, seed and closeness matter."""
    return row(0, 0.4).model_copy(update={"prompt": prompt, "seed": seed, "closeness": closeness, "same": True})


def pictures(shift: float, rng: np.random.Generator, common: np.ndarray) -> list[PictureRow]:
    """Return likeness pictures whose closeness is that of their prompt and seed, `shift`, and a little noise."""
    return [
        picture(f"test-{prompt}", seed, closeness=float(np.clip(value + shift + rng.normal(0, 0.02), 0, 1)))
        for prompt, values in enumerate(common)
        for seed, value in enumerate(values)
    ]


def compared(shifts: dict[str, float], seed: int) -> dict[tuple[str, str], str]:
    rng = np.random.default_rng(seed)
    common = rng.normal(0.5, 0.12, (PROMPTS, SEEDS))  # prompts and noise make far more of a difference than the LoRA
    sets = {name: pictures(shift, rng, common) for name, shift in shifts.items()}
    found = differences(sets, resamples=400, generator=np.random.default_rng(1))
    return {(one.first, one.second): one.better for one in found if one.measure == "likeness"}


def test_a_small_paired_difference_is_shown_although_pictures_differ_far_more_among_each_other() -> None:
    assert compared({"a": 0.05, "b": 0.0}, 3) == {("a", "b"): "first"}
    assert compared({"a": 0.0, "b": 0.05}, 3) == {("a", "b"): "second"}


def test_equal_sets_are_called_different_in_at_most_5_percent_of_comparisons_of_three() -> None:
    wrong = sum(set(compared(dict.fromkeys("abc", 0.0), seed).values()) != {"not shown"} for seed in range(120))
    assert wrong <= 12  # 6 are expected; 13 and more would be a chance of 1 in 200


def test_all_intervals_of_one_measure_hold_together() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(0.5, 0.1, (PROMPTS, SEEDS))
    sets = {name: pictures(0.0, rng, common) for name in "abcd"}
    found = differences(sets, resamples=300, generator=rng)
    assert {one.confidence for one in found} == {1 - 0.05 / 6}
    assert len([one for one in found if one.measure == "likeness"]) == 6


def test_sets_without_a_common_prompt_are_not_compared() -> None:
    first = [picture(f"test-{number}", 0) for number in range(4)]
    second = [picture(f"other-{number}", 0) for number in range(4)]
    assert differences({"a": first, "b": second}, resamples=300, generator=np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("shift", "said"),
    [(0.05, "a keeps the face better than b: +0.0"), (0.0, "No difference in likeness between a and b")],
)
def test_the_sentence_says_what_the_interval_shows(shift: float, said: str) -> None:
    rng = np.random.default_rng(6)
    common = rng.normal(0.5, 0.1, (PROMPTS, SEEDS))
    sets = {"a": pictures(shift, rng, common), "b": pictures(0.0, rng, common)}
    (likeness,) = [one for one in differences(sets, resamples=400, generator=rng) if one.measure == "likeness"]
    found = sentence(likeness, (same_person(sets["a"]), same_person(sets["b"])))
    assert found.startswith(said) and f"over {PROMPTS * SEEDS} pairs of pictures" in found


@pytest.mark.parametrize(
    ("same", "said"),
    [
        (
            (2, 0),
            "Neither a nor b is the person: 2 of 24 pictures of a and 0 of 24 pictures of b show",
        ),
        ((11, 11), "Neither a nor b is the person: 11 of 24 "),
        ((12, 0), "a keeps the face better than b: +0."),
        ((0, 12), "a keeps the face better than b: +0."),
    ],
)
def test_of_two_sets_that_mostly_show_others_neither_is_said_to_keep_the_face(same: tuple[int, int], said: str) -> None:
    rng = np.random.default_rng(6)
    common = rng.normal(0.2, 0.05, (PROMPTS, SEEDS))
    sets = {
        name: [
            row.model_copy(update={"same": number < passes}) for number, row in enumerate(pictures(shift, rng, common))
        ]
        for name, passes, shift in zip("ab", same, (0.1, 0.0), strict=True)
    }
    by_measure = {one.measure: one for one in differences(sets, resamples=400, generator=rng)}
    likeness = by_measure["likeness"]
    found = sentence(likeness, (same_person(sets["a"]), same_person(sets["b"])))
    kept = max(same) >= PROMPTS * SEEDS / 2
    assert likeness.low is not None and likeness.low > 0 and found.startswith(said)
    assert ("keeps the face" in found) == kept
    assert likeness.better == ("first" if kept else None)
    assert (by_measure["same_person"].better is None) == (not kept)


def test_where_neither_set_is_the_person_the_table_leaves_better_empty_and_still_says_who_follows_prompts(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(6)
    common = rng.normal(0.2, 0.05, (PROMPTS, SEEDS))
    sets = {
        name: [
            row.model_copy(update={"same": False, "second_same": False, "following": following})
            for row in pictures(shift, rng, common)
        ]
        for name, shift, following in (("a", 0.1, 0.75), ("b", 0.0, 0.5))
    }
    write_csv(tmp_path / "differences.csv", differences(sets, resamples=400, generator=rng))
    with (tmp_path / "differences.csv").open(encoding="utf-8", newline="") as file:
        better = {row["measure"]: row["better"] for row in csv.DictReader(file)}
    assert [better[name] for name in ("likeness", "same_person", "second_engine")] == ["", "", ""]
    assert better["following"] == "first" and better["face_found"] == "not shown"
