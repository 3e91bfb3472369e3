"""Verify what a LoRA file does in diffusers, by loading it there, and in ComfyUI, by its tables."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from zimage.lora.comfyui.names import names, used_keys
from zimage.lora.convert.change import difference, norm, thirds
from zimage.lora.files.modules import QKV, is_module, native_name, width_of
from zimage.lora.files.portable import Decomposed, Factors, Kronecker, Weight, kronecker_of


def applied_by_diffusers(path: Path, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the changes that `ZImagePipeline.load_lora_weights` makes with a file, by layer.

    Args:
        path: The file.
        weights: What it should change; the model it is loaded into has these widths and depths. Its own weights take
            no memory, so the released size (12 GB) needs none.
    """
    from diffusers import ZImagePipeline
    from peft.tuners.lokr.layer import Linear as LoKrLinear
    from peft.tuners.lora import Linear

    model = _empty_model({name: _shape(weight) for name, weight in weights.items()})
    pipeline = ZImagePipeline(scheduler=None, vae=None, text_encoder=None, tokenizer=None, transformer=model)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    changes: dict[str, Weight] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoKrLinear):
            (adapter,) = layer.active_adapters
            changes[name] = kronecker_of(_parts_of(layer, adapter), layer.scaling[adapter])
        elif isinstance(layer, Linear):
            (adapter,) = layer.lora_A.keys()
            down, up = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            factors = Factors(down.double() * layer.scaling[adapter], up.double())
            expected = weights.get(name)
            if adapter in layer.lora_magnitude_vector:
                magnitude = layer.lora_magnitude_vector[adapter].weight.detach()
                comfyui = expected.comfyui if isinstance(expected, Decomposed) else magnitude[:, None]
                changes[name] = Decomposed(factors, magnitude, comfyui)
            else:
                changes[name] = factors
    return changes


def _shape(weight: Weight) -> tuple[int, int]:
    if isinstance(weight, Kronecker):
        return weight.shape
    down, up = weight.factors if isinstance(weight, Decomposed) else weight
    return len(up), down.shape[1]


def _parts_of(layer: Any, adapter: str) -> dict[str, Tensor]:
    """The tensors of a LoKr layer of peft, by their suffixes."""
    names = [name for name in layer.adapter_layer_names if adapter in getattr(layer, name)]
    return {name: getattr(layer, name)[adapter].detach().double() for name in names}


def applied_by_comfyui(path: Path, num_layers: int) -> dict[str, Weight]:
    """Return the changes that ComfyUI makes with a file of LoRA pairs or Kronecker products, by diffusers' names.

    A fused qkv becomes the three rows' changes. Keys that ComfyUI drops are not in the answer.
    """
    table = names(num_layers)
    ours = {(native_name(stem), target.third): stem for stem, target in table.accepted.items() if is_module(stem)}
    changes: dict[str, Weight] = {}
    tensors = load_file(path)
    products: dict[str, dict[str, Tensor]] = {}
    for key in used_keys(tensors, num_layers):
        stem, _, suffix = key.rpartition(".")
        if suffix.startswith("lokr_"):
            products.setdefault(stem, {})[suffix] = tensors[key].double()
    for stem, parts in products.items():
        target = table.accepted[stem]
        product = kronecker_of(parts, _scale_of(parts, tensors.get(f"{stem}.alpha")))
        if target.third is None and target.native.endswith(QKV):
            for at, part in enumerate(thirds(product)):
                assert isinstance(part, Kronecker), "a fused product is written by rows of its first matrix"
                changes[ours[target.native, at]] = part
        else:
            changes[ours[target.native, target.third]] = product
    for up_key in sorted(used_keys(tensors, num_layers)):
        for up_suffix, down_suffix in table.pairs:
            stem = up_key.removesuffix(up_suffix)
            if up_key.endswith(up_suffix) and stem in table.accepted and stem + down_suffix in tensors:
                factors = _with_alpha(tensors[stem + down_suffix], tensors[up_key], tensors.get(f"{stem}.alpha"))
                target = table.accepted[stem]
                change: Factors | Decomposed = factors
                if (scale := tensors.get(f"{stem}.dora_scale")) is not None:
                    change = Decomposed(factors, tensors[f"{stem}.lora_magnitude_vector"], scale)
                for third, part in _by_rows(change, target.native, target.third):
                    changes[ours[target.native, third]] = part
                break
    return changes


def worst_difference(expected: Mapping[str, Weight], found: Mapping[str, Weight]) -> float:
    """Return the largest difference of a layer's change, relative to its size; infinite when a layer is missing.

    A layer that is found but not expected counts by its size alone, so a change of nothing is no difference.
    """
    worst = 0.0
    for name in expected.keys() | found.keys():
        if name not in found:
            size = norm(expected[name])
            worst = max(worst, float("inf") if size > 0 else 0.0)
        elif name not in expected:
            worst = max(worst, float("inf") if norm(found[name]) > 0 else 0.0)
        elif (off := difference(expected[name], found[name])) > 0:
            size = norm(expected[name])
            worst = max(worst, off / size if size > 0 else float("inf"))
    return worst


def depth_of(weights: Mapping[str, Weight]) -> int:
    """Return how many layers the main stack needs at least for these names."""
    return 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("layers.")), default=0)


def _scale_of(parts: Mapping[str, Tensor], alpha: Tensor | None) -> float:
    """Return alpha / rank as ComfyUI does (v0.33.0:comfy/weight_adapter/lokr.py): 1 with both matrices whole."""
    factored = [len(parts[side]) for side in ("lokr_w2_b", "lokr_w1_b") if side in parts]
    return float(alpha) / factored[0] if alpha is not None and factored else 1.0


def _with_alpha(down: Tensor, up: Tensor, alpha: Tensor | None) -> Factors:
    scale = 1.0 if alpha is None else float(alpha) / len(down)
    return Factors(down.double() * scale, up.double())


def _by_rows(
    change: Factors | Decomposed, native: str, third: int | None
) -> list[tuple[int | None, Factors | Decomposed]]:
    if third is not None or not native.endswith("attention.qkv"):
        return [(third, change)]
    if isinstance(change, Decomposed):
        return [(at, part) for at, part in enumerate(thirds(change)) if isinstance(part, Decomposed)]
    return [(at, Factors(change.down, part)) for at, part in enumerate(change.up.chunk(3))]


def _empty_model(shapes: Mapping[str, tuple[int, int]]) -> Any:
    """A ZImageTransformer2DModel of these widths whose weights are zeros without memory of their own."""
    from diffusers import ZImageTransformer2DModel

    dim = width_of(shapes)
    stacks = ("noise_refiner.", "context_refiner.")
    num_refiners = 1 + max((int(name.split(".")[1]) for name in shapes if name.startswith(stacks)), default=1)
    channels = shapes.get("all_x_embedder.2-1", (0, 64))[1], shapes.get("all_final_layer.2-1.linear", (64, 0))[0]
    with torch.device("meta"):
        model: Any = ZImageTransformer2DModel(
            in_channels=next((width for width in channels if width != 64), 64) // 4,
            dim=dim,
            n_layers=1 + max((int(name.split(".")[1]) for name in shapes if name.startswith("layers.")), default=0),
            n_refiner_layers=num_refiners,
            n_heads=1,
            n_kv_heads=1,
            cap_feat_dim=shapes.get("cap_embedder.1", (0, 2560))[1],
            axes_dims=[dim, 0, 0],
        )
    for layer in model.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    return model
