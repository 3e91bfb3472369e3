"""What likeness hides, on pictures whose answer is known: unchanged, changed by a known amount, training photos."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.evaluation.photos import DLIB, Picture, noise, of_another, others, small, turned, views
from tests.evaluation.report.test_coaching import drawn_apart
from tests.evaluation.test_truth import rows
from zimage.evaluation.figures import Evidence, Figures, figures
from zimage.evaluation.hidden import DEGRADATIONS, LOOKS, degraded, overcooked, second_person
from zimage.evaluation.score.impostors import impostors
from zimage.evaluation.score.likeness import targets_of
from zimage.evaluation.score.picture import PictureScorer, Search
from zimage.evaluation.score.reals import Reals
from zimage.faces.engine import Engine, EngineParams, Face, open_engine
from zimage.faces.engine_defaults import EMBEDDED
from zimage.faces.looks import Looks, looks_of
from zimage.photos.pictures import read_rgb


@pytest.fixture(scope="module")
def scorer(judge: PictureScorer) -> PictureScorer:
    """The person among eight other people."""
    with Search([DLIB]) as search:
        return replace(judge, gallery=impostors(search, [judge.targets], side_px=128).gallery)


@pytest.fixture(scope="module")
def photos(reals: Reals) -> list[Looks]:
    with Search([DLIB]) as search:
        return reals.looks(search, 128)


def measured(
    pictures: Sequence[Picture],
    base: Sequence[Picture],
    scorer: PictureScorer,
    engine: Engine,
    photos: Sequence[Looks] = (),
) -> Figures:
    """Return the figures of pictures handed in as a LoRA's, beside those of a base of the same prompts and seeds."""
    evidence = Evidence(
        lora=rows(pictures, scorer, engine), base=rows(base, scorer, engine, "base"), leaks=[], base_leaks=[],
        variety={}, base_variety={}, ceiling=scorer.targets.ceiling(), sessions=[], photos=photos,
    )  # fmt: skip
    return figures(evidence, copy_correlation=0.95, resamples=500, generator=np.random.default_rng(0))


def faint(count: int, seed: int) -> list[Picture]:
    """Return views of the person with half of the contrast, so that nothing is clipped when it rises."""
    return [np.clip(64 + 0.5 * picture.astype(float), 0, 255).astype(np.uint8) for picture in small(views(count, seed))]


def harder(picture: Picture, factor: float) -> Picture:
    grey = float(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).mean())
    return np.clip((picture.astype(float) - grey) * factor + grey, 0, 255).round().astype(np.uint8)


def more_colourful(picture: Picture, factor: float) -> Picture:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None].astype(float)
    return np.clip((picture - grey) * factor + grey, 0, 255).round().astype(np.uint8)


def sharper(picture: Picture) -> Picture:
    soft = cv2.GaussianBlur(picture, (0, 0), 1.5).astype(float)
    return np.clip(picture + 1.5 * (picture - soft), 0, 255).round().astype(np.uint8)


def test_strength_0_changes_nothing_at_all(scorer: PictureScorer, engine: Engine) -> None:
    pictures = small(others())
    found = measured(pictures, pictures, scorer, engine)
    assert all(found.drifts[look].value == 0 and found.drifts[look].low == 0 for look in LOOKS)
    assert all(found.degradations[look].value == 0 and found.degradations[look].low == 0 for look in DEGRADATIONS)
    assert found.pose_variety_ratio.value == found.light_variety_ratio.value == 1
    assert found.ranked_first == found.base_ranked_first


@pytest.mark.parametrize("factor", [1.15, 1.4])
def test_pictures_that_are_overcooked_by_a_known_amount_drift_by_that_amount(
    factor: float, scorer: PictureScorer, engine: Engine
) -> None:
    base = faint(8, seed=3)
    hard = measured([harder(one, factor) for one in base], base, scorer, engine).drifts["contrast"]
    assert hard.value == pytest.approx(np.log(factor), abs=0.02)
    assert hard.low is not None and hard.high is not None and 0 < hard.low <= hard.value <= hard.high
    colourful = measured([more_colourful(one, factor) for one in base], base, scorer, engine)
    assert colourful.drifts["saturation"].value == pytest.approx(np.log(factor), abs=0.03)
    assert colourful.drifts["contrast"].value == pytest.approx(0, abs=0.02)


