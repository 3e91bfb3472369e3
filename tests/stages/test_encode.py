"""Crops and captions become what the model reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny_base import whole_pipeline
from tests.training.crops import SUBJECT, write_detect_and_caption
from tests.training.recipe import recipe
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.evaluation.generate.image_cache import Request
from zimage.model import device
from zimage.model.base import Base, identify_files
from zimage.model.rows import ItemRow, TextRow
from zimage.photos.rows import CropRow
from zimage.stages.encode import EncodeParams, _out_of_memory_explained, encode
from zimage.training.dataset import Dataset
from zimage.training.pictures import ClassPictures, MadeClassPictures
from zimage.training.setup import _plan_steps

PARAMS = EncodeParams(mirror=False, class_pictures=None, sample_prompts=["a photo of {subject}"])


def _encoded(tmp_path: Path, base: Base, **changes: object) -> tuple[list[ItemRow], list[TextRow]]:
    detect, caption = write_detect_and_caption(tmp_path)
    encode(detect, caption, tmp_path / "encode", params=PARAMS.model_copy(update=changes), base=base, subject=SUBJECT)
    return read_rows(tmp_path / "encode/items.jsonl", ItemRow), read_rows(tmp_path / "encode/texts.jsonl", TextRow)


def test_every_training_crop_becomes_latents_and_no_held_out_one(tiny_base: Base, tmp_path: Path) -> None:
    items, _ = _encoded(tmp_path, tiny_base)
    assert [item.file for item in items] == ["train/aa-full.png", "train/bb-head.png"]
    tensors = load_file(tmp_path / "encode" / "latents.safetensors")
    assert tensors[f"{items[0].item}.mean"].shape == (16, 8, 6)
    assert (tensors[f"{items[0].item}.std"] > 0).all()


def test_any_number_of_processes_makes_the_same_files(
    tiny_base: Base, tmp_path: Path, share: Callable[[int], None], capfd: pytest.CaptureFixture[str]
) -> None:
    _encoded(tmp_path / "alone", tiny_base, mirror=True)
    share(3)
    capfd.readouterr()
    _encoded(tmp_path / "shared", tiny_base, mirror=True)
    alone, shared = (identify_files((tmp_path / name).rglob("*.*"), tmp_path / name) for name in ("alone", "shared"))
    assert shared == alone
    progress = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("pictures", "text encoder"))]
    assert progress == ["text encoder 0/3", "text encoder 3/3", "pictures 0/4", "pictures 4/4"]


def test_captions_are_embedded_as_the_pipeline_embeds_them(tiny_base: Base, tmp_path: Path) -> None:
    items, texts = _encoded(tmp_path, tiny_base)
    by_key = {text.text: text for text in texts}
    pipeline = whole_pipeline(tiny_base)
    (expected,), _ = pipeline.encode_prompt("a photo of ohzw woman, turned left", do_classifier_free_guidance=False)
    key = items[0].texts[0]
    assert by_key[key].prompt == "a photo of ohzw woman, turned left"
    found = load_file(tmp_path / "encode" / "texts.safetensors")[key]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert by_key[key].tokens == len(expected)


def test_the_empty_text_class_captions_and_sample_prompts_are_embedded_too(tiny_base: Base, tmp_path: Path) -> None:
    items, texts = _encoded(tmp_path, tiny_base)
    by_key = {text.text: text for text in texts}
    assert "" in {text.prompt for text in texts}
    assert [by_key[key].prompt for key in items[0].class_texts] == ["a photo of a woman, turned left", "一张女人的照片"]
    assert [text.prompt for text in texts if text.sample] == ["a photo of ohzw woman"]


def test_crops_are_also_learnt_at_smaller_sizes_with_their_masks_and_captions(tiny_base: Base, tmp_path: Path) -> None:
    items, _ = _encoded(tmp_path, tiny_base, also_px=[32, 48, 512])
    found = [(item.file, item.width, item.height) for item in items]
    assert found == [
        ("train/aa-full.png", 48, 64), ("train/aa-full.png", 32, 32), ("train/aa-full.png", 48, 48),
        ("train/bb-head.png", 64, 64), ("train/bb-head.png", 32, 32), ("train/bb-head.png", 48, 48),
    ]  # fmt: skip
    assert len({tuple(item.texts) for item in items[:3]}) == 1
    tensors, masks = (load_file(tmp_path / "encode" / f"{name}.safetensors") for name in ("latents", "masks"))
    assert tensors[f"{items[4].item}.mean"].shape == (16, 4, 4)
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {"0000": (8, 6), "0001": (4, 4), "0002": (6, 6)}
    with Image.open(tmp_path / "detect" / "train" / "bb-head.png") as image:
        small = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.LANCZOS))
    vae = whole_pipeline(tiny_base).vae
    with torch.no_grad():
        pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = (vae.encode(pixels).latent_dist.mean[0] - vae.config.shift_factor) * vae.config.scaling_factor
    torch.testing.assert_close(tensors[f"{items[4].item}.mean"], expected, rtol=1e-3, atol=1e-3)
    dataset = Dataset(tmp_path / "encode", device=torch.device("cpu"), face_weight=2.0)
    recipe_of_all = recipe(steps=12, batch_size=2)
    assert {(step.bucket.height, step.bucket.width) for step in _plan_steps(dataset, recipe_of_all)} == {
        (8, 6), (4, 4), (6, 6), (8, 8)
    }  # fmt: skip


def test_a_mirrored_crop_exchanges_left_and_right_in_pixels_mask_and_words(tiny_base: Base, tmp_path: Path) -> None:
    items, texts = _encoded(tmp_path, tiny_base, mirror=True)
    by_key = {text.text: text.prompt for text in texts}
    assert [item.mirrored for item in items] == [False, True, False, True]
    assert by_key[items[1].texts[0]] == "a photo of ohzw woman, turned right"
    masks = load_file(tmp_path / "encode" / "masks.safetensors")
    assert torch.equal(masks[items[1].item], masks[items[0].item].flip(1))


def test_a_mask_tells_how_much_of_each_latent_is_face(tiny_base: Base, tmp_path: Path) -> None:
    items, _ = _encoded(tmp_path, tiny_base)
    masks = load_file(tmp_path / "encode" / "masks.safetensors")
    assert items[0].mask and not items[1].mask
    expected = torch.zeros(8, 6)
    expected[:2, :3] = 1
    expected[2, :3] = 0.5
    torch.testing.assert_close(masks[items[0].item], expected)


def test_class_pictures_take_the_crops_shape_and_carry_their_own_captions(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    Image.fromarray(np.zeros((90, 61, 3), np.uint8)).save(folder / "one.png")
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(folder / "two.jpg")
    (folder / "one.txt").write_text("a woman at sea")
    pictures = ClassPictures(folder=str(folder), identity=identify_files(folder.glob("*"), folder))
    items, texts = _encoded(tmp_path, tiny_base, class_pictures=pictures)
    by_key = {text.text: text.prompt for text in texts}
    others = [item for item in items if item.role == "class"]
    assert [(item.width, item.height) for item in others] == [(48, 64), (64, 64)]
    assert [by_key[item.texts[0]] for item in others] == ["a woman at sea", "a photo of a woman"]


def test_class_pictures_are_generated_by_the_base_where_none_are_given(tiny_base: Base, tmp_path: Path) -> None:
    made = {
        "number": 5,
        "prompts": ["a photo of {class}", "{class} at sea"],
        "steps": 2,
        "guidance_scale": 0.0,
        "seed": 3,
    }
    params = EncodeParams.model_validate({**PARAMS.model_dump(), "class_pictures": made})
    items, texts = _encoded(tmp_path, tiny_base, class_pictures=params.class_pictures)
    by_key = {text.text: text.prompt for text in texts}
    others = [item for item in items if item.role == "class"]
    assert [by_key[item.texts[0]] for item in others] == ["a photo of a woman", "a woman at sea"] * 2 + [
        "a photo of a woman"
    ]
    assert [(item.width, item.height) for item in others] == [(48, 64), (64, 64), (64, 64), (48, 64), (48, 64)]
    latents = load_file(tmp_path / "encode" / "latents.safetensors")
    noise = torch.randn((1, 16, 8, 6), generator=torch.Generator().manual_seed(_noise_seed("a photo of a woman", 3)))
    (expected,) = whole_pipeline(tiny_base)(
        "a photo of a woman", height=64, width=48, num_inference_steps=2, guidance_scale=0.0, latents=noise
    ).images
    kept = tmp_path / ".encode.cache" / others[0].file
    with Image.open(kept) as image:
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1

    times = {path: path.stat().st_mtime_ns for path in kept.parent.iterdir()}
    assert isinstance(params.class_pictures, MadeClassPictures)
    fewer = params.class_pictures.model_copy(update={"number": 4})
    _encoded(tmp_path, tiny_base, class_pictures=fewer)
    assert {path: path.stat().st_mtime_ns for path in kept.parent.iterdir()}.items() < times.items()
    again = load_file(tmp_path / "encode" / "latents.safetensors")
    assert torch.equal(again[f"{others[0].item}.mean"], latents[f"{others[0].item}.mean"])


def _noise_seed(text: str, number: int) -> int:
    return Request(prompt=text, text=text, seed=number, lora=None, strength=0.0).noise_seed


def test_class_pictures_that_changed_are_refused_with_their_new_identity(tiny_base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "one.png")
    with pytest.raises(InputError, match=identify_files(folder.glob("*"), folder)):
        _encoded(tmp_path, tiny_base, class_pictures=ClassPictures(folder=str(folder), identity="sha256:00"))


def test_a_size_the_model_cannot_take_is_refused_before_any_work(tiny_base: Base, tmp_path: Path) -> None:
    detect, caption = write_detect_and_caption(tmp_path, width=50)
    with pytest.raises(InputError, match=r"50 x 64 px.*multiples of 16"):
        encode(detect, caption, tmp_path / "encode", params=PARAMS, base=tiny_base, subject=SUBJECT)
    assert not (tmp_path / "encode").exists()


def test_a_crop_without_a_caption_is_refused_by_name(tiny_base: Base, tmp_path: Path) -> None:
    detect, caption = write_detect_and_caption(tmp_path)
    (caption / "captions.jsonl").write_text("")
    with pytest.raises(InputError, match=r"no caption for train/aa-full\.png"):
        encode(detect, caption, tmp_path / "encode", params=PARAMS, base=tiny_base, subject=SUBJECT)


def test_out_of_memory_names_the_crops_that_fit(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detect, _ = write_detect_and_caption(tmp_path)
    crops = [row for row in read_rows(detect / "crops.jsonl", CropRow) if row.split == "train"]
    monkeypatch.setattr(device, "available_gb", lambda _: 0.004)
    with (
        pytest.raises(InputError, match=r"too small to encode 64 x 64 px.*set detect\.crops\.side_px to 32"),
        _out_of_memory_explained(Path(tiny_base.model), crops),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_trigger_that_the_text_encoder_does_not_read_is_refused_and_a_cut_caption_counted(
    tiny_base: Base, tmp_path: Path
) -> None:
    detect, caption = write_detect_and_caption(tmp_path)
    lines = (caption / "captions.jsonl").read_text(encoding="utf-8")
    arguments: dict[str, Any] = {"params": PARAMS, "base": tiny_base, "subject": SUBJECT}
    (caption / "captions.jsonl").write_text(lines.replace('["ohzw woman"]', f'["ohzw {"x" * 600}"]'), encoding="utf-8")
    encode(detect, caption, tmp_path / "encode", **arguments)
    assert json.loads((tmp_path / "encode" / "metrics.json").read_text())["captions_cut"] == 1

    (caption / "captions.jsonl").write_text(lines.replace('["ohzw woman"]', f'["{"x" * 600} ohzw"]'), encoding="utf-8")
    with pytest.raises(InputError, match=r"The trigger `ohzw` of 1 caption\(s\) lies behind .* \(train/bb-head\.png\)"):
        encode(detect, caption, tmp_path / "again", **arguments)
