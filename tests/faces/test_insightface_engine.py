from pathlib import Path

import numpy as np
import pytest

from tests.faces.tiny_pack import BOX_PX, picture, write_pack
from zimage.core.errors import InputError
from zimage.faces.engine import EngineParams, open_engine
from zimage.faces.insightface_engine import identify_pack, pack_folder

FACE = (240, 160, 8, 4)  # half a cell of the detector, so a face


def params(pack: Path | str, identity: str | None = None) -> EngineParams:
    return EngineParams(name="insightface", pack=str(pack), identity=identity, min_score=0.5, max_distance=0.6)


def test_faces_come_with_boxes_points_and_embeddings(tmp_path: Path) -> None:
    engine = open_engine(params(write_pack(tmp_path / "tiny")))
    faces = engine.find(picture(FACE, (480, 400, 8, 4)))
    assert len(faces) == 2
    centres = sorted(((face.box_xyxy[0] + face.box_xyxy[2]) / 2, face.side_px) for face in faces)
    assert centres == [(240, BOX_PX), (480, BOX_PX)]
    assert all(face.points_xy.shape == (5, 2) and face.embedding.shape == (32,) for face in faces)
    assert faces[0].attempt == "plain" and faces[0].score > 0.9


def test_nothing_is_found_in_a_black_picture(tmp_path: Path) -> None:
    assert open_engine(params(write_pack(tmp_path / "tiny"))).find(picture()) == []


def test_a_face_missed_at_first_is_found_at_a_smaller_size(tmp_path: Path) -> None:
    engine = open_engine(params(write_pack(tmp_path / "tiny")))
    (face,) = engine.find(picture((248, 160, 16, 16)))  # full cells at 640 px, half cells at 320 px
    assert face.attempt == "finer"
    assert abs((face.box_xyxy[0] + face.box_xyxy[2]) / 2 - 248) <= 16


def test_a_face_missed_at_every_size_is_found_with_a_border(tmp_path: Path) -> None:
    engine = open_engine(params(write_pack(tmp_path / "tiny")))
    (face,) = engine.find(picture((80, 80, 12, 6)))  # half a cell once the picture is brought to two thirds
    assert face.attempt == "padded"
    assert abs((face.box_xyxy[0] + face.box_xyxy[2]) / 2 - 80) <= 2


def test_a_recogniser_that_takes_one_face_at_a_time_gives_the_same(tmp_path: Path) -> None:
    image = picture(FACE, (480, 400, 8, 4))
    many = open_engine(params(write_pack(tmp_path / "many"))).find(image)
    single = open_engine(params(write_pack(tmp_path / "single", batch=1))).find(image)
    for one, other in zip(many, single, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-4)


def test_the_chip_is_the_one_insightface_itself_would_embed(tmp_path: Path) -> None:
    from insightface.app import FaceAnalysis

    pack = write_pack(tmp_path / "tiny")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 60, (640, 640, 3), np.uint8)
    image[160:176, 240:256] = picture(FACE)[160:176, 240:256]
    app = FaceAnalysis(str(pack), providers=["CPUExecutionProvider"])
    app.prepare(ctx_id=-1, det_size=(640, 640))
    with pytest.warns(FutureWarning):
        (theirs,) = app.get(np.ascontiguousarray(image[:, :, ::-1]))
    (ours,) = open_engine(params(pack)).find(image)
    assert np.allclose(ours.points_xy, theirs.kps)
    cosine = ours.embedding @ theirs.embedding / np.linalg.norm(ours.embedding) / np.linalg.norm(theirs.embedding)
    assert cosine > 0.999


@pytest.mark.parametrize("turn", [-40.0, 25.0])
def test_pose_comes_from_the_packs_own_landmarks_where_it_has_them(tmp_path: Path, turn: float) -> None:
    (face,) = open_engine(params(write_pack(tmp_path / "tiny", yaw_deg=turn))).find(picture(FACE))
    assert face.yaw_deg == pytest.approx(turn, abs=1)
    assert face.roll_deg == pytest.approx(0, abs=1)


def test_pose_comes_from_five_points_where_the_pack_has_no_landmarks(tmp_path: Path) -> None:
    (face,) = open_engine(params(write_pack(tmp_path / "tiny"))).find(picture(FACE))
    assert face.yaw_deg == pytest.approx(0, abs=1)


def test_the_engine_tells_its_weights_metric_and_licence(tmp_path: Path) -> None:
    info = open_engine(params(write_pack(tmp_path / "tiny"))).info
    assert set(info.model_sha256) == {"det_tiny.onnx", "rec_tiny.onnx"}
    assert info.engine_id == f"insightface-tiny/{info.model_sha256['rec_tiny.onnx'][:8]}"
    assert info.metric == "cosine" and not info.embedded and "non-commercial" in info.licence


def test_a_pack_is_found_by_name_in_the_packs_folder(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "models" / "buffalo_l")
    assert pack_folder("buffalo_l", tmp_path / "models") == pack
    engine = open_engine(params("buffalo_l"), packs=tmp_path / "models")
    assert engine.info.engine_id.startswith("insightface-buffalo_l/")


def test_a_missing_pack_is_told_before_anything_is_loaded_or_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no face pack 'buffalo_l'.*unpack it there.*Nothing is downloaded"):
        open_engine(params("buffalo_l"), packs=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_an_empty_pack_and_a_nested_one_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.onnx files; unpack"):
        open_engine(params(tmp_path / "empty"))
    inner = write_pack(tmp_path / "antelopev2" / "antelopev2")
    with pytest.raises(InputError, match=f"files lie in {inner}; name that folder"):
        open_engine(params(tmp_path / "antelopev2"))


def test_a_pack_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "tiny")
    assert open_engine(params(pack, identify_pack(pack))).info.metric == "cosine"
    with pytest.raises(InputError, match=r"`engine\.identity` pins sha256:00.*restore the pinned pack"):
        open_engine(params(pack, "sha256:00"))


def test_a_file_with_a_released_name_and_other_content_is_refused(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "tiny")
    (pack / "det_tiny.onnx").rename(pack / "det_10g.onnx")
    with pytest.raises(InputError, match=r"det_10g\.onnx is not the released file"):
        open_engine(params(pack))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("det_tiny.onnx", b"no model", "cannot be opened"),
        ("rec_tiny.onnx", None, "no face recogniser"),
        ("det_tiny.onnx", None, "no face detector"),
    ],
)
def test_a_broken_or_partial_pack_is_one_sentence(tmp_path: Path, file: str, content: bytes | None, said: str) -> None:
    pack = write_pack(tmp_path / "tiny")
    (pack / file).unlink()
    if content is not None:
        (pack / file).write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_engine(params(pack))


def test_a_detector_without_facial_points_is_told(tmp_path: Path) -> None:
    engine = open_engine(params(write_pack(tmp_path / "tiny", points=False)))
    with pytest.raises(InputError, match="gives no facial points"):
        engine.find(picture(FACE))
