import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from zimage.curation.crops import CropParams, Plan, Region, buckets, cut, head_plan, holdout_plan, is_alone, plans
from zimage.photos.rows import Box

PARAMS = CropParams(
    side_px=512,
    step_px=32,
    max_aspect=2.0,
    max_upscale=1.25,
    head_face_share=0.36,
    head_below_share=0.25,
    min_face_px=64,
)


def box(x: float, y: float, side: float) -> Box:
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


@st.composite
def photos(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    width, height = draw(st.integers(160, 6000)), draw(st.integers(160, 6000))
    side = draw(st.floats(32, min(width, height)))
    return (width, height), box(draw(st.floats(0, width)), draw(st.floats(0, height)), side)


@settings(max_examples=300, deadline=None)
@given(photos(), st.sampled_from([1.0, 1.5, 2.0]), st.sampled_from([128, 512, 1024]))
def test_every_crop_lies_in_the_photo_has_a_buckets_size_and_stretches_nothing(
    photo: tuple[tuple[int, int], Box], max_aspect: float, side_px: int
) -> None:
    size, face = photo
    params = PARAMS.model_copy(update={"max_aspect": max_aspect, "side_px": side_px})
    made = [*plans(size, face, [], "corners", params), head_plan(size, face, "centres", params)]
    for plan in made:
        left, top, right, bottom = plan.region.box_xyxy
        assert -0.01 <= left < right <= size[0] + 0.01 and -0.01 <= top < bottom <= size[1] + 0.01
        assert plan.width % 32 == 0 and plan.height % 32 == 0 and plan.width * plan.height <= side_px**2
        assert plan.scale <= 1.25 + 1e-6
        assert plan.width / plan.height == pytest.approx(plan.region.width / plan.region.height, rel=1e-6)


def test_buckets_keep_to_area_step_and_aspect() -> None:
    sizes = buckets(PARAMS)
    assert (512, 512) in sizes and (416, 608) in sizes and len(set(sizes)) == len(sizes)
    assert all(w % 32 == 0 and h % 32 == 0 and w * h <= 512**2 and max(w, h) <= 2 * min(w, h) for w, h in sizes)
    assert buckets(PARAMS.model_copy(update={"max_aspect": 1.0})) == [(512, 512)]


def test_a_large_face_gives_the_original_framing_only() -> None:
    (full,) = plans((1200, 1200), box(600, 500, 500), [], "corners", PARAMS)
    assert full.kind == "full" and full.region == Region(0, 0, 1200, 1200) and (full.width, full.height) == (512, 512)


def test_a_middling_face_gives_a_head_crop_too_and_a_small_one_only_that() -> None:
    assert [p.kind for p in plans((1200, 1200), box(600, 500, 200), [], "corners", PARAMS)] == ["full", "head"]
    assert [p.kind for p in plans((1200, 1200), box(600, 500, 100), [], "corners", PARAMS)] == ["head"]


def test_the_face_has_its_share_of_a_head_crop_and_room_for_the_hair() -> None:
    head = head_plan((2000, 2000), box(1000, 1000, 300), "corners", PARAMS)
    assert 300 / head.region.width == pytest.approx(0.36)
    assert head.region.top < 1000 - 300 * 1.15 < 1000 + 300 * 0.65 < head.region.top + head.region.height


def test_a_head_at_the_edge_stays_in_the_original_framing() -> None:
    (full, *_) = plans((3000, 1000), box(2700, 500, 250), [], "corners", PARAMS)
    assert full.region.left + full.region.width >= 2700 + 0.85 * 250


def test_a_small_photo_gets_a_smaller_bucket_instead_of_being_blown_up() -> None:
    (full,) = plans((200, 200), box(100, 100, 100), [], "corners", PARAMS)
    assert full.width == full.height == 224 and full.scale <= 1.25


@pytest.mark.parametrize(
    ("stranger", "kinds"),
    [
        (box(1000, 500, 150), ["head"]),  # a second person far to the right
        (box(720, 500, 150), []),  # cheek to cheek
        (box(1000, 500, 30), ["full", "head"]),  # a passer-by far away
    ],
)
def test_a_second_person_is_kept_out_of_the_picture(stranger: Box, kinds: list[str]) -> None:
    assert [p.kind for p in plans((1200, 1200), box(500, 500, 200), [stranger], "corners", PARAMS)] == kinds


def test_a_tenth_of_the_subjects_face_makes_a_second_person() -> None:
    region, face = Region(0, 0, 100, 100), box(50, 50, 40)
    assert is_alone(region, face, [box(50, 50, 12.6)], "corners")
    assert not is_alone(region, face, [box(50, 50, 12.7)], "corners")
    assert is_alone(region, face, [box(300, 50, 40)], "corners")


def test_what_is_held_out_keeps_the_photos_own_pixels() -> None:
    plan = holdout_plan((3000, 3000), box(1000, 1000, 200), [], "corners", PARAMS)
    assert plan.kind == "head" and plan.scale == pytest.approx(1.0, abs=0.01)
    plan = holdout_plan((6000, 6000), box(3000, 3000, 2000), [], "corners", PARAMS)
    assert max(plan.width, plan.height) == 1024


def test_points_move_with_the_crop() -> None:
    image = np.zeros((400, 400, 3), np.uint8)
    image[196:204, 246:254] = 255
    plan = Plan("head", Region(200, 100, 200, 200), 100, 100)
    crop = cut(image, plan)
    y, x = (float(places.mean()) for places in np.nonzero(crop[:, :, 0] > 128))
    assert plan.carried(np.array([[250, 200]], np.float32))[0] == pytest.approx([x + 0.5, y + 0.5], abs=0.6)


@pytest.mark.parametrize("side", [500.5, 300.0, 100.0, 50.0])
@pytest.mark.parametrize("left_top", [(0.0, 0.0), (7.3, 8.9)])
def test_a_crop_is_what_lanczos_makes_of_the_whole_photo(left_top: tuple[float, float], side: float) -> None:
    image = np.asarray(data.astronaut(), np.uint8)
    plan = Plan("head", Region(*left_top, side, side), 100, 100)
    expected = Image.fromarray(image).resize((100, 100), Image.Resampling.LANCZOS, box=plan.region.box_xyxy)
    difference = cut(image, plan).astype(np.float64) - np.asarray(expected)
    assert 10 * np.log10(255**2 / max(float(np.mean(difference**2)), 1e-9)) > (40 if side > 280 else 70)  # dB
