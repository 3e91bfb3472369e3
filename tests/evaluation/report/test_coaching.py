"""Advice follows from measurements: a rule speaks beyond its limit only, and not where its number is not known."""

from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.evaluation.photos import Picture, small, views
from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.core.jsonl import read_rows
from zimage.evaluation.figures import Figures
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.report.coaching import RULES, Measurements, Tip, coaching
from zimage.evaluation.rows import PictureRow
from zimage.evaluation.score.likeness import likeness, targets_of
from zimage.faces.engine import Engine
from zimage.photos.rows import CropRow

ADA = Subject(trigger="ohzw", class_noun="woman")
UNKNOWN = Estimate(None, None, None, 0)
NOTHING = Figures(**{field.name: UNKNOWN for field in fields(Figures) if field.name != "leaks"}, leaks={})
ROW = PictureRow(
    faces=1, distance=0.3, median_distance=0.3, same=True, closeness=0.7, matching_faces=1, nearest_photo="aa",
    nearest_distance=0.3, copy_of="train/aa-full.png", likeness_to_copy=0.2, yaw_deg=0.0, second_distance=None,
    second_same=None, following=None, clip=None, file="pictures/0.png", prompt="p", kind="likeness", aspect="frontal",
    language="en", half="test", seed=0, weights="lora", checkpoint="lora.safetensors", strength=1.0, text="a photo",
    engine="dlib", threshold=0.6, second_engine=None,
)  # fmt: skip


@pytest.fixture
def varied(detect: Path) -> list[CropRow]:
    """Sixteen photos from four sessions, with turned heads, in several lights, in front of several backgrounds."""
    crop = read_rows(detect / "crops.jsonl", CropRow)[0]
    colours = [(250, 250, 250), (20, 30, 90), (60, 150, 70), (110, 70, 40)]
    return [
        crop.model_copy(
            update={
                "photo": f"{number:016x}",
                "file": f"train/{number:016x}-full.png",
                "burst": number % 4,
                "yaw_deg": (0.0, 5.0, -30.0, 65.0)[number % 4],
                "face_luma": (0.2, 0.5, 0.8)[number % 3],
                "warmth": (-0.1, 0.15)[number % 2],
                "background_rgb": colours[number % 4],
            }
        )
        for number in range(16)
    ]


@pytest.fixture
def captions() -> list[CaptionRow]:
    return said("in a red coat in a park", "standing on a beach", "reading at a desk", "with a dog, smiling")


@pytest.fixture
def good(varied: list[CropRow], captions: list[CaptionRow]) -> Measurements:
    return Measurements(varied, captions, ADA, [], NOTHING, copy_correlation=0.95, spread=0.8)


def said(*descriptions: str, captioner: str = "vlm model sha256:0") -> list[CaptionRow]:
    return [
        CaptionRow(file=f"{number}.png", captions=[f"a photo of ohzw woman, {each}"], captioner=captioner, rewrites=[])
        for number, each in enumerate(descriptions)
    ]


def tips(measured: Measurements) -> dict[str, Tip]:
    return {tip.rule: tip for tip in coaching(measured)}


def test_varied_photos_with_varied_captions_need_no_advice(good: Measurements) -> None:
    assert tips(good) == {}


def test_where_nothing_was_measured_nothing_is_advised(good: Measurements) -> None:
    assert tips(replace(good, crops=[], captions=[], spread=None)) == {}
    unknown = [crop.model_copy(update={"yaw_deg": None}) for crop in good.crops]
    assert tips(replace(good, crops=unknown)) == {}


@pytest.mark.parametrize(
    ("rule", "changed", "number", "sentence"),
    [
        (
            "few_sessions",
            {"burst": 3},
            1,
            "All 16 training photos are from 1 session, each taken in one go; add photos",
        ),
        ("all_frontal", {"yaw_deg": -4.0}, 1, "In 100 % of the training photos the face looks straight at the camera"),
        ("one_light", {"face_luma": 0.5, "warmth": 0.15}, 1, "100 % of the training photos have the same brightness"),
        ("one_background", {"background_rgb": (99, 98, 97)}, 1, "100 % of the training photos have a background of"),
    ],
)
def test_photos_that_are_alike_in_one_way_are_named_with_the_number(
    good: Measurements, rule: str, changed: dict[str, object], number: float, sentence: str
) -> None:
    alike = replace(good, crops=[crop.model_copy(update=changed) for crop in good.crops])

    assert list(tips(alike)) == [rule]
    assert tips(alike)[rule].number == number
    assert tips(alike)[rule].sentence.startswith(sentence)


def test_few_photos_are_counted(good: Measurements) -> None:
    found = tips(replace(good, crops=good.crops[:9]))

    assert (found["few_photos"].number, found["few_photos"].limit) == (9, 12)
    assert found["few_photos"].sentence == "Only 9 photos were trained on; add photos, 15 to 50 are usual."


