import itertools
import re
from dataclasses import replace

import pytest

from zimage.captions.leaks import Leaks, without_leaks
from zimage.captions.measure import Measured
from zimage.captions.sentence import LEAST_WORDS, MOST_WORDS, count_words
from zimage.captions.template import COLOURS, Language, colour_of, describe

PLAIN = Measured(
    framing=0.3,
    below=0.5,
    yaw_deg=0,
    roll_deg=0,
    face_luma=0.5,
    chroma=0.2,
    warmth=0.2,
    background_rgb=(128, 128, 128),
    plain=True,
)


def every_caption(trigger: str, language: Language) -> set[str]:
    backgrounds = [rgb for rgb, _ in COLOURS]
    measures = [
        *itertools.product((0.01, 0.1, 0.3, 0.6), (None, 0, -20, 40, -80), (None, 0, 20), (0.1, 0.4, 0.8), (0, 0.2)),
    ]
    captions = {
        describe(
            Measured(framing, 0.5, *four, warmth, None, False), trigger=trigger, class_noun="woman", language=language
        )
        for framing, *four in measures
        for warmth in (-0.3, 0, 0.3)
    }
    return captions | {
        describe(replace(PLAIN, background_rgb=rgb), trigger=trigger, class_noun="woman", language=language)
        for rgb in backgrounds
    }


def test_a_caption_names_trigger_and_class_first_then_what_was_measured() -> None:
    assert describe(PLAIN, trigger="ohzw", class_noun="woman", language="en") == (
        "a photo of ohzw woman, head and shoulders, seen from the front, head upright, the face in medium light, "
        "in warm colours, with a grey background"
    )
    assert describe(PLAIN, trigger="ohzw", class_noun="woman", language="zh") == (
        "一张 ohzw 女人的照片，头部和肩膀，正面朝向镜头，头部端正，面部光线适中，暖色调，灰色背景"
    )


def test_without_a_trigger_a_caption_names_any_member_of_the_class() -> None:
    assert describe(PLAIN, trigger="", class_noun="man", language="en").startswith("a photo of a man, head")
    assert describe(PLAIN, trigger="", class_noun="person", language="zh").startswith("一张人的照片，")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("trigger", ["", "ohzw"])
def test_every_caption_has_20_to_60_words(trigger: str, language: Language) -> None:
    counts = {count_words(caption, language) for caption in every_caption(trigger, language)}
    assert min(counts) >= LEAST_WORDS
    assert max(counts) <= MOST_WORDS


def test_the_vocabulary_is_closed_and_small() -> None:
    words = {word for caption in every_caption("", "en") for word in re.findall(r"[\w-]+", caption)}
    assert len(words) < 90


@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_caption_of_the_template_tells_the_identity(language: Language, leaks: Leaks) -> None:
    for caption in every_caption("ohzw", language):
        cleaned = without_leaks(caption, leaks, class_noun="woman", language=language)
        assert (cleaned.caption, cleaned.rewrites) == (caption, [])


def test_what_was_not_measured_is_not_said() -> None:
    measured = replace(PLAIN, framing=0.6, yaw_deg=None, roll_deg=None, background_rgb=None)
    caption = describe(measured, trigger="", class_noun="woman", language="en")
    assert "head " not in caption and "facing" not in caption and "seen" not in caption
    assert caption.endswith("with no background visible")


def test_a_background_of_many_colours_gets_no_colour_word() -> None:
    caption = describe(replace(PLAIN, plain=False), trigger="", class_noun="woman", language="en")
    assert caption.endswith(", in warm colours")


@pytest.mark.parametrize(
    ("framing", "below", "said"),
    [(0.45, 0.5, "close-up of the face"), (0.45, 1.2, "head and shoulders"), (0.2, 1.2, "head and shoulders"),
     (0.1, 3.0, "half body portrait")],
)  # fmt: skip
def test_a_close_up_is_a_large_face_without_a_chest_below_it(framing: float, below: float, said: str) -> None:
    measured = replace(PLAIN, framing=framing, below=below)
    assert f", {said}, " in describe(measured, trigger="", class_noun="woman", language="en")


@pytest.mark.parametrize(
    ("yaw_deg", "said"),
    [(5, "seen from the front"), (-15, "turned slightly to the left"), (40, "three-quarter view facing the right"),
     (-75, "profile facing the left")],
)  # fmt: skip
def test_the_view_follows_the_yaw_and_its_side(yaw_deg: float, said: str) -> None:
    measured = replace(PLAIN, yaw_deg=yaw_deg)
    assert f", {said}, " in describe(measured, trigger="", class_noun="woman", language="en")


def test_a_picture_without_colour_is_called_black_and_white_whatever_its_warmth() -> None:
    measured = replace(PLAIN, chroma=0.01, warmth=0.3)
    assert "in black and white, with a grey" in describe(measured, trigger="", class_noun="woman", language="en")


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        ((0, 0, 0), "a black"),
        ((60, 62, 64), "a dark grey"),
        ((255, 255, 255), "a white"),
        ((30, 40, 100), "a dark blue"),
        ((170, 200, 230), "a light blue"),
        ((200, 60, 50), "a red"),
        ((90, 60, 40), "a brown"),
        ((240, 150, 60), "an orange"),
    ],
)
def test_a_background_gets_the_nearest_colour_word(rgb: tuple[int, int, int], word: str) -> None:
    assert colour_of(rgb).en == word
