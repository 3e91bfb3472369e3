"""Write a LoRA in the dialects that loaders and trainers expect."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from zimage.core.errors import InputError
from zimage.core.tensor_file import HASH_KEY
from zimage.lora.files.modules import QKV, QKV_PARTS, native_name
from zimage.lora.files.portable import Decomposed, Factors, Kronecker, Weight, kronecker_of, prefix_of
from zimage.lora.files.strength import METADATA_KEY

Dialect = Literal["portable", "comfyui", "kohya", "diffusers", "lycoris"]
SPLIT: frozenset[Dialect] = frozenset({"portable", "diffusers", "lycoris"})  # q, k and v by themselves
# Facts about the source's tensors that are no longer true of the new file's.
STALE_METADATA = frozenset({METADATA_KEY, HASH_KEY, "sshs_model_hash", "sshs_legacy_hash", "format"})


def tensors_in(dialect: Dialect, weights: Mapping[str, Weight]) -> dict[str, Tensor]:
    """Return the tensors of a file in a dialect, by key.

    portable: `diffusion_model.X.lora_A/B.weight`, split q, k and v: what diffusers and ComfyUI both read.
    diffusers: `transformer.X.lora_A/B.weight`: what diffusers itself saves; ComfyUI reads it since December 2025.
    comfyui: `diffusion_model.<native>.lora_A/B.weight` with fused qkv: for tools that know only the original names.
    kohya: `lora_unet_<native>.lora_down/up.weight` with alpha and fused qkv.
    lycoris: `lycoris_X.lora_down/up.weight` with alpha, split q, k and v: what LyCORIS itself saves.
    A LoKr has `lokr_w1` and so on in the place of both factors; a DoRA has the lengths of its rows besides, and
    diffusers' prefix as its portable one.
    """
    match dialect:
        case "portable":
            tensors: dict[str, Tensor] = {}
            for name, weight in weights.items():
                tensors |= _pairs({name: weight}, prefix_of(weight))
            return tensors
        case "diffusers":
            return _pairs(weights, "transformer.")
        case "comfyui":
            return _pairs(fused(weights), "diffusion_model.")
        case "kohya":
            return _with_alpha(fused(weights), "lora_unet_")
        case "lycoris":
            return _with_alpha(weights, "lycoris_")


def fused(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the same change under native names, q, k and v of a block as one `attention.qkv`.

    Where the three share their down factor (they came from a fused one) the rank stays; otherwise the ranks add up and
    the up factor is block-diagonal. A part that is not changed becomes rows of zeros.
    """
    out: dict[str, Weight] = {}
    blocks: dict[str, dict[str, Weight]] = {}
    for name, factors in weights.items():
        part = next((part for part in QKV_PARTS if name.endswith(part)), None)
        if part is None:
            out[native_name(name)] = factors
        else:
            blocks.setdefault(name.removesuffix(part), {})[part] = factors
    return out | {block + QKV: _joined(parts) for block, parts in blocks.items()}


def _joined(parts: Mapping[str, Weight]) -> Weight:
    decomposed = {part: weight for part, weight in parts.items() if isinstance(weight, Decomposed)}
    if decomposed:
        return _joined_lengths(decomposed)
    products = {part: weight for part, weight in parts.items() if isinstance(weight, Kronecker)}
    if products:
        joined = joined_products(products) if len(products) == len(parts) else None
        assert joined is not None, "asked for only where it is possible"
        return joined
    return _joined_factors({part: weight for part, weight in parts.items() if isinstance(weight, Factors)})


def _joined_lengths(parts: Mapping[str, Decomposed]) -> Decomposed:
    if set(parts) != set(QKV_PARTS):
        raise InputError(
            "It is DoRA on some of q, k and v of a block, and one of their fused weight needs the lengths of all rows; "
            "write it with `--to portable`."
        )
    factors = _joined_factors({part: weight.factors for part, weight in parts.items()})
    lengths = [torch.cat([parts[part].lengths[name] for part in QKV_PARTS]) for name in parts[QKV_PARTS[0]].lengths]
    return Decomposed(factors, *lengths)