def test_skin_that_is_sharpened_or_smoothed_is_told_apart_from_contrast(scorer: PictureScorer, engine: Engine) -> None:
    base = faint(8, seed=3)
    drifts = {
        name: measured([change(one) for one in base], base, scorer, engine).drifts["skin"]
        for name, change in {
            "sharper": sharper,
            "smoother": lambda one: cv2.GaussianBlur(one, (0, 0), 1.5),
            "harder": lambda one: harder(one, 1.3),
        }.items()
    }
    assert drifts["sharper"].low is not None and drifts["sharper"].low > 0.3
    assert drifts["smoother"].high is not None and drifts["smoother"].high < -0.3
    assert drifts["harder"].value == pytest.approx(0, abs=0.1)


def test_only_what_is_beyond_the_base_and_the_photos_is_called_overcooked(
    scorer: PictureScorer, engine: Engine, photos: list[Looks]
) -> None:
    base = faint(8, seed=3)
    towards = measured(small(views(8, seed=3)), base, scorer, engine, photos)
    assert (towards.drifts["contrast"].low or 0) > 0  # twice the base's contrast, and just the photos'
    assert not any(said.startswith("Contrast") for said in overcooked(towards.drifts, towards.drifts_from_photos))
    beyond = measured([harder(one, 1.6) for one in small(views(8, seed=3))], base, scorer, engine, photos)
    (said,) = [one for one in overcooked(beyond.drifts, beyond.drifts_from_photos) if one.startswith("Contrast")]
    assert "above the base model's pictures and" in said and "above real photos" in said


def test_blurred_pictures_are_named_where_they_are_worse_than_the_base_and_than_photos(
    scorer: PictureScorer, engine: Engine, photos: list[Looks]
) -> None:
    base = small(views(8, seed=3))
    found = measured([cv2.GaussianBlur(one, (0, 0), 1.0) for one in base], base, scorer, engine, photos)
    assert found.degradations["blur"].low is not None and found.degradations["blur"].low > 0.15
    assert found.degradations["noise"].high is not None and found.degradations["noise"].high < 0
    (said,) = degraded(found.degradations, found.degradations_from_photos)
    assert said.startswith("Blur is ") and "above the base model's pictures and" in said
    same = measured(base, [cv2.GaussianBlur(one, (0, 0), 1.0) for one in base], scorer, engine, photos)
    assert not degraded(same.degradations, same.degradations_from_photos)


def test_pictures_like_the_training_photos_alone_are_nearer_to_those_than_to_the_held_out_ones(
    judge: PictureScorer, engine: Engine
) -> None:
    def found(pictures: list[Picture]) -> list[tuple[str, list[Face]]]:
        return [(str(number), engine.find(picture)) for number, picture in enumerate(pictures)]

    trained_on = small(drawn_apart(views(4, seed=1), engine, 0.05))
    scorer = replace(judge, targets=targets_of(engine.info, found(views(4, seed=2)), found(trained_on)))
    memorised, learnt = (
        measured(pictures, small(others())[:4], scorer, engine).memorised
        for pictures in (small(drawn_apart(views(4, seed=77), engine, 0.05)), small(views(4, seed=77)))
    )
    assert memorised.low is not None and memorised.low > 0.15
    assert learnt.value is not None and learnt.value < 0.15 and learnt.n == 4


def test_the_person_is_ranked_first_in_photos_of_the_person_and_never_in_those_of_others(
    scorer: PictureScorer, engine: Engine, reals: Reals
) -> None:
    assert scorer.gallery is not None and len(scorer.gallery) == 8
    strangers = small(others())
    mine = measured(small([read_rgb(real.file) for real in reals.training]), strangers, scorer, engine)
    assert mine.ranked_first.value == 1 and mine.base_ranked_first.value == 0
    assert mine.ranked_first.low is not None and mine.ranked_first.low < 1
    theirs = measured(small(of_another(6, seed=9)), strangers, scorer, engine)
    assert theirs.ranked_first.value == 0
    assert measured(small(noise(4, seed=3)), strangers, scorer, engine).ranked_first.value == 0


