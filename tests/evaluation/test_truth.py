"""Pictures whose score is known beforehand, judged by the real engine: each must get what it deserves."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest

from tests.evaluation.photos import Picture, nobody, noise, of_another, others, small, twin, views
from zimage.evaluation.figures import Evidence, Figures, figures
from zimage.evaluation.gate import GateParams, Judgement, judge
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.copies import variety
from zimage.evaluation.score.picture import PictureScorer
from zimage.evaluation.score.reals import Reals
from zimage.faces.engine import Engine, Face
from zimage.photos.pictures import read_rgb

TEXT = "a photo of ohzw woman, head and shoulders"
GATE = GateParams(
    face_found_rate_min=0.9, same_person_rate_min=0.7, same_person_rate_low_min=0.5, gain_low_min=0.5,
    second_engine_rate_min=None, clip_drop_max=None, copy_rate_max=0.02, nearest_share_max=None, leak_rise_max=0.1,
    variety_ratio_min=None,
)  # fmt: skip


FOUND: dict[tuple[str, tuple[int, ...], bytes], list[Face]] = {}


def faces_in(picture: Picture, engine: Engine) -> list[Face]:
    """Return the faces in a picture, found once: many tests hand in the same pictures as the base model's."""
    key = engine.info.engine_id, picture.shape, picture.tobytes()
    if key not in FOUND:
        FOUND[key] = engine.find(picture)
    return FOUND[key]


def rows(
    pictures: Sequence[Picture], judge_of: PictureScorer, engine: Engine, weights: str = "lora"
) -> list[PictureRow]:
    """Score pictures as if they had been generated, two for each prompt."""
    info = judge_of.targets.info
    return [
        PictureRow(
            **judge_of.scored(picture, [faces_in(picture, engine)], TEXT, "en").model_dump(),
            file=f"pictures/{number}.png",
            prompt=f"prompt {number // 2}",
            kind="likeness",
            aspect="frontal",
            language="en",
            half="test",
            seed=number % 2,
            weights=weights,  # type: ignore[arg-type]
            checkpoint=None,
            strength=1.0,
            text=TEXT,
            engine=info.engine_id,
            threshold=info.threshold,
            second_engine=None,
        )
        for number, picture in enumerate(pictures)
    ]


@pytest.fixture(scope="session")
def strangers() -> list[Picture]:
    """What a base model without the LoRA draws: other people."""
    return small(others())


def judged(
    pictures: Sequence[Picture], strangers: Sequence[Picture], judge_of: PictureScorer, engine: Engine
) -> tuple[Figures, Judgement]:
    """Return the figures and the verdict of pictures handed in as a LoRA's, beside strangers as the base model's."""
    evidence = Evidence(
        lora=rows(pictures, judge_of, engine),
        base=rows(strangers, judge_of, engine, "base"),
        leaks=[],
        base_leaks=[],
        variety=by_pair(pictures),
        base_variety=by_pair(strangers),
        ceiling=judge_of.targets.ceiling(),
        sessions=[],
    )
    found = figures(evidence, copy_correlation=0.95, resamples=500, generator=np.random.default_rng(0))
    return found, judge(found, GATE, embedded=True)


def by_pair(pictures: Sequence[Picture]) -> dict[str, dict[tuple[int, int], float]]:
    """Return how unlike each other pictures are, as if all were of one prompt."""
    return {"prompt": dict(zip(combinations(range(len(pictures)), 2), variety(pictures), strict=True))}


def broken(judgement: Judgement) -> set[str]:
    return {rule.name for rule in judgement.rules if rule.verdict == "fail"}


def test_new_views_of_the_person_are_the_person_and_no_copies(
    judge: PictureScorer, engine: Engine, strangers: list[Picture]
) -> None:
    pictures = small(views(12, seed=77))
    found, judgement = judged(pictures, strangers, judge, engine)
    assert found.face_found.value == found.same_of_all.value == 1
    assert found.gain.value == pytest.approx(1, abs=0.15)
    assert broken(judgement) <= {"copy_rate_max"}  # views of one photograph are near to each other


def test_training_photos_handed_in_as_if_generated_score_full_marks_and_fail_as_copies(
    judge: PictureScorer, engine: Engine, reals: Reals, strangers: list[Picture]
) -> None:
    pictures = small([read_rgb(path) for path in reals.crops.values()])
    found, judgement = judged(pictures, strangers, judge, engine)
    assert found.same_of_all.value == found.copied.value == 1
    assert found.gain.value == pytest.approx(1, abs=0.02)
    assert (judgement.verdict, broken(judgement)) == ("fail", {"copy_rate_max"})


