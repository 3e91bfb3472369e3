"""Prompts in free words: pictures made to have a property, and made to lack it."""

import cv2
import numpy as np
import pytest

from tests.evaluation.photos import DLIB, Picture, nobody, others, turned, views
from zimage.captions.template import Language
from zimage.evaluation.generate.suite import read_suite, without_trigger
from zimage.evaluation.hidden import SAYS_PROPERTY
from zimage.evaluation.score.properties import NAMES, named_in, properties
from zimage.faces.engine import Engine, open_engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine(DLIB)


def far(times: float) -> Picture:
    """Return the portrait in a picture that is so many times as large, on grey above a black body."""
    portrait = views(1, seed=3)[0]
    side = round(256 * times)
    made = np.full((side, side, 3), 128, np.uint8)
    left = (side - 256) // 2
    made[round(256 * (times - 1) * 0.3) :, left : left + 256] = 0
    made[round(256 * (times - 1) * 0.3) :][:256, left : left + 256] = portrait
    return made


def before(colour_rgb: tuple[int, int, int]) -> Picture:
    """Return the portrait before a wall of one colour."""
    return np.asarray(
        cv2.copyMakeBorder(views(1, seed=3)[0], 128, 0, 128, 128, cv2.BORDER_CONSTANT, value=colour_rgb), np.uint8
    )


def two() -> Picture:
    return np.concatenate([views(1, seed=5)[0], others()[0]], axis=1)


def grey(picture: Picture) -> Picture:
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def dim(picture: Picture) -> Picture:
    return np.asarray(picture * 0.3, np.uint8)


ONE = views(1, seed=3)[0]


@pytest.mark.parametrize(
    ("name", "text", "with_it", "without_it"),
    [
        ("framing", "a woman, close-up, laughing", ONE[50:200, 55:205], far(2)),
        ("framing", "a woman, head and shoulders, a smile", far(1.2), far(4)),
        ("framing", "a woman, half body, in a kitchen", far(3), ONE[50:200, 55:205]),
        ("framing", "一张女人的照片，全身像，站在沙滩上", far(6), far(1.2)),
        ("view", "a woman in profile facing the left, a turtleneck", others()[5], others()[5][:, ::-1]),
        ("view", "a woman, three-quarter view facing the right, outside", turned(30), turned(-30)),
        ("view", "一张女人的照片，侧面朝右，深色外套", others()[5][:, ::-1], ONE),
        ("view", "a woman facing the camera, a white shirt", ONE, others()[5]),
        ("light", "a woman at night on a street", dim(ONE), ONE),
        ("light", "a woman in a kitchen, bright morning light", far(2), dim(ONE)),
        ("black_and_white", "a black-and-white photo of a woman at a window", grey(ONE), ONE),
        ("background", "a woman with a book, plain red background", before((205, 40, 40)), before((50, 95, 190))),
        ("background", "一张女人的照片，读书，浅蓝色背景", before((155, 195, 235)), before((128, 128, 128))),
        ("two_people", "a woman and a man sitting side by side", two(), ONE),
    ],
)
def test_a_property_is_found_in_a_picture_that_was_made_with_it_and_missed_in_one_without(
    name: str, text: str, with_it: Picture, without_it: Picture, engine: Engine
) -> None:
    language: Language = "en" if text.isascii() else "zh"
    for picture, expected in ((with_it, True), (without_it, False)):
        whole = np.ascontiguousarray(picture)
        assert properties(text, whole, engine.find(whole), language) == {name: expected}


def test_what_cannot_be_seen_is_not_counted_and_a_missing_face_has_no_framing() -> None:
    text = "a woman in profile, head and shoulders, a turtleneck, dark grey background"
    assert properties(text, nobody()[0], [], "en") == {"framing": False}


def test_prompts_in_the_template_s_words_and_those_that_name_nothing_are_left_out(engine: Engine) -> None:
    for text in ("a photo of a woman, head and shoulders, head upright", "a woman dances", "bright red shoes", ""):
        assert properties(text, ONE, engine.find(ONE), "en") == {}


def test_most_prompts_of_the_full_suite_name_something_that_can_be_measured() -> None:
    named = {prompt.id: named_in(without_trigger(prompt, "woman"), prompt.language) for prompt in read_suite("full")}
    counts = {name: sum(name in each for each in named.values()) for name in NAMES}
    assert counts == {"framing": 31, "view": 9, "light": 7, "black_and_white": 0, "background": 8, "two_people": 3}
    assert set(NAMES) == set(SAYS_PROPERTY) and len(named) == 32
