import numpy as np
import skimage.data

from zimage.captions.measure import measure
from zimage.captions.template import describe
from zimage.evaluation.score.following import template_following
from zimage.faces.engine import Engine, Face


def portrait(engine: Engine) -> tuple[np.ndarray, Face]:  # type: ignore[type-arg]
    picture = skimage.data.astronaut()[:256, 96:352]
    return picture, engine.find(picture)[0]


def test_a_picture_that_shows_what_was_asked_follows_wholly_and_each_miss_costs_its_share(engine: Engine) -> None:
    picture, face = portrait(engine)
    measured = measure(picture, face.box_xyxy, yaw_deg=face.yaw_deg, roll_deg=face.roll_deg)
    for language in ("en", "zh"):
        asked = describe(measured, trigger="ohzw", class_noun="woman", language=language)  # type: ignore[arg-type]
        assert template_following(asked, picture, face, language) == 1  # type: ignore[arg-type]
    asked = describe(measured, trigger="ohzw", class_noun="woman", language="en")
    phrases = asked.split(", ")
    wrong = ", ".join([*phrases[:-1], "with a purple background"])
    assert template_following(wrong, picture, face, "en") == 1 - 1 / (len(phrases) - 1)


def test_without_a_face_nothing_was_followed(engine: Engine) -> None:
    picture, _ = portrait(engine)
    assert template_following("a photo of ohzw woman, head upright", picture, None, "en") == 0


def test_prompts_in_free_words_are_not_measured_this_way(engine: Engine) -> None:
    picture, face = portrait(engine)
    assert template_following("a photo of ohzw woman, dancing in the rain", picture, face, "en") is None
