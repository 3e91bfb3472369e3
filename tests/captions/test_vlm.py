import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray

from tests.captions.tiny_vlm import write_tiny_florence2, write_tiny_llava, write_tiny_qwen2_5_vl, write_tiny_qwen3_vl
from zimage.captions.captioner import Shot
from zimage.captions.measure import measure
from zimage.captions.subject import Subject
from zimage.captions.vlm import Prompts, Vlm, VlmParams, asked, open_vlm
from zimage.core.errors import InputError

QUESTION = Prompts(en="Describe clothing, pose and light.", zh="描述服装、姿势和光线。")
FACE = (177.0, 75.0, 280.0, 180.0)


def params(model: Path) -> VlmParams:
    return VlmParams(model=str(model), max_side_px=96, max_new_tokens=6, prompts=QUESTION)


def astronaut() -> NDArray[np.uint8]:
    return np.asarray(skimage.data.astronaut())


def shot(image_rgb: NDArray[np.uint8]) -> Shot:
    return Shot(image_rgb, measure(image_rgb, FACE, yaw_deg=None, roll_deg=None))


@pytest.fixture(scope="module", params=[write_tiny_qwen3_vl, write_tiny_qwen2_5_vl])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write: Callable[[Path], Path] = request.param
    return write(tmp_path_factory.mktemp(write.__name__))


def test_these_tests_run_without_torchvision() -> None:
    assert importlib.util.find_spec("torchvision") is None


def logits(vlm: Vlm, image_rgb: NDArray[np.uint8]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(vlm.model(**vlm.prepared(image_rgb, QUESTION.en)).logits[0, -1])


def test_the_model_sees_the_picture_and_its_answer_follows_from_it(folder: Path) -> None:
    vlm = open_vlm(params(folder))
    picture = astronaut()[::4, ::4]
    assert not torch.equal(logits(vlm, picture), logits(vlm, picture[::-1].copy()))
    assert vlm.answer(picture, QUESTION.en, 6) == vlm.answer(picture, QUESTION.en, 6) != ""


def test_the_picture_takes_as_many_tokens_as_the_model_has_features_of_it(folder: Path) -> None:
    inputs = open_vlm(params(folder)).prepared(astronaut()[::8, ::4].copy(), QUESTION.en)
    frames, rows, columns = inputs["image_grid_thw"][0].tolist()
    assert int(inputs["mm_token_type_ids"].sum()) == frames * rows * columns // 4
    assert columns == 2 * rows  # the picture is wide, and is seen wide


def test_a_picture_is_asked_about_once(folder: Path, tmp_path: Path, subject: Subject) -> None:
    caption = asked(params(folder), tmp_path)(shot(astronaut()), subject, "en")
    assert caption
    (kept,) = tmp_path.iterdir()
    kept.write_text("A woman in a spacesuit", encoding="utf-8")
    again = asked(params(folder), tmp_path)
    assert again(shot(astronaut()), subject, "en") == "A woman in a spacesuit"
    again(shot(astronaut()[::-1]), subject, "en")
    again(shot(astronaut()), subject, "zh")
    assert len(list(tmp_path.iterdir())) == 3  # another picture and another question are asked anew


def test_an_answer_in_the_cache_needs_no_loaded_model(folder: Path, tmp_path: Path, subject: Subject) -> None:
    model = shutil.copytree(folder, tmp_path / "model")
    asked(params(model), tmp_path)(shot(astronaut()), subject, "en")
    for weights in model.glob("*.safetensors"):
        weights.write_bytes(bytes(weights.stat().st_size))  # broken, but of the same size
    caption = asked(params(model), tmp_path)
    assert caption(shot(astronaut()), subject, "en")


@pytest.mark.parametrize(
    ("write", "question"),
    [(write_tiny_florence2, "<MORE_DETAILED_CAPTION>"), (write_tiny_llava, "Describe the light.")],
)
def test_florence_and_any_chat_model_answer_too(write: Callable[[Path], Path], question: str, tmp_path: Path) -> None:
    vlm = open_vlm(params(write(tmp_path)))
    picture = astronaut()[::4, ::4].copy()
    assert vlm.answer(picture, question, 6) == vlm.answer(picture, question, 6) != ""


def test_a_model_that_is_not_here_is_told_with_the_remedy_before_any_download(tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(InputError, match="hf download nobody/no-such-model"):
        asked(params(Path("nobody/no-such-model")), tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_vlm(params(tmp_path))
