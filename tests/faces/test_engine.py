import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from zimage.core.errors import InputError
from zimage.demo import other_people
from zimage.faces.engine import Engine, EngineParams, between, is_present, open_engine
from zimage.faces.engine_defaults import DLIB_PARAMS, EMBEDDED, YUNET_SFACE_PARAMS


@pytest.fixture(scope="module", params=EMBEDDED)
def engine(request: pytest.FixtureRequest) -> Engine:
    return open_engine(EMBEDDED[request.param])


@pytest.fixture(scope="module")
def dlib() -> Engine:
    return open_engine(DLIB_PARAMS)


@pytest.fixture(scope="module")
def portrait() -> NDArray[np.uint8]:
    return np.asarray(data.astronaut(), np.uint8)


def test_six_people_are_found_and_told_apart(engine: Engine) -> None:
    faces = engine.find(other_people())
    distances = engine.info.distances(faces, faces)
    assert len(faces) == 6
    assert distances[~np.eye(6, dtype=bool)].min() > engine.info.threshold
    assert [face.side_px for face in faces] == sorted((face.side_px for face in faces), reverse=True)


@pytest.mark.parametrize("share", [0.36, 0.65])
def test_a_face_in_a_picture_of_128_px_is_found_and_known(
    engine: Engine, portrait: NDArray[np.uint8], share: float
) -> None:
    import cv2

    half = round(44 / share)
    view = portrait[max(0, 127 - half) : 127 + half, 223 - half : 223 + half]
    small = cv2.resize(view, (128, 128), interpolation=cv2.INTER_AREA)
    (face,) = engine.find(small)
    assert engine.same_person(face, engine.find(portrait)[0])
    assert 0.25 * 128 < face.side_px < 0.8 * 128


def test_a_face_that_fills_the_frame_is_found_with_a_border(dlib: Engine, portrait: NDArray[np.uint8]) -> None:
    (face,) = dlib.find(portrait[95:175, 183:263])
    assert face.attempt == "padded"
    assert dlib.same_person(face, dlib.find(portrait)[0])


@pytest.mark.parametrize("side_px", [80, 512, 3000])
def test_a_face_that_fills_the_frame_is_found_at_every_size(
    engine: Engine, portrait: NDArray[np.uint8], side_px: int
) -> None:
    import cv2

    filling = cv2.resize(portrait[95:175, 183:263], (side_px, side_px), interpolation=cv2.INTER_CUBIC)
    (face,) = engine.find(np.asarray(filling, np.uint8))
    assert engine.same_person(face, engine.find(portrait)[0])


def test_boxes_and_points_are_in_px_of_the_picture_at_every_size(engine: Engine, portrait: NDArray[np.uint8]) -> None:
    import cv2

    (face,) = engine.find(portrait)
    large = engine.find(cv2.resize(portrait, (2304, 2304), interpolation=cv2.INTER_CUBIC))[0]
    assert np.allclose(large.points_xy / 4.5, face.points_xy, atol=5)
    assert np.allclose(np.array(large.box_xyxy) / 4.5, face.box_xyxy, atol=12)  # the detector looks in steps


def test_no_face_is_found_where_there_is_none(engine: Engine) -> None:
    assert engine.find(np.asarray(data.coffee(), np.uint8)) == []
    assert engine.find(np.zeros((40, 300, 3), np.uint8)) == []


def test_a_mirrored_face_is_turned_the_other_way(engine: Engine, portrait: NDArray[np.uint8]) -> None:
    (face,), (mirrored,) = engine.find(portrait), engine.find(portrait[:, ::-1])
    assert face.yaw_deg is not None and mirrored.yaw_deg is not None
    assert face.roll_deg is not None and mirrored.roll_deg is not None
    assert face.yaw_deg == pytest.approx(-mirrored.yaw_deg, abs=4)
    assert face.roll_deg == pytest.approx(-mirrored.roll_deg, abs=2)


def test_the_68_point_predictor_is_never_loaded(dlib: Engine) -> None:
    assert set(dlib.info.model_sha256) == {
        "dlib_face_recognition_resnet_model_v1.dat",
        "shape_predictor_5_face_landmarks.dat",
    }


def test_faces_of_different_engines_are_not_compared(engine: Engine, portrait: NDArray[np.uint8]) -> None:
    from dataclasses import replace

    (face,) = engine.find(portrait)
    foreign = replace(face, engine_id="insightface-buffalo_l/4c06341c")
    with pytest.raises(
        InputError, match=r"found by insightface-buffalo_l/4c06341c cannot be compared by (dlib|yunet).*use the same"
    ):
        engine.distance(face, foreign)
    with pytest.raises(InputError, match="cannot be compared"):
        engine.same_person(foreign, face)


def test_insightface_without_a_pack_says_what_to_set() -> None:
    with pytest.raises(InputError, match=r"`engine\.pack` is null.*buffalo_l.*engine\.name: yunet-sface"):
        open_engine(DLIB_PARAMS.model_copy(update={"name": "insightface"}))


def test_both_metrics_are_the_textbook_ones() -> None:
    a, b = np.array([[3.0, 0.0], [0.0, 2.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    assert between(a, b, "l2").ravel() == pytest.approx([5.0, 2.0])
    assert between(a, b, "cosine").ravel() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_a_pack_that_is_named_may_be_absent_and_a_path_may_not(tmp_path: Path) -> None:
    named = EngineParams(name="insightface", pack="buffalo_l", identity=None, min_score=0.5, max_distance=0.6)
    assert not is_present(named, packs=tmp_path)
    (tmp_path / "buffalo_l").mkdir()
    assert is_present(named, packs=tmp_path)
    assert is_present(named.model_copy(update={"pack": str(tmp_path / "nowhere")}), packs=tmp_path)
    assert is_present(DLIB_PARAMS, packs=tmp_path) and is_present(YUNET_SFACE_PARAMS, packs=tmp_path)


def test_distances_of_thousands_of_faces_fit_into_memory() -> None:
    faces = np.random.default_rng(0).normal(size=(900, 128)).astype(np.float32)
    tracemalloc.start()
    found = between(faces, faces, "l2")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 120e6  # all differences at once are 829 MB
    some = faces[[0, 1, 450, 899]].astype(np.float64)
    assert np.array_equal(found[[0, 1, 450, 899]][:, [0, 1, 450, 899]], between(some, some, "l2"))
    assert np.allclose(found[7], np.linalg.norm(faces - faces[7], axis=1), atol=1e-4)
