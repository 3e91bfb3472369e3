"""LoRA files of every family at its true shapes: only headers, the weights are holes in a sparse file.

The widths come from the real classes of diffusers, built without memory on the meta device with the released
configurations; the original checkpoints' names (which diffusers does not have) are spelled out.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import diffusers
import torch

Widths = dict[str, tuple[int, ...]]  # layer to the shape of its weight: (out, in) or (out, in, height, width)

SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD2_UNET = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}


@cache
def widths_of(name: str, **config: object) -> Widths:
    with torch.device("meta"):
        model = getattr(diffusers, name)(**config)
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: tuple(layer.weight.shape) for name, layer in model.named_modules() if isinstance(layer, layers)}


def only(widths: Widths, *parts: str) -> Widths:
    return {name: shape for name, shape in widths.items() if any(part in name for part in parts)}


def clip_widths(count: int, width: int) -> Widths:
    inner = {"self_attn_q_proj": (width, width), "mlp_fc1": (4 * width, width)}
    return {f"text_model_encoder_layers_{i}_{name}": shape for i in range(count) for name, shape in inner.items()}


def repeated(pattern: str, count: int, inner: Widths) -> Widths:
    return {f"{pattern.format(i)}.{name}": shape for i in range(count) for name, shape in inner.items()}


def shapes_of_pairs(
    widths: Widths, prefix: str, down: str, up: str, *, rank: int = 16, flat: bool = False, alpha: bool = False
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, width, *window) in widths.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        shapes[stem + down] = (rank, width, *window)
        shapes[stem + up] = (out, rank, *[1 for _ in window])
        if alpha:
            shapes[f"{stem}.alpha"] = ()
    return shapes


AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")


def kohya(widths: Widths, prefix: str = "lora_unet_") -> dict[str, tuple[int, ...]]:
    return shapes_of_pairs(widths, prefix, *DOWN_UP, flat=True, alpha=True)


def write_header(
    path: Path, shapes: dict[str, tuple[int, ...]], *, dtype: str = "BF16", metadata: dict[str, str] | None = None
) -> None:
    """Write a valid safetensors file of these shapes whose data are a hole of the right size; its alphas are 1."""
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    start, alphas = 0, []
    for name, shape in shapes.items():
        stop = start + math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}
        if name.endswith(".alpha") and math.prod(shape) == 1:
            alphas.append(start)
        start = stop
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
        for begin in alphas:
            file.seek(8 + len(text) + begin)
            file.write({"BF16": b"\x80\x3f", "F16": b"\x00\x3c", "F32": b"\x00\x00\x80\x3f"}[dtype])


def _attention(name: str, **config: object) -> Widths:
    return only(widths_of(name, **config), "attn")


def _sdxl_original() -> Widths:
    block = {
        "attn1_to_q": (640, 640),
        "attn2_to_q": (640, 640),
        "attn2_to_k": (640, 2048),
        "attn2_to_v": (640, 2048),
        "ff_net_0_proj": (5120, 640),
    }
    return {f"input_blocks_4_1_transformer_blocks_{i}_{name}": shape for i in range(2) for name, shape in block.items()}


def _flux_original() -> Widths:
    double = {"img_attn.qkv": (9216, 3072), "txt_attn.qkv": (9216, 3072), "img_mlp.0": (12288, 3072)}
    single = {"linear1": (21504, 3072), "linear2": (3072, 15360)}
    return repeated("double_blocks.{}", 19, double) | repeated("single_blocks.{}", 38, single)


def _klein_original() -> Widths:
    # FLUX.2 klein 4B: width 3072 like Flux.1, told apart by its gated feed-forward of ratio 3
    double = {"img_attn.qkv": (9216, 3072), "img_mlp.0": (18432, 3072)}
    return repeated("double_blocks.{}", 5, double) | repeated("single_blocks.{}", 20, {"linear1": (27648, 3072)})


def _sd3_original() -> Widths:
    block = {"x_block.attn.qkv": (4608, 1536), "context_block.attn.qkv": (4608, 1536), "x_block.mlp.fc1": (6144, 1536)}
    return repeated("joint_blocks.{}", 24, block)


def _lumina_original() -> Widths:
    block = {"attention.qkv": (3840, 2304), "attention.out": (2304, 2304), "feed_forward.w1": (9216, 2304)}
    return repeated("layers.{}", 26, block | {"adaLN_modulation.1": (9216, 1024)})


def _ideogram_original() -> Widths:
    block = {"attention.qkv": (13824, 4608), "attention.o": (4608, 4608), "feed_forward.w1": (12288, 4608)}
    return repeated("layers.{}", 34, block)


def _krea_original() -> Widths:
    block = {"attn.wq": (6144, 6144), "attn.wk": (1536, 6144), "mlp.gate": (16384, 6144)}
    return repeated("blocks.{}", 28, block)


SD3_5 = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
Z_IMAGE = ("layers.", "refiner")
# What the file is called, to the family that must come out and the shapes of its tensors.
FILES: dict[str, tuple[str, Callable[[], dict[str, tuple[int, ...]]]]] = {
    "SD1.5, kohya": (
        "SD1.5",
        lambda: (
            kohya(_attention("UNet2DConditionModel", cross_attention_dim=768)) | kohya(clip_widths(12, 768), "lora_te_")
        ),
    ),
    "SD1.5, self-attention only": (
        "SD1.5",
        lambda: (
            kohya(only(widths_of("UNet2DConditionModel", cross_attention_dim=768), "attn1"))
            | kohya(clip_widths(12, 768), "lora_te_")
        ),
    ),
    "SD2, kohya": ("SD2", lambda: kohya(_attention("UNet2DConditionModel", **SD2_UNET))),
    "SDXL, kohya": (
        "SDXL",
        lambda: (
            kohya(_attention("UNet2DConditionModel", **SDXL_UNET))
            | kohya(clip_widths(12, 768), "lora_te1_")
            | kohya(clip_widths(32, 1280), "lora_te2_")
        ),
    ),
    "SDXL, original names": ("SDXL", lambda: kohya(_sdxl_original())),
    "SDXL, diffusers": ("SDXL", lambda: shapes_of_pairs(_attention("UNet2DConditionModel", **SDXL_UNET), "unet.", *AB)),
    "SDXL, LoCon": ("SDXL", lambda: kohya(only(widths_of("UNet2DConditionModel", **SDXL_UNET), "attn", "conv"))),
    "SD3.5 large, diffusers": (
        "SD3",
        lambda: shapes_of_pairs(_attention("SD3Transformer2DModel", **SD3_5), "transformer.", *AB),
    ),
    "SD3, original names": ("SD3", lambda: kohya(_sd3_original())),
    "Flux.1, diffusers": ("Flux.1", lambda: shapes_of_pairs(_attention("FluxTransformer2DModel"), "transformer.", *AB)),
    "Flux.1, kohya": ("Flux.1", lambda: kohya(_flux_original())),
    "Flux.1, double blocks only": (
        "Flux.1",
        lambda: shapes_of_pairs(
            only(widths_of("FluxTransformer2DModel"), ".ff.", ".ff_context.", "transformer_blocks.0.attn"),
            "transformer.",
            *AB,
        ),
    ),
    "Flux.2 dev, diffusers": (
        "Flux.2",
        lambda: shapes_of_pairs(_attention("Flux2Transformer2DModel"), "transformer.", *AB),
    ),
    "Flux.2 klein 4B, original names": ("Flux.2", lambda: shapes_of_pairs(_klein_original(), "diffusion_model.", *AB)),
    "Qwen-Image, diffusers": (
        "Qwen-Image",
        lambda: shapes_of_pairs(only(widths_of("QwenImageTransformer2DModel"), "attn.to_"), "transformer.", *AB),
    ),
    "Qwen-Image, feed-forward": (
        "Qwen-Image",
        lambda: shapes_of_pairs(only(widths_of("QwenImageTransformer2DModel"), "_mlp"), "diffusion_model.", *AB),
    ),
    "Lumina2, diffusers": (
        "Lumina2",
        lambda: shapes_of_pairs(only(widths_of("Lumina2Transformer2DModel"), "layers."), "transformer.", *AB),
    ),
    "Lumina2, original names": ("Lumina2", lambda: kohya(_lumina_original())),
    "Lumina2, qkv only": ("Lumina2", lambda: shapes_of_pairs(only(_lumina_original(), "qkv"), "diffusion_model.", *AB)),
    "Krea2, diffusers": (
        "Krea2",
        lambda: shapes_of_pairs(only(widths_of("Krea2Transformer2DModel"), "transformer_blocks"), "transformer.", *AB),
    ),
    "Krea2, original names": ("Krea2", lambda: shapes_of_pairs(_krea_original(), "diffusion_model.", *AB)),
    "Ideogram4, diffusers": (
        "Ideogram4",
        lambda: shapes_of_pairs(only(widths_of("Ideogram4Transformer2DModel"), "layers."), "transformer.", *AB),
    ),
    "Ideogram4, attention only": (
        "Ideogram4",
        lambda: shapes_of_pairs(
            only(widths_of("Ideogram4Transformer2DModel"), "to_q", "to_k"), "diffusion_model.", *AB
        ),
    ),
    "Ideogram4, original names": ("Ideogram4", lambda: shapes_of_pairs(_ideogram_original(), "diffusion_model.", *AB)),
    "Z-Image, ai-toolkit": (
        "Z-Image",
        lambda: shapes_of_pairs(only(widths_of("ZImageTransformer2DModel"), "layers."), "diffusion_model.", *AB),
    ),
    "Z-Image, every layer": (
        "Z-Image",
        lambda: shapes_of_pairs(widths_of("ZImageTransformer2DModel"), "transformer.", *AB),
    ),
    "Z-Image, musubi-tuner": ("Z-Image", lambda: kohya(only(widths_of("ZImageTransformer2DModel"), *Z_IMAGE))),
    "PixArt, diffusers": (
        "PixArt",
        lambda: shapes_of_pairs(
            _attention("PixArtTransformer2DModel", num_layers=4, cross_attention_dim=1152), "transformer.", *AB
        ),
    ),
    "a language model": (
        "language model",
        lambda: shapes_of_pairs(
            repeated("model.layers.{}", 36, {"self_attn.q_proj": (4096, 2560)}), "base_model.model.", *AB
        ),
    ),
    "only a text encoder": ("unknown", lambda: kohya(clip_widths(12, 768), "lora_te_")),
}
