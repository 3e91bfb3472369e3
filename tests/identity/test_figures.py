import numpy as np
import pytest

from zimage.identity.figures import gain
from zimage.identity.intervals import Estimate
from zimage.identity.rows import PictureRow

CEILING = np.array([0.2, 0.2], np.float32)


def row(prompt: int, distance: float | None) -> PictureRow:
    """A picture of which only prompt and distance matter here."""
    return PictureRow(
        faces=int(distance is not None), distance=distance, median_distance=distance, same=False, closeness=0.0,
        matching_faces=0, nearest_photo=None, nearest_distance=None, copy_of=None, likeness_to_copy=0.0, yaw_deg=None,
        second_distance=None, second_same=None, following=None, clip=None, file="", prompt=str(prompt),
        kind="likeness", aspect="frontal", language="en", half="reporting", seed=0, weights="lora", checkpoint=None,
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
