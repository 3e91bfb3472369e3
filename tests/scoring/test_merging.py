"""Merging and rounding against ComfyUI's own code, the library's pipeline and the numbers that bfloat16 has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.evaluation.generate.test_generator import NEAR, SAMPLING, asked
from tests.evaluation.tiny_lora import write_tiny_lora
from tests.lora import comfyui_oracle
from tests.lora.files.test_loaders import NO_CHECKOUT
from zimage.core.errors import InputError
from zimage.evaluation.generate.generator import Generator, LoraLoader, UnmergedLoader
from zimage.evaluation.generate.image_cache import Request
from zimage.lora.files.portable import Factors, save_portable
from zimage.model.base import Base, open_pipeline
from zimage.scoring.merging import (
    FP8_MAX,
    MergingLoader,
    in_8_bits,
    merged,
    stochastically_in_fp8,
    survival,
)

LAYER = "layers.0.attention.to_q"


def weight_and_change(relative: float, side: int = 512) -> tuple[Tensor, Factors]:
    """Return a weight as a base has it, in bfloat16, and a change of rank 16 of this size beside it."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(side, side, generator=generator)).to(torch.bfloat16)
    down, up = torch.randn(16, side, generator=generator), torch.randn(side, 16, generator=generator)
    return weight, Factors(down, up * (relative * weight.float().norm() / (up @ down).norm()))


def share_left(relative: float, precision: Any = None) -> float:
    weight, change = weight_and_change(relative)
    got = merged(weight, LAYER, change, 1.0, precision).double() - weight.double()
    wanted = change.change()
    return float((got * wanted).sum() / wanted.square().sum())


@pytest.mark.parametrize(("relative", "low", "high"), [(0.001, 0.4, 0.7), (0.003, 0.85, 0.97), (0.1, 0.999, 1.001)])
def test_of_a_small_change_bfloat16_keeps_a_part_and_of_a_large_one_all(
    relative: float, low: float, high: float
) -> None:
    assert low < share_left(relative) < high
    assert share_left(relative, "float32") == pytest.approx(1, abs=1e-3)


def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average() -> None:
    weight = weight_and_change(0.1, side=64)[0].float()
    draws = torch.stack([stochastically_in_fp8(weight, torch.Generator().manual_seed(seed)) for seed in range(400)])
    scale = weight.abs().amax(1, keepdim=True) / FP8_MAX
    on_grid = draws[0] / scale
    assert torch.allclose(on_grid, on_grid.to(torch.float8_e4m3fn).float(), rtol=1e-5)
    one, average = (float((each - weight).norm()) for each in (draws[0], draws.mean(0)))
    assert average < 1.2 * one / 400**0.5
    assert all(len(values.unique()) <= 2 for values in draws.reshape(400, -1).T[:200])
    assert share_left(0.001, "fp8") < 2  # a small change is not lost on average, but drowns in the rounding


@pytest.mark.skipif(comfyui_oracle.checkout() is None, reason=NO_CHECKOUT)
@pytest.mark.parametrize("relative", [0.001, 0.01])
def test_comfyui_s_own_code_gives_the_same_merged_weight(relative: float, tmp_path: Path) -> None:
    """Its real `calculate_weight` on a float32 copy and `stochastic_rounding` to the weight's own type."""
    weight, change = weight_and_change(relative)
    expected = comfyui_oracle.merged(weight, change.down, change.up, strength=0.8)
    found = merged(weight, LAYER, change, 0.8, None)
    assert float((found == expected.float()).double().mean()) > 0.9999  # its product is in float32, ours in float64
    assert torch.allclose(found, expected.float(), rtol=2**-7)


def shoot(tiny_base: Base, loader: LoraLoader, *requests: Request) -> list[np.ndarray[Any, Any]]:
    pipeline = open_pipeline(Path(tiny_base.model), device="cpu", dtype=torch.float32)
    states = torch.ones(7, pipeline.transformer.config.cap_feat_dim)
    pictures = dict(Generator(pipeline, {NEAR: states}, SAMPLING, batch_size=1, loader=loader).pictures(requests))
    return [pictures[request].astype(int) for request in requests]


def test_a_large_change_merged_draws_what_it_draws_apart_and_a_tiny_one_what_the_base_draws(
    tiny_base: Base, tmp_path: Path
) -> None:
    large = write_tiny_lora(tmp_path / "large.safetensors", seed=1)
    tensors = load_file(large)
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith("lora_A.weight")]
    factors = {
        name.removeprefix("diffusion_model."): Factors(
            tensors[f"{name}.lora_A.weight"], 1e-5 * tensors[f"{name}.lora_B.weight"]
        )
        for name in modules
    }
    save_portable(tmp_path / "tiny.safetensors", factors, metadata={}, dtype=torch.float32)
    requests = [asked(), asked(lora=large, strength=1.0), asked(lora=tmp_path / "tiny.safetensors", strength=1.0)]
    base, apart, _ = shoot(tiny_base, UnmergedLoader(), *requests)
    base_again, twin, nothing = shoot(tiny_base, MergingLoader("bfloat16"), *requests)
    assert np.array_equal(base, base_again)  # also after LoRAs were merged and taken off
    assert np.abs(twin - apart).mean() < 0.1 * np.abs(apart - base).mean()
    lost = survival(Path(tiny_base.model), tmp_path / "tiny.safetensors", 1.0, None)
    kept = survival(Path(tiny_base.model), large, 1.0, None)
    assert kept is not None and kept.share == pytest.approx(1, abs=0.01)
    assert lost is not None and lost.share != pytest.approx(1, abs=0.05) and lost.relative < 1e-4
    in_full = shoot(tiny_base, MergingLoader("float32"), *requests)
    assert np.abs(in_full[1] - apart).max() <= 2
    assert np.abs(nothing - base).mean() < np.abs(twin - base).mean() / 5


def test_merged_loras_are_taken_off_to_the_last_bit(tiny_base: Base, tmp_path: Path) -> None:
    pipeline = open_pipeline(Path(tiny_base.model), device="cpu", dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in pipeline.transformer.state_dict().items()}
    loader = MergingLoader(None)
    for seed in (1, 2):
        lora = write_tiny_lora(tmp_path / f"{seed}.safetensors", seed=seed)
        loader.apply(pipeline, lora, 0.5)
        changed = [name for name, value in pipeline.transformer.state_dict().items() if not value.equal(before[name])]
        assert len(changed) == 8
    loader.remove(pipeline)
    assert all(value.equal(before[name]) for name, value in pipeline.transformer.state_dict().items())


def test_a_lora_of_another_width_is_not_merged(tiny_base: Base, tmp_path: Path) -> None:
    lora = write_tiny_lora(tmp_path / "wide.safetensors", seed=1, width=96)
    with pytest.raises(InputError, match=r"by a matrix \(96, 96\), but the base has \(48, 48\); score it on the base"):
        shoot(tiny_base, MergingLoader(None), asked(lora=lora, strength=1.0))


@pytest.mark.parametrize(("precision", "error"), [("fp8", 0.04), ("int8", 0.015)])
def test_eight_bits_round_each_output_by_its_own_scale(precision: Any, error: float) -> None:
    weight = weight_and_change(0.1)[0].float() * torch.logspace(-3, 3, 512)[:, None]
    off = (in_8_bits(weight, precision) - weight).norm(dim=1) / weight.norm(dim=1)
    assert float(off.min()) > 0 and float(off.max()) < error