def joined_products(products: Mapping[str, Kronecker]) -> Kronecker | None:
    """Return the Kronecker products of q, k and v as the one of their fused weight; None where they are none.

    They are one where they differ in the first matrix only, or in its first factor: then its rows lie below each other.
    """
    tensors = {part: product.parts or {} for part, product in products.items()}
    some = next(iter(tensors.values()))
    cut = "lokr_w1" if "lokr_w1" in some else "lokr_w1_a"
    for each in tensors.values():
        if each.keys() != some.keys() or each[cut].shape != some[cut].shape:
            return None
        if not all(torch.equal(each[name], some[name]) for name in some if name != cut):
            return None
    rows = [tensors[part][cut] if part in tensors else torch.zeros_like(some[cut]) for part in QKV_PARTS]
    return kronecker_of({**some, cut: torch.cat(rows)})


def _joined_factors(parts: Mapping[str, Factors]) -> Factors:
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
        if isinstance(weight, Decomposed):
            tensors |= {f"{prefix}{name}.{suffix}": part for suffix, part in weight.lengths.items()}
        down, up = _factors_of(weight)
        tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"] = down, up
    return tensors


def _factors_of(weight: Factors | Decomposed) -> Factors:
    return weight.factors if isinstance(weight, Decomposed) else weight


def _with_alpha(weights: Mapping[str, Weight], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        stem = prefix + name.replace(".", "_")
        if isinstance(weight, Kronecker):
            parts = dict(weight.parts or {})
            # The rank that LyCORIS and ComfyUI divide alpha by; with both matrices whole they ignore it.
            factored = next((parts[side] for side in ("lokr_w2_b", "lokr_w1_b") if side in parts), None)
            rank = len(factored) if factored is not None else 1
            tensors |= {f"{stem}.{suffix}": part for suffix, part in parts.items()}
        else:
            if isinstance(weight, Decomposed):
                tensors |= {f"{stem}.{suffix}": part for suffix, part in weight.lengths.items()}
            down, up = _factors_of(weight)
            rank = len(down)
            tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
        tensors[f"{stem}.alpha"] = torch.tensor(float(rank), dtype=torch.float32)
    return tensors


def groups_in(dialect: Dialect, names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the layers that are written together, in a file's order: q, k and v of a block where they are fused."""
    if dialect in SPLIT:
        return [(name,) for name in sorted(names)]
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        groups.setdefault(native_name(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def keys_in(dialect: Dialect, names: Iterable[str]) -> list[str]:
    """Return keys at least as many and as long as those that a file of these layers will have."""
    longest = [f"transformer.{name}.lora_magnitude_vector" for name in names]
    return [f"{name}{at}" for name in longest for at in range(5)]


def as_stored(weight: Weight, dtype: torch.dtype) -> Weight:
    """Return a layer's factors as a file of this dtype holds them."""
    if isinstance(weight, Decomposed):
        factors = Factors(weight.factors.down.to(dtype), weight.factors.up.to(dtype))
        return Decomposed(factors, weight.magnitude.float(), weight.comfyui.float())
    if not isinstance(weight, Kronecker):
        return Factors(weight.down.to(dtype), weight.up.to(dtype))
    assert weight.parts is not None
    return kronecker_of({name: part.to(dtype) for name, part in weight.parts.items()})


def tensors_of(weight: Weight) -> list[Tensor]:
    """Return the tensors that a file holds of a layer."""
    if isinstance(weight, Decomposed):
        return [*weight.factors, *weight.lengths.values()]
    return list((weight.parts or {}).values()) if isinstance(weight, Kronecker) else list(weight)


def is_exact(weight: Weight, rounded: Weight) -> bool:
    """Return whether a layer's factors are held to the last bit.

    A strength that is a power of two keeps bfloat16 exact; any other needs the wider type.
    """
    pairs = zip(tensors_of(weight), tensors_of(rounded), strict=True)
    return all(kept is given or torch.equal(kept.to(given.dtype), given) for given, kept in pairs)
