"""Which model a LoRA file was made for, told from the names and widths of the layers it changes.

Names and widths: the models of diffusers 0.42.1 with their default or released configurations, and their original
checkpoints' names as ComfyUI keeps them. Widths decide only where two models share names; a single number such as 3840
never does (Lumina2's fused qkv is 3840 wide as well).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zimage.lora.layers import Layer
from zimage.lora.modules import place_of

FamilyName = Literal[
    "SD1.5",
    "SD2",
    "SDXL",
    "SD3",
    "Flux.1",
    "Flux.2",
    "Qwen-Image",
    "Lumina2",
    "Krea2",
    "Ideogram4",
    "Z-Image",
    "unknown",
]


@dataclass(frozen=True)
class Family:
    """A model family and what the file needs of it, as a phrase: `the blocks of a U-Net with …`."""

    name: FamilyName
    needs: str
    width: int | None


UNET = re.compile(r"(down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_")
FLUX = re.compile(r"(double_blocks|single_blocks|single_transformer_blocks)_\d|(double|single)_stream_modulation")
JOINT = re.compile(r"joint_blocks_\d")
TRANSFORMER_BLOCKS = re.compile(r"transformer_blocks_\d")
KREA_BLOCKS = re.compile(r"blocks_\d+_(attn_(wq|wk|wv|wo|gate)|mlp_(gate|up|down))|txtfusion_|text_fusion_")
NEXT_DIT = re.compile(
    r"(layers|noise_refiner|context_refiner)_\d+_(attention_|attn_to_|feed_forward_|adaLN_|adaln_|norm1_)"
)
CROSS_ATTENTION_WIDTHS: dict[int, FamilyName] = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}


def recognise(layers: Sequence[Layer]) -> Family:
    """Return the family whose layers these are; `unknown` with the reason when none or no single one is."""
    trunk = [layer for layer in layers if not layer.is_text_encoder]
    if not trunk:
        return Family("unknown", "only a text encoder's layers", None)
    rules: tuple[tuple[re.Pattern[str], Callable[[Sequence[Layer]], Family]], ...] = (
        (UNET, lambda trunk: _unet(trunk, layers)),
        (FLUX, _flux),
        (JOINT, _sd3),
        (KREA_BLOCKS, _krea2),
        (TRANSFORMER_BLOCKS, _transformer_blocks),
        (NEXT_DIT, _next_dit),
    )
    counts = [sum(pattern.match(layer.module) is not None for layer in trunk) for pattern, _ in rules]
    best = max(range(len(rules)), key=counts.__getitem__)
    if counts[best] > 0:
        return rules[best][1](trunk)
    if 2 * sum(place_of(layer.module) is not None for layer in trunk) > len(trunk):
        return _z_image(trunk)
    return Family("unknown", f"layers such as {trunk[0].path[:80]!r}", _width(trunk))


def _width(layers: Sequence[Layer], names: str = r"attn|attention|qkv|linear1") -> int | None:
    """The most frequent input width among layers of these names."""
    inputs = Counter(layer.shape[1] for layer in layers if layer.shape and re.search(names, layer.module))
    inputs = inputs or Counter(layer.shape[1] for layer in layers if layer.shape)
    return inputs.most_common(1)[0][0] if inputs else None


def _indices(layers: Sequence[Layer], pattern: str) -> set[int]:
    return {int(found[1]) for layer in layers if (found := re.search(pattern, layer.module))}


def _has(layers: Sequence[Layer], pattern: str) -> bool:
    return any(re.search(pattern, layer.module) for layer in layers)


def _unet(trunk: Sequence[Layer], layers: Sequence[Layer]) -> Family:
    across = Counter(
        layer.shape[1] for layer in trunk if layer.shape and re.search(r"attn2_to_[kv]$", layer.module)
    ).most_common(1)
    width = across[0][0] if across else None
    name = CROSS_ATTENTION_WIDTHS.get(width, "unknown") if width else _unet_without_cross_attention(trunk, layers)
    needs = "the blocks of a U-Net"
    return Family(name, f"{needs} with cross-attention width {width}" if width else needs, width)


def _unet_without_cross_attention(trunk: Sequence[Layer], layers: Sequence[Layer]) -> FamilyName:
    # SDXL stacks up to ten transformer blocks and has two text encoders; SD1.5 and SD2 have one of each.
    if _has(trunk, r"transformer_blocks_[1-9]") or any(layer.prefix == "lora_te2_" for layer in layers):
        return "SDXL"
    text = Counter(layer.shape[1] for layer in layers if layer.is_text_encoder and layer.shape).most_common(1)
    return CROSS_ATTENTION_WIDTHS.get(text[0][0], "unknown") if text else "unknown"


def _flux(trunk: Sequence[Layer]) -> Family:
    doubles = _indices(trunk, r"^(?:double_blocks|transformer_blocks)_(\d{1,9})(?!\d)")
    singles = _indices(trunk, r"^(?:single_blocks|single_transformer_blocks)_(\d{1,9})(?!\d)")
    width = _width(trunk)
    needs = f"double-stream and single-stream blocks of width {width}"
    # Flux.2: modulation shared by all blocks, a gated feed-forward of ratio 3 fused with qkv (transformer_flux2.py).
    second = _has(trunk, r"to_qkv_mlp_proj|linear_in$|linear_out$|_stream_modulation") or width in {4096, 6144}
    first_linear = {layer.shape[0] for layer in trunk if layer.shape and layer.module.endswith("linear1")}
    if width == 3072 and 9 * 3072 in first_linear:
        second = True
    if second:
        return Family("Flux.2", needs, width)
    if width == 3072 and max(doubles, default=0) < 19 and max(singles, default=0) < 38:
        return Family("Flux.1", needs, width)
    return Family("unknown", needs, width)


def _sd3(trunk: Sequence[Layer]) -> Family:
    width = _width(trunk)
    return Family("SD3", f"joint blocks of picture and text of width {width}", width)


def _krea2(trunk: Sequence[Layer]) -> Family:
    width = _width([layer for layer in trunk if not re.match(r"text_fusion|txtfusion", layer.module)] or trunk)
    return Family("Krea2", f"gated attention blocks of width {width}", width)


def _transformer_blocks(trunk: Sequence[Layer]) -> Family:
    width = _width(trunk)
    if any(FLUX.match(layer.module) for layer in trunk):
        return _flux(trunk)
    if _has(trunk, r"attn_to_gate|_ff_(gate|up|down)$") or (
        width == 6144 and not _has(trunk, r"add_[qkv]_proj|ff_linear")
    ):
        return _krea2(trunk)
    if _has(trunk, r"_ff_linear_(in|out)$|_ff_context_linear_"):
        return _flux(trunk)
    deepest = max(_indices(trunk, r"^transformer_blocks_(\d{1,9})(?!\d)"), default=0)
    if width == 3072 and (_has(trunk, r"_(img|txt)_(mlp|mod)_") or 19 <= deepest < 60):
        return Family("Qwen-Image", "60 double-stream blocks of width 3072", width)
    if width in {1536, 2432} and (_has(trunk, r"add_[qkv]_proj|_context") or _has(trunk, r"attn_to_[qkv]")):
        return _sd3(trunk)
    if width == 3072:  # either Flux.1's or Qwen-Image's first blocks; Flux names what Qwen-Image does not have
        if _has(trunk, r"_norm1(_context)?_linear$|_ff_(context_)?net_"):
            return _flux(trunk)
        return Family("unknown", "double-stream blocks of width 3072 (Flux.1's or Qwen-Image's)", width)
    return Family("unknown", f"transformer blocks of width {width}", width)


def _next_dit(trunk: Sequence[Layer]) -> Family:
    width = _width(trunk, r"attention_(to_[qkv]|qkv)$|attn_to_[qkv]$")
    own_names = r"_attn_to_|feed_forward_linear_\d$|^(layers|noise_refiner)_\d+_(adaLN_modulation_1|norm1_linear)$"
    if _has(trunk, own_names):
        return Family("Lumina2", f"layers of width {width} with grouped attention", width)
    if width == 2304:
        return Family("Lumina2", "layers of width 2304 with grouped attention (their fused qkv is 3840 wide)", width)
    if width == 4608 or _has(trunk, r"adaln_modulation|attention_o$"):
        return Family("Ideogram4", f"layers that share Z-Image's names but are {width or 4608} wide", width)
    return _z_image(trunk)


def _z_image(trunk: Sequence[Layer]) -> Family:
    width = _width(trunk, r"attention_(to_[qkv]|qkv|to_out_0|out)$|feed_forward_w[13]$")
    return Family("Z-Image", f"single-stream layers of width {width}", width)
