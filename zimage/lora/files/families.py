"""Recognise the model family that a LoRA was made for, by names and widths of the layers it changes.

Names and widths: the models of diffusers 0.42.1 with their default or released configurations, and their original
checkpoints' names as ComfyUI keeps them. Widths decide only where two models share names; a single number such as 3840
never does (Lumina2's fused qkv is 3840 wide as well).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from zimage.lora.files.layers import Layer
from zimage.lora.files.modules import place_of

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
    "Flux.3",
    "Chroma",
    "AuraFlow",
    "Ovis-Image",
    "FIBO 2",
    "HunyuanImage",
    "OmniGen2",
    "ERNIE-Image",
    "Wan",
    "Sana",
    "PixArt",
    "Kandinsky",
    "PRX",
    "language model",
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
# Names that one model alone has (diffusers 0.42.1, and the original checkpoints' names); asked before all widths.
MARKS: tuple[tuple[FamilyName, str, str], ...] = (
    ("Chroma", r"^distilled_guidance_layer_", "blocks whose modulation a network of its own makes"),
    ("Flux.3", r"^(txt_)?mode_blocks_|^(early|single)_stream_modulations_(image|txt)", "blocks for each kind of input"),
    ("AuraFlow", r"^joint_transformer_blocks_\d|_ff(_context)?_out_projection$", "joint and single transformer blocks"),
    ("FIBO 2", r"^perceiver_layers_\d|^layers_\d+_cross_attention_to_", "layers with cross-attention"),
    ("OmniGen2", r"^ref_image_refiner_\d|^ref_image_patch_embedder", "layers that read reference pictures"),
    ("ERNIE-Image", r"^layers_\d+_(self_attention_to_|mlp_linear_fc2)", "layers with self_attention and mlp"),
    ("Kandinsky", r"^(visual|text)_transformer_blocks_\d", "transformer blocks of picture and text"),
    ("PRX", r"^blocks_\d+_attention_(img_qkv|txt_kv)_proj", "blocks with a shared qkv of the picture"),
    (
        "Wan",
        r"^blocks_\d+_(attn[12]_to_|self_attn_[qkvo]$|cross_attn_[qkvo]$|ffn_)",
        "video blocks with cross-attention",
    ),
    (
        "language model",
        r"(^|_)layers_\d+_(self_attn_[qkvo]_proj|mlp_(gate|up|down)_proj|self_attn_qkv_proj)$",
        "the layers of a language model such as Llama or Qwen",
    ),
)
CROSS_ATTENTION_WIDTHS: dict[int, FamilyName] = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}


def recognise(layers: Sequence[Layer]) -> Family:
    """Return the family whose layers these are; `unknown` with the reason when none or no single one is."""
    trunk = [layer for layer in layers if not layer.is_text_encoder]
    if not trunk:
        return Family("unknown", "only a text encoder's layers", None)
    for name, mark, needs in MARKS:
        if any(re.search(mark, layer.module) for layer in trunk):
            width = _width(trunk)
            return Family(name, f"{needs} (width {width})", width)
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
    return _unknown(trunk)


def _unknown(trunk: Sequence[Layer]) -> Family:
    """Return the family of a file whose layers no known model has, with the layers and widths that were seen."""
    kinds = Counter(re.sub(r"\d+", "N", layer.path[:80]) for layer in trunk).most_common(3)
    listed = ", ".join(f"{name!r} x {count}" for name, count in kinds)
    widths = sorted({layer.shape for layer in trunk if layer.shape})[:4]
    seen = f" with weights of {', '.join(f'{out} x {width}' for out, width in widths)}" if widths else ""
    return Family("unknown", f"layers such as {listed}{seen}", _width(trunk))


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
    if any(layer.shape == (24576, 3072) for layer in trunk):  # its gated feed-forward is twice as wide as Flux.1's
        return Family("Ovis-Image", needs, width)
    if width == 3584:
        return Family("HunyuanImage", needs, width)
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
    if _has(trunk, r"_attn2_to_[kv]$") and width in {1152, 2240}:
        return Family("PixArt" if width == 1152 else "Sana", f"transformer blocks of width {width}", width)
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
    if width == 2520:
        return Family("OmniGen2", "layers of width 2520 with grouped attention", width)
    if _has(trunk, own_names) and width not in {None, 2304, 1024}:
        return _unknown(trunk)
    if _has(trunk, own_names):
        return Family("Lumina2", f"layers of width {width} with grouped attention", width)
    if width == 3584:
        return Family("FIBO 2", "44 layers of width 3584 with Z-Image's names", width)
    if width == 2304:
        return Family("Lumina2", "layers of width 2304 with grouped attention (their fused qkv is 3840 wide)", width)
    if width == 4608 or _has(trunk, r"adaln_modulation|attention_o$"):
        return Family("Ideogram4", f"layers that share Z-Image's names but are {width or 4608} wide", width)
    return _z_image(trunk)


def _z_image(trunk: Sequence[Layer]) -> Family:
    width = _width(trunk, r"attention_(to_[qkv]|qkv|to_out_0|out)$|feed_forward_w[13]$")
    return Family("Z-Image", f"single-stream layers of width {width}", width)
