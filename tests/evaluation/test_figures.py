import csv
from pathlib import Path

import numpy as np
import pytest

from zimage.evaluation.figures import Evidence, Figures, figures, gain
from zimage.evaluation.hidden import by_property, properties_found
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.rows import PictureRow, Scored, read_csv, write_csv

CEILING = np.array([0.2, 0.2], np.float32)


def row(prompt: int, distance: float | None) -> PictureRow:
    """A picture of which only prompt and distance matter here."""
    return PictureRow(
        faces=int(distance is not None), distance=distance, median_distance=distance, same=False, closeness=0.0,
        matching_faces=0, nearest_photo=None, nearest_distance=None, copy_of=None, likeness_to_copy=0.0, yaw_deg=None,
        second_distance=None, second_same=None, following=None, clip=None, file="", prompt=str(prompt),
        kind="likeness", aspect="frontal", language="en", half="test", seed=0, weights="lora", checkpoint=None,
        strength=1.0, text="", engine="", threshold=0.6, second_engine=None,
    )  # fmt: skip


def gained(lora: list[float | None], base: list[float | None]) -> Estimate:
    groups = [[[row(prompt, distance)] for prompt, distance in enumerate(one)] for one in (lora, base)]
    return gain(groups[0], groups[1], CEILING, resamples=1000, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("lora", "value"),
    [([0.8] * 6, 0.0), ([0.2] * 6, 1.0), ([0.5] * 6, 0.5), ([0.2] * 3 + [None] * 3, 0.5), ([None] * 6, 0.0)],
)
def test_gain_is_0_at_the_base_model_1_at_real_photos_and_0_for_a_picture_without_a_face(
    lora: list[float | None], value: float
) -> None:
    assert gained(lora, [0.8] * 6).value == pytest.approx(value, abs=1e-6)


def test_the_interval_of_a_gain_holds_the_doubt_about_the_floor() -> None:
    sure = gained([0.4, 0.5] * 6, [0.8] * 12)
    doubtful = gained([0.4, 0.5] * 6, [0.5, 1.1] * 6)
    assert sure.low is not None and sure.high is not None and doubtful.low is not None and doubtful.high is not None
    assert doubtful.high - doubtful.low > 1.5 * (sure.high - sure.low)


def test_a_floor_of_two_faces_in_a_dozen_pictures_gives_a_gain_without_an_interval() -> None:
    estimate = gained([0.4, 0.5] * 6, [0.7, 0.8, *[None] * 10])
    assert estimate.value is not None
    assert (estimate.low, estimate.high) == (None, None)


@pytest.mark.parametrize("base", [[None] * 6, [0.15] * 6])
def test_without_a_floor_above_the_ceiling_there_is_no_gain(base: list[float | None]) -> None:
    assert gained([0.4] * 6, base).value is None


def picture(
    prompt: str, seed: int, *, clip: float | None = None, matching: int = 0, kind: str = "likeness"
) -> PictureRow:
    """A picture that agrees with its prompt by `clip`, with that many faces of the subject."""
    change = {"prompt": prompt, "seed": seed, "clip": clip, "matching_faces": matching, "kind": kind}
    return row(0, 0.3).model_copy(update=change)


def figures_of(**evidence: object) -> Figures:
    of_nothing = {"lora": [], "base": [], "leaks": [], "base_leaks": [], "variety": {}, "base_variety": {}}
    all_of_it = Evidence(**{**of_nothing, **evidence}, ceiling=CEILING, sessions=["shared", "apart", "unknown", None])  # type: ignore[arg-type]
    return figures(all_of_it, copy_correlation=0.95, resamples=1000, generator=np.random.default_rng(0))


def test_clip_drop_compares_the_same_prompts_and_seeds_and_ignores_what_only_the_base_model_drew() -> None:
    agreements = {f"test-{number}": 0.2 + number / 100 for number in range(6)}
    lora = [picture(prompt, seed, clip=agreement) for prompt, agreement in agreements.items() for seed in range(4)]
    base = [picture(prompt, 0, clip=agreement) for prompt, agreement in agreements.items()]
    harder = [picture(f"selection-{number}", 0, clip=0.05) for number in range(6)]

    assert figures_of(lora=lora, base=[*base, *harder]).clip_drop == Estimate(0.0, 0.0, 0.0, 6)


