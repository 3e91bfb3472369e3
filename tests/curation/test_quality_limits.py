import pytest

from zimage.curation.quality_limits import QualityParams, faults
from zimage.faces.observation import Measured

LIMITS = QualityParams(
    min_image_px=512, min_face_px=64, good_face_px=256, min_sharpness=5.0,
    max_clipped=0.25, min_luma=0.15, max_luma=0.88, max_yaw_deg=60.0,
)  # fmt: skip
GOOD = Measured(
    box_xyxy=(0, 0, 100, 100),
    score=1.0,
    yaw_deg=-10.0,
    roll_deg=0.0,
    attempt="plain",
    sharpness=15.0,
    luma=0.5,
    clipped=0.0,
    visible=1.0,
)


@pytest.mark.parametrize(
    ("changes", "reason", "said"),
    [
        ({"box_xyxy": (0, 0, 60, 60)}, "face_too_small", "The face has 60 px; 64 are needed."),
        ({"visible": 0.7}, "cut_off", "The photo's border cuts the face: 70% of it is to be seen; 90% is needed."),
        ({"covering": "mask"}, "mask", "A mask covers mouth and nose, which cannot be learnt from it."),
        ({"covering": "sunglasses"}, "sunglasses", "Sunglasses hide the eyes, which cannot be learnt from it."),
        ({"sharpness": 2.7}, "blurred", "The face is blurred: its sharpness is 2.7, and 5 is needed."),
        ({"luma": 0.1}, "too_dark", "The face is too dark: its mean luma is 0.10, and 0.15 is needed."),
        ({"luma": 0.95}, "too_bright", "The face is too bright: its mean luma is 0.95, and 0.88 is the most."),
        ({"clipped": 0.5}, "clipped", "50% of the face is black or blown out; 25% is the most."),
        ({"yaw_deg": -72.0}, "turned_away", "The head is turned by 72 degrees; 60 is the most."),
    ],
)
def test_each_limit_has_a_code_and_a_sentence(changes: dict[str, object], reason: str, said: str) -> None:
    (fault,) = faults((800, 600), GOOD.model_copy(update=changes), LIMITS)
    assert (fault.reason, fault.detail) == (reason, said)


def test_a_small_photo_is_told_with_everything_else_that_is_wrong() -> None:
    found = faults((800, 500), GOOD.model_copy(update={"sharpness": 1.0, "yaw_deg": 80.0}), LIMITS)
    assert [fault.reason for fault in found] == ["image_too_small", "blurred", "turned_away"]
    assert found[0].detail == "The photo's short side has 500 px; 512 are needed."


def test_nothing_speaks_against_a_good_photo_nor_against_an_unknown_pose() -> None:
    assert faults((800, 600), GOOD, LIMITS) == []
    assert faults((800, 600), GOOD.model_copy(update={"yaw_deg": None}), LIMITS) == []


def test_a_small_photo_is_good_enough_where_the_face_is_large() -> None:
    large = GOOD.model_copy(update={"box_xyxy": (0, 0, 300, 300)})
    assert [fault.reason for fault in faults((480, 480), GOOD, LIMITS)] == ["image_too_small"]
    assert faults((480, 480), large, LIMITS) == []


def test_a_subject_may_be_learnt_with_sunglasses_on() -> None:
    limits = LIMITS.model_copy(update={"refused_coverings": ["mask"]})
    assert faults((800, 600), GOOD.model_copy(update={"covering": "sunglasses"}), limits) == []
    assert [one.reason for one in faults((800, 600), GOOD.model_copy(update={"covering": "mask"}), limits)] == ["mask"]
