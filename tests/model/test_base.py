"""Naming, pinning and opening a base model."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from tests.tiny_base import TEXT_WIDTH
from zimage.core.errors import InputError
from zimage.model.base import (
    Base,
    identify,
    is_turbo,
    open_pipeline,
    open_scheduler,
    open_text_encoder,
    open_transformer,
    open_vae,
    resolve,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_pinned_folder_resolves_to_itself(tiny_base: Base) -> None:
    assert resolve(tiny_base) == Path(tiny_base.model)
    assert identify(tiny_base.model) == tiny_base.identity


def test_changed_weights_are_another_model_and_the_message_gives_the_new_identity(
    tiny_base: Base,
    tmp_path: Path,
) -> None:
    folder = _copy(tiny_base, tmp_path)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=identify(str(folder))):
        resolve(Base(model=str(folder), identity=tiny_base.identity))


def test_pictures_and_hidden_files_beside_the_weights_do_not_change_the_identity(
    tiny_base: Base,
    tmp_path: Path,
) -> None:
    folder = _copy(tiny_base, tmp_path)
    (folder / "teaser.png").write_bytes(b"picture")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock.json").write_text("{}")
    assert identify(str(folder)) == tiny_base.identity


def test_an_sdxl_folder_is_refused_with_what_it_is_and_what_is_wanted(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"StableDiffusionXLPipeline with UNet2DConditionModel.*ZImagePipeline"):
        identify(str(tmp_path))


def test_a_folder_without_a_text_encoder_is_refused_by_name(tiny_base: Base, tmp_path: Path) -> None:
    folder = _copy(tiny_base, tmp_path)
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(InputError, match="lacks text_encoder"):
        identify(str(folder))


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_a_base_with_pickled_weights_only_is_refused_and_its_pickle_is_not_opened(
    part: str, tiny_base: Base, tmp_path: Path
) -> None:
    folder = _copy(tiny_base, tmp_path)
    (weights,) = (folder / part).glob("*.safetensors")
    pickled = weights.with_name("pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin")
    torch.save(load_file(weights), pickled)
    weights.unlink()
    with pytest.raises(InputError, match=rf"{part} has no weights in \.safetensors files \(others: {pickled.name}\)"):
        identify(str(folder))
    openers = {
        "text_encoder": partial(open_text_encoder, dtype=torch.float32),
        "transformer": partial(open_transformer, device="cpu", dtype=torch.float32),
        "vae": partial(open_vae, device="cpu"),
    }
    with pytest.raises(OSError, match="safetensors"):
        openers[part](folder)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "absent", "empty"])
def test_what_is_no_folder_in_the_layout_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="diffusers' layout"):
        identify(str(tmp_path / name))


def test_a_hub_id_resolves_to_the_pinned_commit_in_the_cache(
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--z-image"
    shutil.copytree(tiny_base.model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert identify("someone/z-image") == f"hub:{COMMIT}"
    assert resolve(Base(model="someone/z-image", identity=f"hub:{COMMIT}")).name == COMMIT


def test_a_hub_id_that_is_not_cached_names_the_download_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=f"hf download someone/z-image --revision {COMMIT}"):
        resolve(Base(model="someone/z-image", identity=f"hub:{COMMIT}"))


def test_a_hub_id_pinned_by_a_folder_hash_is_refused() -> None:
    with pytest.raises(InputError, match="hub:<commit>"):
        resolve(Base(model="someone/z-image", identity="sha256:00"))


def test_the_pipeline_samples_and_keeps_its_autoencoder_in_float32(tiny_base: Base) -> None:
    pipeline = open_pipeline(Path(tiny_base.model), device="cpu", dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 32, "width": 48, "num_inference_steps": 1, "guidance_scale": 0.0}
    image = pipeline(prompt_embeds=[torch.ones(7, TEXT_WIDTH, dtype=torch.bfloat16)], **options).images[0]
    assert image.size == (48, 32)
    assert (pipeline.vae.dtype, pipeline.transformer.dtype) == (torch.float32, torch.bfloat16)


def test_the_folders_own_scheduler_decides_the_shift(tiny_base: Base) -> None:
    assert open_scheduler(Path(tiny_base.model)).config.shift == 3.0


def _copy(base: Base, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base.model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("name", "shift", "turbo"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", 3.0, True),
        ("/weights/z_image_turbo", 6.0, True),
        ("/weights/mine", 3.0, True),
        ("/weights/mine", 6.0, False),
        ("Tongyi-MAI/Z-Image", 6.0, False),
        ("ostris/Z-Image-De-Turbo", 3.0, False),
        ("/weights/zimage_deturbo", 3.0, False),
        ("tiny", 3.0, False),
    ],
)
def test_turbo_is_known_by_its_name_or_its_noise_schedule(name: str, shift: float, turbo: bool, tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"shift": shift}))
    assert is_turbo(name, tmp_path) == turbo
