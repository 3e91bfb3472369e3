"""The portable form of a LoRA file, read by all loaders: `diffusion_model.<module>.lora_A/B.weight`, alpha folded in.

A LoKr is written as `diffusion_model.<module>.lokr_w1` and so on; a DoRA as `transformer.<module>.lora_A/B.weight` with
`lora_magnitude_vector`, which diffusers reads, and `dora_scale`, which ComfyUI reads. Diffusers and ComfyUI both read
these names (measured; see the matrix in infra/benchmarks.md), and because no alpha is left to be forgotten, both give
the LoRA the same strength.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zimage.core.errors import InputError
from zimage.core.tensor_file import write_tensors
from zimage.lora.files.modules import is_module

PREFIX = "diffusion_model."
DORA_PREFIX = "transformer."  # the only one under which diffusers 0.42 and ComfyUI 0.33 both read a DoRA (loaders.json)
# Keys: github.com/Stability-AI/ModelSpec 1.0.1; OneTrainer writes this architecture.
MODELSPEC = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "Z-Image/lora",
    "modelspec.implementation": "https://github.com/Tongyi-MAI/Z-Image",
}
_DOWN, _UP = "lora_A.weight", "lora_B.weight"
LENGTHS = ("lora_magnitude_vector", "dora_scale")  # of a DoRA's rows: bfloat16 would round away what was learnt


class Factors(NamedTuple):
    """A change of one weight, `up @ down`, with its strength (alpha / rank) multiplied in."""

    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)

    def change(self) -> Tensor:
        """Return the change of the weight, (out, in), in float64."""
        return self.up.double() @ self.down.double()


@dataclass(frozen=True)
class Kronecker:
    """LoKr: the Kronecker product of a small and a large matrix (arXiv 2309.14859; lycoris: modules/lokr.py)."""

    left: Tensor  # (a, b), strength included
    right: Tensor  # (c, d); the change is (a c, b d)
    parts: Mapping[str, Tensor] | None = None  # the tensors that give both, by their suffix (`lokr_w1`, `lokr_w2_a`, …)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the change, (out, in)."""
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]


@dataclass(frozen=True)
class Decomposed:
    """DoRA (arXiv 2402.09353): a weight with a LoRA added whose rows are then given other lengths.

    The loaders count lengths in two ways, so a file that both apply whole has both numbers, always in float32. peft
    0.21:tuners/lora/dora.py divides `magnitude` by the length of the row with the LoRA; ComfyUI
    0.33:comfy/weight_adapter/base.py:weight_decompose divides `dora_scale` by the length of the base's own row. Both
    give the row the same length on the base that the DoRA was trained on, at strength 1.
    """

    factors: Factors
    magnitude: Tensor  # (out,), the lengths of the rows
    comfyui: Tensor  # (out, 1), magnitude x length of the base's row / length of the row with the LoRA

    @property
    def lengths(self) -> dict[str, Tensor]:
        """Return the vectors of a file, by their suffixes."""
        return {"lora_magnitude_vector": self.magnitude, "dora_scale": self.comfyui}

    def added_to(self, weight: Tensor) -> Tensor:
        """Return what ComfyUI adds to a weight (out, in) at strength 1, in float64."""
        plain = weight.double()
        before = plain.norm(dim=1, keepdim=True)
        changed = plain + self.factors.change().to(weight.device)
        lengthened: Tensor = changed * (self.comfyui.to(plain) / before)
        return lengthened - plain


def decomposed_of(factors: Factors, magnitude: Tensor, *, before: Tensor, after: Tensor) -> Decomposed:
    """Return a DoRA by the lengths of its rows.

    Args:
        factors: Its LoRA.
        magnitude: (out,), the lengths that the rows get.
        before: (out,), the lengths of the base's rows.
        after: (out,), the lengths of the rows with the LoRA added.
    """
    return Decomposed(factors, magnitude, (magnitude * before / after)[:, None])


Weight = Factors | Kronecker | Decomposed  # the forms that a portable file can hold


def kronecker_of(parts: Mapping[str, Tensor], scale: float = 1.0) -> Kronecker:
    """Return the Kronecker product that these tensors give, by their suffixes."""
    sides = []
    for name in ("lokr_w1", "lokr_w2"):
        whole = parts.get(name)
        sides.append(whole if whole is not None else parts[f"{name}_a"].double() @ parts[f"{name}_b"].double())
    return Kronecker(sides[0] * scale, sides[1], dict(parts))


def prefix_of(weight: Weight) -> str:
    """Return the prefix of a layer's keys in the portable dialect."""
    return DORA_PREFIX if isinstance(weight, Decomposed) else PREFIX


def metadata_of(*, title: str, trigger: str, base: str, dataset: str, notes: Mapping[str, str]) -> dict[str, str]:
    """Return what a LoRA file says about itself, under the names other tools read.

    Args:
        title: The name shown in a list of LoRAs.
        trigger: The word in the prompt that calls the person.
        base: The base model's identity, `sha256:<hex>` or `hub:<commit>`.
        dataset: The SHA-256 of what it was trained on, in hex.
        notes: Further facts (steps, rank, code version); they are stored as `zimage.<name>`.
    """
    return {
        **MODELSPEC,
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "zimage.base": base,
        "zimage.dataset_sha256": dataset,
        **{f"zimage.{name}": value for name, value in notes.items()},
    }


def save_portable(
    path: Path, weights: Mapping[str, Weight], *, metadata: Mapping[str, str], dtype: torch.dtype = torch.bfloat16
) -> None:
    """Write a LoRA, DoRA or LoKr in the portable dialect, whole or not at all; equal contents give equal bytes.

    Args:
        path: The file to write.
        weights: Diffusers' module names (`layers.0.attention.to_q`) to `(down (r, in), up (out, r))`, a Kronecker
            product with its parts or a DoRA, of any float dtype, the strength folded in.
        metadata: Strings; see `metadata_of`.
        dtype: What is stored of matrices: bfloat16 for a release, float32 where nothing may be lost.

    Raises:
        InputError: no weights, a name no Z-Image has, shapes that do not belong together, or NaN or infinity among
            the values.
    """
    if not weights:
        raise InputError(f"There are no LoRA weights to write to {path}; name at least one layer to train.")
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        prefix = prefix_of(weight)
        for suffix, part in _parts(name, weight).items():
            stored = part.detach().to(torch.float32 if suffix in LENGTHS else dtype)
            if not bool(torch.isfinite(stored).all()):
                raise InputError(
                    f"The LoRA weights of {name} hold NaN or infinity, so {path} was not written; "
                    "training diverged: lower its learning rate."
                )
            tensors[f"{prefix}{name}.{suffix}"] = stored
    write_tensors(path, tensors, {**MODELSPEC, **metadata})


def _parts(name: str, weight: Weight) -> Mapping[str, Tensor]:
    """Return the tensors of a layer by their suffixes, checked."""
    if not is_module(name):
        raise InputError(f"A Z-Image has no layer {name!r}; expected diffusers' names such as layers.0.attention.to_q.")
    if isinstance(weight, Kronecker):
        assert weight.parts is not None
        return weight.parts
    if isinstance(weight, Decomposed):
        return {**_parts(name, weight.factors), **weight.lengths}
    down, up = weight
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise InputError(
            f"The LoRA weights of {name} do not belong together: down {tuple(down.shape)}, up {tuple(up.shape)}; "
            "expected (rank, in) and (out, rank)."
        )
    return {_DOWN: down, _UP: up}
