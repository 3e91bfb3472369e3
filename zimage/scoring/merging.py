"""Weights as people run them: a LoRA merged into them as ComfyUI merges it, and blocks in 8 bits.

ComfyUI (0.33.0: comfy/model_patcher.py, patch_weight_to_device; comfy/lora.py; comfy/float.py) adds `strength * up @
down` to a copy of the weight and rounds the sum to the weight's own type: to the nearest bfloat16, or stochastically to
8-bit floats. Of a change that is small beside the weight, a part is lost in bfloat16: the sum rounds back to it.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from zimage.core.errors import InputError
from zimage.evaluation.generate.image_cache import Precision
from zimage.lora.convert.change import Change, added_to, shape_of
from zimage.lora.convert.reading import read_lora
from zimage.model.fast.quantized import FP8_MAX, fp8_of, int8_of

BLOCKS = ("layers.", "noise_refiner.", "context_refiner.")
UNQUANTIZED = ".adaLN_modulation."  # small and sensitive: as in training, see zimage.model.fast.block
FP8_LEAST_EXPONENT, FP8_MANTISSA_BITS = -6, 3  # of e4m3: smaller numbers have the spacing of 2 ** -6


def in_8_bits(weight: Tensor, precision: Precision) -> Tensor:
    """Return a weight (N, K) rounded to the nearest of its 8-bit values, one scale an output, in its own dtype."""
    quantized = fp8_of(weight) if precision == "fp8" else int8_of(weight)
    return (quantized.q.float() * quantized.scale).to(weight.dtype)


def stochastically_in_fp8(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Return a weight (N, K) rounded to one of its two neighbours in e4m3, one scale an output; right on average.

    Each neighbour is as probable as the other one is far (comfy/float.py, manual_stochastic_round_to_float8).
    """
    scale = weight.abs().amax(dim=1, keepdim=True).float().clamp_min(torch.finfo(torch.float32).tiny) / FP8_MAX
    scaled = weight.float() / scale
    exponent = torch.frexp(scaled)[1] - 1  # of 1.0 it is 0
    spacing = torch.exp2((exponent.clamp_min(FP8_LEAST_EXPONENT) - FP8_MANTISSA_BITS).float())
    drawn = torch.rand(scaled.shape, generator=generator).to(scaled.device)
    return ((scaled / spacing + drawn).floor() * spacing).clamp(-FP8_MAX, FP8_MAX) * scale


def is_quantized(name: str) -> bool:
    """Return whether a layer's weight is in 8 bits where the blocks are: the large ones, as in training."""
    return name.startswith(BLOCKS) and UNQUANTIZED not in name


@torch.no_grad()
def quantize_blocks(transformer: Any, precision: Precision) -> None:
    """Round the large weights of a transformer's blocks to 8 bits, in place."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and is_quantized(name):
            module.weight.copy_(in_8_bits(module.weight, precision))


def merged(weight: Tensor, name: str, change: Change, strength: float, precision: Precision | None) -> Tensor:
    """Return a weight (N, K) with a change added in float32, rounded as ComfyUI rounds it; float32.

    Args:
        weight: The base's.
        name: Of its layer, which decides the draws of the stochastic rounding.
        change: What the LoRA adds at strength 1.
        strength: What it is multiplied with.
        precision: bfloat16, also for None; float32 loses nothing; fp8 rounds stochastically.
    """
    added = strength * added_to(weight, change).to(torch.float32)
    if precision == "fp8" and is_quantized(name):
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(name.encode()))
        return stochastically_in_fp8(weight.float() + added, generator)
    if precision == "float32":
        return weight.float() + added
    return (weight.to(torch.bfloat16).float() + added).to(torch.bfloat16).float()


class MergingLoader:
    """Merges a LoRA into the weights of a pipeline; see `zimage.evaluation.generate.generator.LoraLoader`.

    Args:
        precision: Of the weights.
    """

    def __init__(self, precision: Precision | None) -> None:
        self._precision = precision
        self._merged: tuple[Path, float] | None = None
        self._before: dict[str, Tensor] = {}  # what the changed weights were, in the machine's memory

    @torch.no_grad()
    def apply(self, pipeline: Any, lora: Path, strength: float) -> None:
        """Merge the file, unless it is merged at this strength.

        Raises:
            InputError: it changes a layer that the base does not have, or that has another width.
        """
        if self._merged == (lora, strength):
            return
        self.remove(pipeline)
        layers = dict(pipeline.transformer.named_modules())
        for name, change in read_lora(lora).changes.items():
            require_fit(lora, name, change, tuple(layers[name].weight.shape) if name in layers else None)
            weight = layers[name].weight
            self._before[name] = weight.detach().to("cpu", copy=True)
            weight.copy_(merged(weight, name, change, strength, self._precision))
        self._merged = (lora, strength)

    @torch.no_grad()
    def remove(self, pipeline: Any) -> None:
        """Give the changed layers the weights that they had."""
        layers = dict(pipeline.transformer.named_modules()) if self._before else {}
        for name, before in self._before.items():
            layers[name].weight.copy_(before)
        self._before.clear()
        self._merged = None


def require_fit(lora: Path, name: str, change: Change, shape: tuple[int, ...] | None) -> None:
    """Pass if a change fits the weight of a layer.

    Raises:
        InputError: there is no such layer, or it has another shape.
    """
    wanted = shape_of(change)
    if shape != wanted:
        raise InputError(
            f"{lora} changes {name} by a matrix {wanted}, but the base has {shape or 'no such layer'}; score it on the "
            "base that it was trained for."
        )


@dataclass(frozen=True)
class Survival:
    """What is left of a LoRA once it is merged and rounded.

    Args:
        share: Of the change that was wanted: its projection on it, 1 where nothing is lost.
        relative: Size of the change over that of the weights it is added to, by Frobenius norms.
    """

    share: float
    relative: float


@torch.no_grad()
def survival(folder: Path, lora: Path, strength: float, precision: Precision | None) -> Survival | None:
    """Return what merging a LoRA into a base leaves of it; None where it changes nothing.

    Args:
        folder: Of the base.
        lora: The file.
        strength: What it is multiplied with.
        precision: See `merged`.
    """
    along = wanted = weights = 0.0
    changes = read_lora(lora).changes
    for name, weight in _weights(folder, changes):
        require_fit(lora, name, changes[name], tuple(weight.shape))
        before = in_8_bits(weight, "fp8") if precision == "fp8" and is_quantized(name) else weight
        added = strength * added_to(before, changes[name])
        got = merged(before, name, changes[name], strength, precision).double() - before.double()
        along += float((got * added).sum())
        wanted += float(added.square().sum())
        weights += float(before.double().square().sum())
    return Survival(along / wanted, (wanted / weights) ** 0.5) if wanted and weights else None


def _weights(folder: Path, changes: Mapping[str, Change]) -> Iterator[tuple[str, Tensor]]:
    """Yield the base's weight of each layer that a LoRA changes, without opening the model."""
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    where = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
    for name in changes:
        key = f"{name}.weight"
        file = folder / "transformer" / where.get(key, "diffusion_pytorch_model.safetensors")
        with safe_open(file, "pt") as opened:
            yield name, opened.get_tensor(key)
