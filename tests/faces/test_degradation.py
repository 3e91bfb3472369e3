"""Blur, noise and blocks: pictures degraded by a known amount move the right measure in order, clean ones move none."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import skimage.data

from zimage.faces.degradation import blocking, blur, noise
from zimage.photos.pictures import Mask, Picture

MEASURES: dict[str, Callable[[Mask], float]] = {"blur": blur, "noise": noise, "blocking": blocking}
CORNERS = ((0, 96), (0, 0), (100, 100), (256, 200), (40, 256), (200, 0))


def clean() -> list[Picture]:
    """Return parts of a photograph at half of its size, without the traces of its JPEG file."""
    photo = skimage.data.astronaut()
    return [
        np.asarray(cv2.resize(photo[y : y + 256, x : x + 256], (128, 128), interpolation=cv2.INTER_AREA), np.uint8)
        for y, x in CORNERS
    ]


def blurred(picture: Picture, sigma_px: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px), np.uint8)


def noisy(picture: Picture, levels: float) -> Picture:
    noise = np.random.default_rng(0).normal(0, levels, picture.shape[:2])[..., None]
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


def compressed(picture: Picture, quality: float) -> Picture:
    coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def drift(measure: str, change: Callable[[Picture], Picture]) -> float:
    """Return the mean ln of a measure after a change over that before."""
    pairs = [(change(one), one) for one in clean()]
    values = [[MEASURES[measure](cv2.cvtColor(each, cv2.COLOR_RGB2GRAY)) for each in pair] for pair in pairs]  # type: ignore[arg-type]
    return float(np.mean([np.log(after / before) for after, before in values]))


@pytest.mark.parametrize(
    ("measure", "degrade", "amounts"),
    [
        ("blur", blurred, (0.7, 1.0, 2.0)),
        ("noise", noisy, (2, 5, 15)),
        ("blocking", compressed, (90, 60, 30, 10)),
    ],
)
def test_a_measure_rises_with_the_amount_by_which_pictures_were_degraded(
    measure: str, degrade: Callable[[Picture, float], Picture], amounts: tuple[float, ...]
) -> None:
    found = [drift(measure, lambda one, amount=amount: degrade(one, amount)) for amount in amounts]  # type: ignore[misc]
    assert found == sorted(found) and found[0] > 0.05 and found[-1] > 0.5


@pytest.mark.parametrize(
    ("measure", "change"),
    [
        ("blur", lambda one: compressed(one, 60)),
        ("blur", lambda one: np.asarray(one * 0.8, np.uint8)),
        ("blocking", lambda one: blurred(one, 1.0)),
        ("blocking", lambda one: noisy(one, 5)),
        ("blocking", lambda one: np.asarray(one * 0.8, np.uint8)),
        *((measure, lambda one: np.ascontiguousarray(one[:, ::-1])) for measure in MEASURES),
    ],
)
def test_a_measure_is_not_moved_by_what_it_does_not_measure(measure: str, change: Callable[[Picture], Picture]) -> None:
    assert abs(drift(measure, change)) < 0.05


def test_noise_is_told_in_levels() -> None:
    grey = np.asarray(cv2.GaussianBlur(cv2.cvtColor(skimage.data.astronaut(), cv2.COLOR_RGB2GRAY), (0, 0), 3), np.uint8)
    for levels in (3.0, 8.0):
        rng = np.random.default_rng(1)
        assert noise(np.clip(grey + rng.normal(0, levels, grey.shape), 0, 255).round().astype(np.uint8)) == (
            pytest.approx(levels, rel=0.12)
        )


def test_a_picture_of_one_colour_has_values_too() -> None:
    plain = np.full((64, 64), 90, np.uint8)
    assert (blur(plain), noise(plain), blocking(plain)) == (1.0, pytest.approx(12**-0.5), 1.0)