def test_without_other_people_nobody_is_ranked(judge: PictureScorer, engine: Engine) -> None:
    found = measured(small(views(2, seed=5)), small(others())[:2], judge, engine)
    assert found.ranked_first.value is None and found.ranked_first.n == 0


def test_one_picture_again_and_again_has_no_variety_of_pose_and_light(scorer: PictureScorer, engine: Engine) -> None:
    varied = small(views(8, seed=3))
    again = measured([varied[0]] * 8, varied, scorer, engine)
    assert again.pose_variety_ratio.value == pytest.approx(0, abs=1e-3)
    assert again.light_variety_ratio.value == pytest.approx(0, abs=1e-3)
    less = measured([np.asarray(one * 0.5, np.uint8) for one in varied], varied, scorer, engine)
    assert less.light_variety_ratio.value == pytest.approx(0.5, abs=0.1)


def test_faces_in_dim_light_and_small_ones_are_scored_by_themselves(scorer: PictureScorer, engine: Engine) -> None:
    bright = views(6, seed=3)
    dim = [np.asarray(one * 0.35, np.uint8) for one in bright]
    found = measured([*bright, *dim], [*bright, *dim], scorer, engine).conditions
    assert 4 <= found["low_light"].n <= 8 and found["low_light"].value is not None
    far = [cv2.copyMakeBorder(one, 0, 512, 256, 256, cv2.BORDER_CONSTANT) for one in bright]
    small_ones = measured(far, far, scorer, engine).conditions["small_face"]
    assert small_ones.n == 6 and small_ones.value == 1
    assert found["small_face"].n == 0 and found["small_face"].value is None


@pytest.mark.parametrize("params", [DLIB, EMBEDDED["yunet-sface"]], ids=["dlib", "yunet-sface"])
def test_a_head_that_is_turned_by_a_known_angle_is_measured_in_order(params: EngineParams) -> None:
    engine = open_engine(params)
    (turns,) = zip(*(engine.find(turned(deg))[:1] for deg in (-40, -20, 0, 20, 40)), strict=True)
    found = [face.yaw_deg for face in turns if face.yaw_deg is not None]
    assert len(found) == 5 and found == sorted(found) and len(set(found)) == 5
    assert -45 < found[0] < -18 and 18 < found[-1] < 45 and abs(found[2]) < 10
    three_quarter = others()[4]  # a photograph, facing the left
    for picture, side in ((three_quarter, -1), (np.ascontiguousarray(three_quarter[:, ::-1]), 1)):
        yaw_deg = engine.find(picture)[0].yaw_deg
        assert yaw_deg is not None and 28 < side * yaw_deg < 60


def test_turned_faces_are_scored_by_themselves(scorer: PictureScorer, engine: Engine) -> None:
    frontal, away = views(4, seed=3), others()[5]
    pictures = [*frontal, away, np.ascontiguousarray(away[:, ::-1])]
    found = measured(pictures, pictures, scorer, engine)
    assert found.conditions["profile"].n == 2 and found.conditions["profile"].value == 0
    assert found.same_of_all.value == pytest.approx(4 / 6)


def test_a_second_person_has_to_be_there_and_to_be_another(scorer: PictureScorer, engine: Engine) -> None:
    one, two = views(2, seed=5)
    pictures = [
        np.concatenate([one, others()[0]], axis=1),  # as it should be
        np.concatenate([one, two], axis=1),  # the person twice
        one,  # nobody else
    ]
    found = second_person([[row] for row in rows(pictures, scorer, engine)])
    assert found.value == pytest.approx(1 / 3) and found.n == 3


def test_a_picture_without_a_face_has_contrast_and_colour_only(engine: Engine) -> None:
    found = looks_of(noise(1, seed=3)[0], None, engine.info.points_kind)
    assert found.contrast > 0 and found.saturation > 0
    assert (found.skin, found.face_luma, found.face_share) == (None, None, None)
