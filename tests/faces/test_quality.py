import tracemalloc
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data

from zimage.faces.dlib_engine import DlibEngine
from zimage.faces.landmarks import Points
from zimage.faces.quality import SIDE_PX, chroma, dhash, look, score, unlikeness, usual_texture, warmth

Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def portrait() -> Picture:
    return np.asarray(data.astronaut(), np.uint8)


@pytest.fixture(scope="module")
def points(portrait: Picture) -> Points:
    (face,) = DlibEngine.load(min_score=0.0, max_distance=0.6).find(portrait)
    return face.points_xy


def blurred(image: Picture, sigma_px: float) -> Picture:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8)


def sharpness(image: Picture, points: Points) -> float:
    return look(image, points, "corners").sharpness


def test_sharpness_falls_with_blur_and_crosses_the_limit(portrait: Picture, points: Points) -> None:
    measured = [sharpness(portrait, points)] + [sharpness(blurred(portrait, s), points) for s in (1, 2, 3)]
    assert measured == sorted(measured, reverse=True)
    assert measured[0] > 15 and measured[2] < 5


def test_sharpness_does_not_depend_on_size_light_or_a_little_noise(portrait: Picture, points: Points) -> None:
    here = sharpness(portrait, points)
    large = np.asarray(cv2.resize(portrait, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC), np.uint8)
    noise = np.random.default_rng(1).normal(0, 4, portrait.shape)
    assert sharpness(large, points * 3) == pytest.approx(here, rel=0.25)
    assert sharpness((portrait * 0.4).astype(np.uint8), points) == pytest.approx(here, rel=0.15)
    assert sharpness(np.clip(portrait + noise, 0, 255).astype(np.uint8), points) == pytest.approx(here, rel=0.15)


def test_light_is_measured_on_the_face_alone(portrait: Picture, points: Points) -> None:
    dark_around = portrait.copy()
    dark_around[:, 300:] = 0
    dark_around[220:] = 0
    assert look(dark_around, points, "corners").luma == pytest.approx(look(portrait, points, "corners").luma, abs=0.02)
    assert look((portrait * 0.1).astype(np.uint8), points, "corners").luma < 0.1
    assert look(np.full_like(portrait, 255), points, "corners").clipped == 1


def test_an_object_before_the_face_is_unlike_the_usual_face(portrait: Picture, points: Points) -> None:
    usual = usual_texture([look(portrait, points, "corners")])
    covered = portrait.copy()
    cv2.ellipse(covered, (226, 155), (38, 30), 0, 0, 360, (120, 160, 200), -1)
    assert unlikeness(look(portrait, points, "corners").texture, usual) == 0
    assert unlikeness(look((portrait * 0.6).astype(np.uint8), points, "corners").texture, usual) == 0
    assert unlikeness(look(covered, points, "corners").texture, usual) > 0.2


def test_the_hash_survives_recoding_and_light_and_tells_pictures_apart(portrait: Picture) -> None:
    other = np.asarray(data.chelsea(), np.uint8)
    small = np.asarray(Image.fromarray(portrait).resize((200, 200)))
    for changed in (small, blurred(portrait, 1), (portrait * 0.7).astype(np.uint8)):
        assert (dhash(portrait) ^ dhash(changed)).bit_count() <= 4
    assert (dhash(portrait) ^ dhash(other)).bit_count() > 12
    assert 0 <= dhash(other) < 2**64


GOOD = {"face_px": 200, "good_px": 160, "sharpness": 20.0, "luma": 0.5, "clipped": 0.0, "yaw_deg": 5.0, "unlike": 0.0}


@pytest.mark.parametrize(
    "worse",
    [{"face_px": 70}, {"sharpness": 6.0}, {"luma": 0.9}, {"clipped": 0.2}, {"yaw_deg": -65.0}, {"unlike": 0.4}],
)
def test_every_fault_lowers_the_rank(worse: dict[str, float]) -> None:
    assert score(**GOOD) == 1  # type: ignore[arg-type]
    assert score(**{**GOOD, **worse}) < 0.97  # type: ignore[arg-type]


def test_a_pose_that_is_not_known_counts_as_frontal() -> None:
    assert score(**{**GOOD, "yaw_deg": None}) == 1  # type: ignore[arg-type]


def test_colours_are_measured() -> None:
    orange, grey = np.full((8, 8, 3), (255, 128, 0), np.uint8), np.full((8, 8, 3), 90, np.uint8)
    assert chroma(orange) == 1 and chroma(grey) == 0
    assert warmth(orange) == 1 and warmth(grey) == 0 and warmth(orange[:, :, ::-1]) == -1


@dataclass(frozen=True)
class Drawn:
    """A face whose texture is made when it is asked for."""

    seed: int

    @property
    def texture(self) -> Picture:
        return np.random.default_rng(self.seed).integers(0, 256, (SIDE_PX, SIDE_PX)).astype(np.uint8)


def test_the_usual_face_is_the_median_of_all_to_the_last_bit_and_takes_no_more_memory_for_more_of_them() -> None:
    faces = [Drawn(seed) for seed in range(600)]
    normal = [(grey - grey.mean()) / grey.std() for grey in (face.texture.astype(np.float64) for face in faces)]

    tracemalloc.start()
    found = usual_texture(faces)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert np.array_equal(found, np.median(np.stack(normal), axis=0))
    assert len(faces) * found.nbytes > 70e6  # what all of them would take at once
    assert peak_bytes < 50e6
