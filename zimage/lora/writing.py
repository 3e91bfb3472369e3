"""Writing a LoRA in the dialects that loaders and trainers ask for."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from zimage.lora.change import Kronecker
from zimage.lora.modules import QKV, QKV_PARTS, native_name
from zimage.lora.portable import Factors
from zimage.lora.strength import METADATA_KEY
from zimage.lora.tensors import HASH_KEY

Dialect = Literal["portable", "comfyui", "kohya", "diffusers"]
# Facts about the source's tensors that are no longer true of the new file's.
STALE_METADATA = frozenset({METADATA_KEY, HASH_KEY, "sshs_model_hash", "sshs_legacy_hash", "format"})


Weight = Factors | Kronecker


def tensors_in(dialect: Dialect, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return the tensors of a file in a dialect, by key; Kronecker products where the names stay split.

    portable: `diffusion_model.X.lora_A/B.weight`, split q, k and v: what diffusers and ComfyUI both read.
    diffusers: `transformer.X.lora_A/B.weight`: what diffusers itself saves; ComfyUI reads it since December 2025.
    comfyui: `diffusion_model.<native>.lora_A/B.weight` with fused qkv: for tools that know only the original names.
    kohya: `lora_unet_<native>.lora_down/up.weight` with alpha and fused qkv.
    """
    match dialect:
        case "portable":
            return _pairs(weights, "diffusion_model.")
        case "diffusers":
            return _pairs(weights, "transformer.")
        case "comfyui":
            return _pairs(fused(_factors_of(weights)), "diffusion_model.")
        case "kohya":
            return _kohya(fused(_factors_of(weights)))


def _factors_of(weights: Mapping[str, Weight]) -> dict[str, Factors]:
    assert not any(isinstance(weight, Kronecker) for weight in weights.values()), "written in split names only"
    return {name: weight for name, weight in weights.items() if isinstance(weight, Factors)}


def fused(weights: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return the same change under native names, q, k and v of a block as one `attention.qkv`.

    Where the three share their down factor (they came from a fused one) the rank stays; otherwise the ranks add up and
    the up factor is block-diagonal. A part that is not changed becomes rows of zeros.
    """
    out: dict[str, Factors] = {}
    blocks: dict[str, dict[str, Factors]] = {}
    for name, factors in weights.items():
        part = next((part for part in QKV_PARTS if name.endswith(part)), None)
        if part is None:
            out[native_name(name)] = factors
        else:
            blocks.setdefault(name.removesuffix(part), {})[part] = factors
    return out | {block + QKV: _joined(parts) for block, parts in blocks.items()}


def _joined(parts: Mapping[str, Factors]) -> Factors:
    some = next(iter(parts.values()))
    rows = some.up.shape[0]
    if all(torch.equal(factors.down, some.down) for factors in parts.values()):
        empty = torch.zeros(rows, some.up.shape[1], dtype=some.up.dtype)
        return Factors(some.down, torch.cat([parts[part].up if part in parts else empty for part in QKV_PARTS]))
    downs = torch.cat([parts[part].down for part in QKV_PARTS if part in parts])
    ups = torch.zeros(3 * rows, len(downs), dtype=some.up.dtype)
    start = 0
    for at, part in enumerate(QKV_PARTS):
        if part in parts:
            rank = parts[part].up.shape[1]
            ups[at * rows : (at + 1) * rows, start : start + rank] = parts[part].up
            start += rank
    return Factors(downs, ups)


def _pairs(weights: Mapping[str, Weight], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, Kronecker):
            tensors |= {f"{prefix}{name}.{suffix}": part for suffix, part in (weight.parts or {}).items()}
            continue
        down, up = weight
        tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"] = down, up
    return tensors


def _kohya(weights: Mapping[str, Factors]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in weights.items():
        stem = "lora_unet_" + name.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
        tensors[f"{stem}.alpha"] = torch.tensor(float(len(down)), dtype=torch.float32)
    return tensors


def groups_in(dialect: Dialect, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the layers that are written together, in a file's order: q, k and v of a block where they are fused."""
    if dialect in {"portable", "diffusers"}:
        return [(name,) for name in sorted(names)]
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(native_name(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def keys_in(dialect: Dialect, names: Iterable[str]) -> list[str]:
    """Return keys at least as many and as long as those that a file of these layers will have."""
    longest = [f"transformer.{name}.lora_magnitude" for name in names]
    return [f"{name}{at}" for name in longest for at in range(4)]


def as_stored(weight: Weight, dtype: torch.dtype) -> Weight:
    """Return a layer's factors as a file of this dtype holds them."""
    if not isinstance(weight, Kronecker):
        return Factors(weight.down.to(dtype), weight.up.to(dtype))
    assert weight.parts is not None
    return kronecker_of({name: part.to(dtype) for name, part in weight.parts.items()})


def kronecker_of(parts: Mapping[str, Tensor], scale: float = 1.0) -> Kronecker:
    """Return the Kronecker product that these tensors give, by their suffixes."""
    sides = []
    for name in ("lokr_w1", "lokr_w2"):
        whole = parts.get(name)
        sides.append(whole if whole is not None else parts[f"{name}_a"].double() @ parts[f"{name}_b"].double())
    return Kronecker(sides[0] * scale, sides[1], dict(parts))


def tensors_of(weight: Weight) -> list[Tensor]:
    """Return the tensors that a file holds of a layer."""
    return list((weight.parts or {}).values()) if isinstance(weight, Kronecker) else list(weight)


def is_exact(weight: Weight, rounded: Weight) -> bool:
    """Return whether a layer's factors are held to the last bit.

    A strength that is a power of two keeps bfloat16 exact; any other needs the wider type.
    """
    pairs = zip(tensors_of(weight), tensors_of(rounded), strict=True)
    return all(kept is given or torch.equal(kept.to(given.dtype), given) for given, kept in pairs)