def test_photos_that_are_one_picture_are_told(good: Measurements) -> None:
    assert (
        "The 16 training photos are nearly one and the same picture"
        in tips(replace(good, spread=0.2))["one_picture"].sentence
    )


def test_words_of_every_caption_are_named_and_those_that_stand_for_nothing_are_not(good: Measurements) -> None:
    captions = said(
        "in a black jacket in a park", "sitting, in a black jacket", "smiling in a jacket that is black",
        "with a dog, a black jacket in the sun",
    )  # fmt: skip
    tip = tips(replace(good, captions=captions))["repeated_captions"]

    assert tip.number == 2
    assert tip.sentence.startswith(
        "Every caption says “black”, “jacket”, so that cannot be told from the trigger `ohzw`"
    )


def test_of_template_captions_whole_phrases_are_compared(good: Measurements) -> None:
    phrases = ("the face in medium light, with a grey background", "the face in dim light, with a grey background")
    captions = said(*phrases * 2, captioner="template")
    chinese = [row.model_copy(update={"captions": ["一张 ohzw 女人的照片，面部特写，灰色背景"]}) for row in captions]

    assert (
        "Every caption says “with a grey background”, so"
        in tips(replace(good, captions=captions))["repeated_captions"].sentence
    )
    assert replace(good, captions=chinese).repeated == ["灰色背景", "面部特写"]


def test_the_photos_that_are_copied_are_named_most_often_first(good: Measurements) -> None:
    copied = [*["train/aa-full.png"] * 3, *["train/bb-head.png"] * 5]
    rows = [ROW.model_copy(update={"copy_of": name, "likeness_to_copy": 0.97}) for name in copied]
    measured = replace(good, rows=[*rows, ROW], figures=replace(NOTHING, copied=Estimate(8 / 9, 0.5, 1.0, 9)))
    tip = tips(measured)["copies"]

    assert tip.number == 8 / 9 and tip.limit == 0.02
    assert "8 of 9 pictures repeat a training photo: `train/bb-head.png` (5 pictures), `train/aa-full.png` (3 pic" in (
        tip.sentence
    )


def test_the_photo_that_most_faces_are_nearest_to_is_named(good: Measurements) -> None:
    rows = [ROW, ROW, ROW.model_copy(update={"nearest_photo": "bb"})]
    measured = replace(good, rows=rows, figures=replace(NOTHING, nearest_share=Estimate(2 / 3, None, None, 3)))

    assert (
        "66.7 % of the faces are nearest to one training photo, `aa` (2 pictures);"
        in tips(measured)["nearest_photo"].sentence
    )


def test_a_leak_leads_to_pictures_of_others(good: Measurements) -> None:
    measured = replace(good, figures=replace(NOTHING, leak_rise=Estimate(0.5, 0.1, 0.8, 6)))

    assert (
        "in 50 % more of the pictures than with the base model; give pictures of others of the class woman"
        in tips(measured)["leak"].sentence
    )


def drawn_apart(pictures: list[Picture], engine: Engine, amount: float) -> list[Picture]:
    """Return the pictures with eyes and mouth drawn apart: how the person looked on the day of the training photos."""
    changed = []
    for picture in pictures:
        left, top, right, bottom = engine.find(picture)[0].box_xyxy
        half = (right - left) / 2
        y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(np.float32)
        u, v = (x - (left + right) / 2) / half, (y - (top + bottom) / 2) / half
        shift = -amount * np.sin(np.clip(v, -1, 1) * np.pi) * np.exp(-(u * u + v * v) / 1.2)
        moved = cv2.remap(picture, x.astype(np.float32), (y + shift * half).astype(np.float32), cv2.INTER_CUBIC)
        changed.append(np.asarray(moved, np.uint8))
    return changed


def test_faces_that_look_like_the_training_photos_alone_are_told_from_the_persons(
    good: Measurements, engine: Engine
) -> None:
    def found(pictures: list[Picture]) -> list[tuple[str, list[object]]]:
        return [(str(number), engine.find(picture)) for number, picture in enumerate(pictures)]  # type: ignore[misc]

    trained_on = drawn_apart(views(4, seed=1), engine, 0.05)
    targets = targets_of(engine.info, found(views(4, seed=2)), found(small(trained_on)))  # type: ignore[arg-type]

    def drop(pictures: list[Picture]) -> Tip | None:
        scored = [likeness(engine.find(picture), targets) for picture in pictures]
        rows = [
            ROW.model_copy(update={"distance": each.distance, "training_distance": each.training_distance})
            for each in scored
        ]
        return tips(replace(good, rows=rows)).get("memorised")

    memorised = drop(small(drawn_apart(views(4, seed=77), engine, 0.05)))
    assert memorised is not None and memorised.number > 0.2
    assert "The faces are nearer to the training photos than to the held-out ones" in memorised.sentence
    assert drop(small(views(4, seed=77))) is None


def test_every_rule_has_a_name_of_its_own() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
