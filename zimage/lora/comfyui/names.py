"""Which keys of a LoRA file ComfyUI applies to Z-Image; it drops the others with a log line."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from zimage.core.assets import read_asset
from zimage.lora.files.modules import NUM_REFINERS, is_module, native_name, released_shapes


@dataclass(frozen=True)
class Target:
    """The weight of ComfyUI's model that a name stands for."""

    native: str
    third: int | None  # which third of a fused qkv's rows; None for the whole weight


@dataclass(frozen=True)
class Names:
    """ComfyUI's tables, from comfyui_names.json."""

    source: str
    accepted: dict[str, Target]  # a key without its suffix
    pairs: tuple[tuple[str, str], ...]  # suffixes of (up, down), in the order they are looked for
    singles: tuple[str, ...]


@cache
def names(num_layers: int | None = None) -> Names:
    """Return what ComfyUI accepts for a Z-Image of so many layers (as released when None)."""
    data = json.loads(read_asset("comfyui_names.json"))
    return Names(
        source=data["source"],
        accepted=_accepted(data, num_layers or data["num_layers"]),
        pairs=tuple((up, down) for up, down in data["pairs"]),
        singles=tuple(data["singles"]),
    )


def used_keys(keys: Iterable[str], num_layers: int | None = None) -> set[str]:
    """Return the keys that ComfyUI applies."""
    table = names(num_layers)
    present = set(keys)
    used = set()
    for key in present:
        for suffix in table.singles:
            if key.endswith(suffix) and key.removesuffix(suffix) in table.accepted:
                used.add(key)
    for up, down in table.pairs:
        for key in present:
            stem = key.removesuffix(up)
            if key.endswith(up) and stem in table.accepted and stem + down in present:
                used |= {key, stem + down}
    return used


def _accepted(data: dict[str, Any], num_layers: int) -> dict[str, Target]:
    accepted = {}
    for name in _layer_names(num_layers):
        native = native_name(name)
        third = next((at for at, part in enumerate(data["rows_of_qkv"]) if name.endswith(part)), None)
        for rule in data["prefixes_of_diffusers_names"]:
            accepted[rule["prefix"] + name.replace(".", rule["separator"])] = Target(native, third)
        for rule in data["prefixes_of_native_names"]:
            accepted[rule["prefix"] + native.replace(".", rule["separator"])] = Target(native, None)
    return accepted


def _layer_names(num_layers: int) -> list[str]:
    released = list(released_shapes())
    inner = [name.removeprefix("layers.0.") for name in released if name.startswith("layers.0.")]
    outer = [name for name in released if not name.startswith(("layers.", "noise_refiner.", "context_refiner."))]
    stacks = (("layers", num_layers), ("noise_refiner", NUM_REFINERS), ("context_refiner", NUM_REFINERS))
    blocks = [f"{stack}.{index}.{name}" for stack, count in stacks for index in range(count) for name in inner]
    return [name for name in blocks + outer if is_module(name)]
