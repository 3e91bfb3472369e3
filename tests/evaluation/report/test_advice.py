"""What is said of a failed verdict: the likely cause, and a step that somebody can take."""

from dataclasses import fields, replace

import numpy as np
import pytest

from tests.evaluation.photos import of_another, others, small, views
from zimage.evaluation.figures import Figures
from zimage.evaluation.gate import RULES
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.report.advice import ONE_PICTURE, Trained, advice, spread_of
from zimage.evaluation.score.likeness import targets_of
from zimage.faces.engine import Engine

GOOD = Estimate(0.9, 0.85, 0.95, 48)
FOUND = Figures(**{field.name: GOOD for field in fields(Figures) if field.name != "leaks"}, leaks={})
TRAINED = Trained(steps=2400, photos=24, spread=0.6, last_is_best=False)


@pytest.mark.parametrize(
    ("broken", "trained", "said"),
    [
        ({"same_person_rate_min"}, replace(TRAINED, steps=150), "Only 150 steps were trained; train with `--steps"),
        ({"gain_low_min"}, replace(TRAINED, last_is_best=True), "The last checkpoint, of step 2400, is the best"),
        ({"same_person_rate_low_min"}, replace(TRAINED, photos=9), "Only 9 photos were trained on; add photos"),
        ({"copy_rate_max"}, replace(TRAINED, photos=20, spread=0.2), "The 20 training photos are nearly one"),
        ({"copy_rate_max"}, TRAINED, "train fewer `--steps` than 2400, or a lower `--rank`"),
        ({"variety_ratio_min"}, TRAINED, "train fewer `--steps` than 2400"),
        ({"leak_rise_max"}, TRAINED, "train with prior preservation (train.prior_preservation)"),
        ({"face_found_rate_min"}, TRAINED, "The LoRA spoils faces that the base model draws; train with"),
        ({"second_engine_rate_min"}, TRAINED, "The two face engines disagree"),
        ({"same_person_rate_min"}, TRAINED, "No usual cause was found; look at the worst pictures in the report"),
    ],
)  # fmt: skip
def test_the_likely_cause_and_the_next_step_are_named(broken: set[str], trained: Trained, said: str) -> None:
    assert said in " ".join(advice(broken, FOUND, trained))


def test_where_the_base_model_draws_no_faces_the_lora_is_not_blamed() -> None:
    found = replace(FOUND, base_face_found=Estimate(3 / 24, 0.04, 0.3, 24))
    said = advice({"face_found_rate_min"}, found, TRAINED)
    assert said == [
        "The base model itself draws a face in 3 of 24 pictures only; check evaluate.sampling (size, steps, guidance) "
        "against its model card."
    ]


def test_a_verdict_that_did_not_fail_needs_no_advice() -> None:
    assert advice(set(), FOUND, replace(TRAINED, steps=1, photos=1)) == []


@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_every_broken_rule_leads_to_something_to_do(rule: str) -> None:
    assert advice({rule}, FOUND, TRAINED)


def test_views_of_one_photo_are_told_from_photos_of_different_faces(engine: Engine) -> None:
    def spread(pictures: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> float:
        photos = [(str(number), engine.find(picture)) for number, picture in enumerate(pictures)]
        found = spread_of(targets_of(engine.info, photos, photos))
        assert found is not None
        return found

    assert spread(small(views(8, seed=1))) < ONE_PICTURE / 1.5
    assert spread(small(of_another(8, seed=1))) < ONE_PICTURE
    assert spread(small(others())) > 1