def test_clip_drop_has_an_interval_much_narrower_than_that_of_the_agreements() -> None:
    agreements = {f"p-{number}": 0.1 + number / 20 for number in range(8)}
    base = [picture(prompt, 0, clip=agreement) for prompt, agreement in agreements.items()]
    lora = [
        picture(prompt, 0, clip=agreement - 0.02 - n % 2 / 100)
        for n, (prompt, agreement) in enumerate(agreements.items())
    ]

    found = figures_of(lora=lora, base=base)

    drop, of_lora = found.clip_drop, found.clip
    assert drop.value == pytest.approx(0.025) and drop.low is not None and drop.high is not None
    assert 0.02 <= drop.low < 0.025 < drop.high <= 0.03
    assert of_lora.low is not None and of_lora.high is not None and of_lora.high - of_lora.low > 0.1


def test_variety_ratio_compares_the_same_pairs_of_pictures_and_has_an_interval() -> None:
    prompts = [f"p-{number}" for number in range(6)]
    lora = {prompt: {(0, 1): 0.2 + n / 50, (0, 2): 0.9, (1, 2): 0.9} for n, prompt in enumerate(prompts)}
    base = {prompt: {(0, 1): 0.2 + n / 50} for n, prompt in enumerate(prompts)}
    base |= {f"selection-{n}": {(0, 1): 1.5} for n in range(6)}

    assert figures_of(variety=lora, base_variety=base).variety_ratio == Estimate(1.0, 1.0, 1.0, 6)
    half = {prompt: {(0, 1): 0.5 * pairs[0, 1] + n % 2 / 50} for n, (prompt, pairs) in enumerate(base.items())}
    ratio = figures_of(variety=half, base_variety=base).variety_ratio
    assert ratio.low is not None and ratio.high is not None and ratio.value is not None
    assert 0.4 < ratio.low < ratio.value < ratio.high < 0.7


@pytest.mark.parametrize("base", [{}, {"p-0": {}}, {"p-0": {(0, 1): 0.0}}])
def test_variety_without_a_pair_of_the_base_models_that_varies_is_not_measured(
    base: dict[str, dict[tuple[int, int], float]],
) -> None:
    assert figures_of(variety={"p-0": {(0, 1): 0.5}}, base_variety=base).variety_ratio.value is None


def test_leaks_are_compared_with_the_base_models_pictures_of_the_same_prompts() -> None:
    leaks = [picture(f"class-{n}", 0, matching=1, kind="leak_class") for n in range(3)]
    resembling = [picture(f"class-{n}", 0, matching=int(n > 0), kind="leak_class") for n in range(3)]
    far = [picture(f"p-{n}", 0, matching=0) for n in range(12)]

    rise = figures_of(leaks=leaks, base=far, base_leaks=resembling).leak_rise
    assert (rise.value, rise.n) == (pytest.approx(1 / 3), 3)
    assert rise.low is not None and rise.high is not None and rise.low < 0 < rise.high < 1


def test_of_the_kinds_of_leak_prompts_the_one_that_rose_most_counts() -> None:
    leaks = [picture(f"class-{n}", 0, matching=1, kind="leak_class") for n in range(4)]
    leaks += [picture(f"two-{n}", 0, matching=1 + n % 2, kind="leak_two") for n in range(4)]
    base = [one.model_copy(update={"matching_faces": int(one.kind == "leak_class")}) for one in leaks]

    assert figures_of(leaks=leaks, base_leaks=base).leak_rise.value == 0.5


def test_the_share_of_held_out_photos_from_a_session_that_was_trained_on_counts_all_of_them() -> None:
    assert figures_of().shared_session == Estimate(0.25, None, None, 4)


def test_properties_that_prompts_name_are_counted_over_all_and_by_kind() -> None:
    named = [("framing view", "framing"), ("framing", ""), ("", ""), ("view", "view")]
    groups = [
        [row(number, 0.3).model_copy(update={"properties": asked, "properties_found": found})]
        for number, (asked, found) in enumerate(named)
    ]
    of_all = properties_found(groups)
    assert (of_all.value, of_all.n) == (0.5, 4)
    assert {name: (one.value, one.n) for name, one in by_property(groups).items()} == {
        "framing": (0.5, 2),
        "view": (0.5, 2),
    }
    assert properties_found([[row(0, 0.3)]]).value is None and by_property([[row(0, 0.3)]]) == {}


def test_a_table_of_scores_from_before_a_measure_was_added_is_read(tmp_path: Path) -> None:
    rows = [row(0, 0.3)]
    write_csv(tmp_path / "scores.csv", rows)
    later = {name for name, field in Scored.model_fields.items() if not field.is_required()}
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        (line,) = csv.DictReader(file)
    with (tmp_path / "old.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [name for name in line if name not in later], extrasaction="ignore")
        writer.writeheader()
        writer.writerow(line)
    assert {"properties", "blur", "contrast"} <= later
    assert read_csv(tmp_path / "old.csv") == rows
