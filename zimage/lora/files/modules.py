"""The layers of Z-Image's transformer that a LoRA can change: their names in every tool, and their widths.

Diffusers names and widths: diffusers 0.42.1:models/transformers/transformer_z_image.py, ZImageTransformer2DModel.
Native names (ComfyUI, the original checkpoint): ComfyUI v0.26.1:comfy/utils.py, z_image_to_diffusers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zimage.core.errors import InputError

Shape = tuple[int, int]  # (out, in)

RELEASED_DIM = 3840
NUM_LAYERS = 30
NUM_REFINERS = 2

_INNER = (
    "attention.to_q",
    "attention.to_k",
    "attention.to_v",
    "attention.to_out.0",
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
    "adaLN_modulation.0",
)
_OUTER = (
    "all_x_embedder.2-1",
    "all_final_layer.2-1.linear",
    "all_final_layer.2-1.adaLN_modulation.1",
    "t_embedder.mlp.0",
    "t_embedder.mlp.2",
    "cap_embedder.1",
    "siglip_embedder.1",  # Omni and Edit only, as is siglip_refiner
)
_STACKS = ("layers", "noise_refiner", "context_refiner", "siglip_refiner")
QKV = "attention.qkv"
QKV_PARTS = ("attention.to_q", "attention.to_k", "attention.to_v")
NATIVE_NAMES = {
    "attention.to_out.0": "attention.out",
    "all_x_embedder.2-1": "x_embedder",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}


@dataclass(frozen=True)
class Place:
    """A layer as a file names it; `attention.qkv` is the three projections of a block in one."""

    name: str  # diffusers' name, or `<block>.attention.qkv`
    naming: Literal["diffusers", "native", "both"]


def _underscored(name: str) -> str:
    return re.sub(r"[.\-]", "_", name)


def _namings(names: tuple[str, ...]) -> dict[str, tuple[str, Literal["diffusers", "native", "both"]]]:
    table: dict[str, tuple[str, Literal["diffusers", "native", "both"]]] = {}
    for name in names:
        native = NATIVE_NAMES.get(name)
        split = name in QKV_PARTS
        table[_underscored(name)] = (name, "diffusers" if native or split else "both")
        if native:
            table[_underscored(native)] = (name, "native")
    return table


_INNER_NAMES = {**_namings(_INNER), _underscored(QKV): (QKV, "native")}
_OUTER_NAMES = _namings(_OUTER)
_BLOCK = re.compile(rf"(?P<stack>{'|'.join(_STACKS)})_(?P<index>0|[1-9]\d{{0,2}})_(?P<inner>.+)")


def place_of(module: str) -> Place | None:
    """Return the layer that a name with underscores for separators means; None if Z-Image has no such layer."""
    if found := _BLOCK.fullmatch(module):
        if found["inner"] not in _INNER_NAMES or (found["stack"], found["inner"]) == (
            "context_refiner",
            "adaLN_modulation_0",  # context_refiner is built without modulation
        ):
            return None
        inner, naming = _INNER_NAMES[found["inner"]]
        return Place(f"{found['stack']}.{found['index']}.{inner}", naming)
    if module in _OUTER_NAMES:
        return Place(*_OUTER_NAMES[module])
    return None


def is_module(name: str) -> bool:
    """Return whether this is diffusers' name of a linear layer of a Z-Image of some size."""
    place = place_of(_underscored(name))
    return place is not None and place.name == name and not name.endswith(QKV)


def native_name(name: str) -> str:
    """Return the original checkpoint's and ComfyUI's name of a layer; to_q, to_k and to_v become their shared qkv."""
    for ours, native in (*NATIVE_NAMES.items(), *((part, QKV) for part in QKV_PARTS)):
        if name.endswith(ours):
            return name.removesuffix(ours) + native
    return name


def released_shapes() -> dict[str, Shape]:
    """Return the widths of every linear layer of the released Z-Image (Base, Turbo and De-Turbo are alike)."""
    names = [name for name in _OUTER if not name.startswith("siglip")]
    for stack, count in (("noise_refiner", NUM_REFINERS), ("context_refiner", NUM_REFINERS), ("layers", NUM_LAYERS)):
        names += [f"{stack}.{index}.{inner}" for index in range(count) for inner in _INNER]
    shapes = {name: shape_in(RELEASED_DIM, name) for name in names if is_module(name)}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def shape_in(dim: int, name: str) -> Shape | None:
    """Return the widths of a layer in a Z-Image of width `dim`; None where they do not follow from the width.

    Free are only the embedders' inputs (channels, caption width), which follow from the other models of the pipeline;
    for the released width they are known.
    """
    feed_forward, modulation = int(dim / 3 * 8), min(dim, 256)
    inner = name.split(".", 2)[2] if name.split(".", maxsplit=1)[0] in _STACKS else name
    shapes = {
        **dict.fromkeys(_INNER[:4], (dim, dim)),
        QKV: (3 * dim, dim),
        "feed_forward.w1": (feed_forward, dim),
        "feed_forward.w2": (dim, feed_forward),
        "feed_forward.w3": (feed_forward, dim),
        "adaLN_modulation.0": (4 * dim, modulation),
        "all_final_layer.2-1.adaLN_modulation.1": (dim, modulation),
        "t_embedder.mlp.0": (1024, 256),
        "t_embedder.mlp.2": (modulation, 1024),
    }
    if dim == RELEASED_DIM:
        shapes |= {
            "all_x_embedder.2-1": (dim, 64),
            "all_final_layer.2-1.linear": (64, dim),
            "cap_embedder.1": (dim, 2560),
        }
    return shapes.get(inner)


def width_of(shapes: Mapping[str, Shape]) -> int:
    """Return the width of the Z-Image that layers of these widths belong to.

    Raises:
        InputError: the layers belong to no single Z-Image; the message names the first that does not fit.
    """
    votes = [dim for name, shape in shapes.items() if (dim := _vote(name, shape))]
    dim = max(set(votes), key=votes.count) if votes else RELEASED_DIM
    for name, shape in shapes.items():
        expected = shape_in(dim, name)
        if expected is not None and expected != shape:
            raise InputError(
                f"The layer {name} changes a weight of shape {shape}, but in a Z-Image of width {dim} "
                f"it has {expected}; the file is damaged or was made for another model."
            )
    return dim


def _vote(name: str, shape: Shape) -> int | None:
    inner = name.split(".", 2)[2] if name.split(".", maxsplit=1)[0] in _STACKS else name
    match inner:
        case "feed_forward.w2" | "cap_embedder.1" | "all_x_embedder.2-1" | "all_final_layer.2-1.adaLN_modulation.1":
            return shape[0]
        case "adaLN_modulation.0":
            return shape[0] // 4
        case "t_embedder.mlp.0" | "t_embedder.mlp.2" | "siglip_embedder.1":
            return None
        case _:
            return shape[1]
