import cv2
import dlib
import numpy as np
import pytest
from skimage import data

from zimage.faces.dlib_engine import POINTS_FILE, weights_folder
from zimage.faces.landmarks import (
    NOSE_DEPTH,
    PointsKind,
    aligned,
    chip,
    roll_deg,
    similarity,
    upright_points,
    yaw_deg,
)

KINDS: tuple[PointsKind, ...] = ("corners", "centres")


def head(kind: PointsKind) -> np.ndarray:
    """Return the points of an upright frontal head with its nose in front of the eyes, (5, 3), eyes at depth 0."""
    flat = np.asarray(upright_points(kind, 100), np.float64)
    eyes = flat[:4].mean(0) if kind == "corners" else flat[:2].mean(0)
    span = abs(flat[0, 0] - flat[2 if kind == "corners" else 1, 0])
    points = np.column_stack([flat - eyes, np.zeros(5)])
    nose = 4 if kind == "corners" else 2
    points[nose, 2] = NOSE_DEPTH[kind] * span
    points[nose, 0] = 0
    return points


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("turn", [-50, -20, 0, 20, 50])
def test_the_turn_of_a_head_is_recovered_from_its_points(kind: PointsKind, turn: float) -> None:
    angle = np.radians(turn)
    about_y = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    seen = (head(kind) @ about_y.T)[:, :2].astype(np.float32)
    assert yaw_deg(seen, kind) == pytest.approx(turn, abs=2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lean", [-30, 0, 15])
def test_the_lean_of_a_head_is_recovered_and_does_not_look_like_a_turn(kind: PointsKind, lean: float) -> None:
    angle = np.radians(lean)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (head(kind)[:, :2] @ rotation.T).astype(np.float32)
    assert roll_deg(points, kind) == pytest.approx(lean, abs=2)
    assert yaw_deg(points, kind) == pytest.approx(0, abs=2)


def test_a_similarity_is_recovered_from_points_it_moved() -> None:
    rng = np.random.default_rng(1)
    source = rng.normal(size=(5, 2)).astype(np.float32)
    wanted = np.array([[1.2, -0.7, 3.0], [0.7, 1.2, -8.0]])
    target = (source @ wanted[:, :2].T + wanted[:, 2]).astype(np.float32)
    assert np.allclose(similarity(source, target), wanted, atol=1e-5)


def test_a_mirrored_set_of_points_is_not_mirrored_back() -> None:
    source = np.asarray(upright_points("centres", 100))
    carry = similarity(source * np.array([-1, 1], np.float32), source)
    assert np.linalg.det(carry[:, :2]) > 0


def test_the_aligned_face_is_the_chip_that_dlib_makes() -> None:
    image = np.asarray(data.astronaut(), np.uint8)
    (box,) = dlib.get_frontal_face_detector()(image, 0)
    shape = dlib.shape_predictor(str(weights_folder() / POINTS_FILE))(image, box)
    theirs = dlib.get_face_chip(image, shape, 150, 0.25).astype(int)
    points = np.array([(part.x, part.y) for part in shape.parts()], np.float32)
    ours = aligned(image, points, "corners", 150).astype(int)
    assert np.abs(ours - theirs).mean() < 1.5


def test_a_large_face_is_aligned_without_aliasing() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (2000, 2000, 3), np.uint8)
    points = upright_points("centres", 1800) + np.float32(100)
    assert aligned(noise, points, "centres", 112).std() < 0.25 * noise.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lean", [0, 40, 90, 200])
@pytest.mark.parametrize("middle", [(512, 512), (100, 940)], ids=["inside", "cut by two borders"])
def test_a_large_face_is_aligned_as_in_a_small_copy_of_the_picture(
    middle: tuple[int, int], lean: float, kind: PointsKind
) -> None:
    small = cv2.resize(np.asarray(data.astronaut(), np.uint8), (256, 256), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    angle = np.radians(lean)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.asarray((upright_points(kind, 400) - 200) @ rotation.T + middle, np.float32)
    expected = aligned(small, (points + 0.5) / 4 - 0.5, kind, 100).astype(int)
    found = aligned(large, points, kind, 100).astype(int)
    assert np.abs(found - expected).mean() < 4
    assert np.mean((found == 0).all(2) != (expected == 0).all(2)) < 0.03


@pytest.mark.parametrize("side_px", [112, 224, 128, 256])
def test_the_chip_is_the_one_that_insightface_cuts(side_px: int) -> None:
    from insightface.utils.face_align import norm_crop

    image = np.asarray(data.astronaut(), np.uint8)
    points = upright_points("centres", 100) + np.array([172, 76], np.float32)
    with pytest.warns(FutureWarning):
        theirs = norm_crop(image, points, image_size=side_px)
    ours = chip(image, points, "centres", side_px)
    assert np.abs(ours.astype(int) - theirs).mean() < 0.5  # levels of 255; the template scaled to 128 px differs by 38