def test_another_subjects_lora_draws_one_person_well_and_scores_nothing_against_this_one(
    judge: PictureScorer, engine: Engine, strangers: list[Picture]
) -> None:
    pictures = small(of_another(12, seed=9))
    faces = [engine.find(picture)[0] for picture in pictures]
    assert all(engine.same_person(faces[0], face) for face in faces)  # to them it is a perfect LoRA
    found, judgement = judged(pictures, strangers, judge, engine)
    assert (found.face_found.value, found.same_of_all.value, found.copied.value) == (1, 0, 0)
    assert found.gain.value == pytest.approx(0, abs=0.2)
    assert judgement.verdict == "fail"
    assert {"same_person_rate_min", "same_person_rate_low_min", "gain_low_min"} <= broken(judgement)


def test_a_lora_at_strength_0_draws_what_the_base_model_draws_and_gains_exactly_nothing(
    judge: PictureScorer, engine: Engine, strangers: list[Picture]
) -> None:
    found, judgement = judged(strangers, strangers, judge, engine)
    assert found.gain.value == pytest.approx(0, abs=1e-6)
    assert found.gain.low is not None and found.gain.low <= 0
    assert found.same_of_all == found.base_same_of_all and found.variety_ratio.value == 1
    assert {"same_person_rate_min", "gain_low_min"} <= broken(judgement)


def test_a_base_model_that_draws_the_person_by_itself_leaves_nothing_to_gain(
    judge: PictureScorer, engine: Engine
) -> None:
    pictures = small(views(8, seed=77))
    found, judgement = judged(pictures, pictures, judge, engine)
    assert found.same_of_all.value == found.base_same_of_all.value == 1
    assert found.gain.value is None or found.gain.value == pytest.approx(0, abs=1e-6)
    assert judgement.verdict != "pass"


@pytest.mark.parametrize("pictures", [small(noise(6, seed=3)), small(nobody())], ids=["noise", "no people"])
def test_pictures_without_a_face_are_failures_and_not_gaps(
    pictures: list[Picture], judge: PictureScorer, engine: Engine, strangers: list[Picture]
) -> None:
    found, judgement = judged(pictures, strangers, judge, engine)
    assert found.face_found.value == found.same_of_all.value == found.gain.value == 0
    assert found.same_of_all.n == found.gain.n == len(pictures)
    assert {"face_found_rate_min", "same_person_rate_min", "gain_low_min"} <= broken(judgement)


def test_pictures_without_a_face_pull_the_score_of_the_others_down(
    judge: PictureScorer, engine: Engine, strangers: list[Picture]
) -> None:
    good = small(views(6, seed=77))
    alone, _ = judged(good, strangers, judge, engine)
    diluted, _ = judged([*good, *small(noise(6, seed=3))], strangers, judge, engine)
    assert diluted.same_of_found.value == 1 and diluted.same_of_all.value == 0.5
    assert diluted.gain.value == pytest.approx(alone.gain.value / 2)  # type: ignore[operator]


def test_a_look_alike_scores_worse_the_less_alike_and_is_told_apart_in_the_end(
    judge: PictureScorer, engine: Engine
) -> None:
    amounts = (0.0, 0.05, 0.1, 0.2, 0.3)
    scored = rows([twin(amount) for amount in amounts], judge, engine)
    distances = [row.distance for row in scored]
    assert distances == sorted(distances)  # type: ignore[type-var]
    assert [row.same for row in scored] == [True, True, True, False, False]


def test_two_faces_of_the_person_in_one_picture_are_counted(judge: PictureScorer, engine: Engine) -> None:
    one, two = views(2, seed=5)
    (row,) = rows([np.concatenate([one, two], axis=1)], judge, engine)
    assert (row.faces, row.matching_faces) == (2, 2)
    (row,) = rows([np.concatenate([one, others()[0]], axis=1)], judge, engine)
    assert (row.faces, row.matching_faces) == (2, 1)


def test_the_nearest_training_photo_of_a_training_photo_is_itself(
    judge: PictureScorer, engine: Engine, reals: Reals
) -> None:
    scored = rows(small([read_rgb(real.file) for real in reals.training]), judge, engine)
    assert [row.nearest_photo for row in scored] == [real.photo for real in reals.training]
    assert max(row.nearest_distance for row in scored) < 0.05  # type: ignore[type-var]


def test_one_training_photo_drawn_again_and_again_is_told_as_such(
    judge: PictureScorer, engine: Engine, reals: Reals, strangers: list[Picture]
) -> None:
    again = small([read_rgb(reals.training[0].file)] * 6)
    found, _ = judged(again, strangers, judge, engine)
    assert (found.nearest_share.value, found.variety.value) == (1, pytest.approx(0, abs=1e-5))
    spread, _ = judged(small([read_rgb(real.file) for real in reals.training]), strangers, judge, engine)
    assert spread.nearest_share.value == pytest.approx(1 / len(reals.training))
