"""A training that goes on from a LoRA."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.tiny_base import whole_pipeline
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from tests.training.stage_process import stage_process
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.model.base import Base
from zimage.model.latents import image_of
from zimage.stages.train import train
from zimage.training.distributed import begin_world
from zimage.training.noise import generator_of
from zimage.training.setup import build_run

WIDTHS = {"layers.0.attention.to_q": (48, 48), "layers.1.feed_forward.w3": (128, 48)}


def lora(folder: Path, rank: int, *, true_rank: int | None = None, alpha: float | None = None) -> dict[str, str]:
    """The setting of a new LoRA file, in kohya's way of writing where it has an alpha; its change is large."""
    generator, tensors = torch.Generator().manual_seed(7), {}
    for layer, (outputs, inputs) in WIDTHS.items():
        inner = torch.randn(rank, true_rank or rank, generator=generator) if true_rank else torch.eye(rank)
        down = inner @ torch.randn(true_rank or rank, inputs, generator=generator) * 0.3
        up = torch.randn(outputs, rank, generator=generator) * 0.3
        names = ("lora_A", "lora_B") if alpha is None else ("lora_down", "lora_up")
        for name, matrix in zip(names, (down, up), strict=True):
            tensors[f"diffusion_model.{layer}.{name}.weight"] = matrix.contiguous()
        if alpha is not None:
            tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(alpha)
    path = folder / f"lora-{rank}.safetensors"
    save_file(tensors, path)
    return {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def changes(encoded: Path, base: Base, **settings: Any) -> dict[str, torch.Tensor]:
    """The change of each layer before the first step."""
    run = build_run(encoded, Path(base.model), recipe(**settings), MACHINE, begin_world(2, 2))
    weights = run.adapters.weights(run.adapters.values)
    return {name: weight.change() for name, weight in weights.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("rank", "true_rank", "alpha"), [(2, None, None), (4, None, 2.0), (6, 3, None)], ids=["smaller", "equal", "larger"]
)
def test_a_training_begins_with_the_change_of_the_lora_whatever_its_rank(  # noqa: PLR0917
    rank: int, true_rank: int | None, alpha: float | None, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    init = lora(tmp_path, rank, true_rank=true_rank, alpha=alpha)
    found = changes(tiny_encoded, tiny_base, init_lora=init)
    file = load_file(init["file"])
    down, up = ("lora_A", "lora_B") if alpha is None else ("lora_down", "lora_up")
    for name, change in found.items():
        if name in WIDTHS:
            one, two = (file[f"diffusion_model.{name}.{part}.weight"].double() for part in (up, down))
            torch.testing.assert_close(change, one @ two * (1 if alpha is None else alpha / rank), rtol=1e-5, atol=1e-5)
        else:
            assert not change.any()


def test_a_lora_of_a_larger_rank_is_reduced_to_its_best_approximation(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init = lora(tmp_path, 6)
    change = changes(tiny_encoded, tiny_base, init_lora=init)["layers.0.attention.to_q"]
    file = load_file(init["file"])
    up, down = (file[f"diffusion_model.layers.0.attention.to_q.lora_{part}.weight"].double() for part in "BA")
    values = torch.linalg.svdvals(up @ down)
    error = float(torch.linalg.matrix_norm(change - up @ down))
    assert error == pytest.approx(float(values[4:].norm()), rel=1e-4)
    assert any("in 2 layers: reduced" in message for message in caplog.messages)


def test_the_picture_before_the_first_step_is_that_of_the_lora(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    init = lora(tmp_path, 2, alpha=1.0)
    samples = {"steps": 2, "guidance_scale": 1.5, "seed": 5, "at_start": True}
    params = recipe(steps=2, init_lora=init, samples=samples)
    train(tiny_encoded, tmp_path / "train", params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    pipeline = whole_pipeline(tiny_base)
    noise = torch.randn((1, 16, 8, 6), generator=generator_of(5, "sample", 0))

    def drawn() -> "np.ndarray[Any, Any]":
        pixels = pipeline(
            "a photo of ohzw woman",
            height=64,
            width=48,
            num_inference_steps=2,
            guidance_scale=1.5,
            latents=noise,
            output_type="pt",
        ).images[0]
        return np.asarray(image_of(pixels * 2 - 1)).astype(int)

    base = drawn()
    pipeline.load_lora_weights(init["file"])
    folder = tmp_path / "train" / "samples"
    first, later = (np.asarray(Image.open(folder / f"step-00000{step}-0.png")).astype(int) for step in (0, 2))
    assert np.abs(first - drawn()).max() <= 1
    assert np.abs(first - base).max() > 1 and np.abs(first - later).max() > 1


def test_a_run_that_went_on_from_a_lora_and_was_killed_ends_with_the_same_lora(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(steps=8, checkpoint_every=1, init_lora=lora(tmp_path, 2))
    with stage_process(tiny_encoded, tmp_path / "killed", tiny_base, params, slowly=True) as process:
        while not list((aside_of(tmp_path / "killed") / "resume").glob("step-*.safetensors")):
            assert process.is_alive()
        process.kill()
    for name in ("whole", "killed"):
        train(tiny_encoded, tmp_path / name, params=params, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    for file in ("lora.safetensors", "loss.csv"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_lora_that_does_not_fit_is_refused_in_one_sentence(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    init = lora(tmp_path, 2)
    narrow = tmp_path / "narrow.safetensors"
    layer = "diffusion_model.layers.0.attention.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 40), f"{layer}.lora_B.weight": torch.ones(40, 2)}, narrow)
    other = {"file": str(narrow), "sha256": hashlib.sha256(narrow.read_bytes()).hexdigest()}
    for settings, said in (
        ({"init_lora": init, "targets": ["attention"]}, r"changes 1 layers that train\.targets leaves out .*w3; add"),
        ({"init_lora": init, "adapter": "lokr"}, r"but train\.adapter is lokr; set it to lora"),
        ({"init_lora": {**init, "sha256": "00"}}, r"has SHA-256 [0-9a-f]{64}, but params\.yaml pins 00"),
        ({"init_lora": {**init, "file": "nowhere"}}, r"names nowhere, which does not exist"),
        ({"init_lora": other}, r"to_q by a matrix \(40, 40\), but the base has \(48, 48\)"),
    ):
        with pytest.raises(InputError, match=said):
            changes(tiny_encoded, tiny_base, **settings)
