"""LoRA files as each tool writes them, made from one set of weights; and the tiny Z-Image they belong to."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from zimage.lora.files.modules import QKV_PARTS, native_name
from zimage.lora.files.portable import Factors

Weights = Mapping[str, Factors]
Naming = Callable[[str], str]


def tiny_transformer() -> ZImageTransformer2DModel:
    """A Z-Image of width 32 with every weight set, pad tokens too (they start uninitialised)."""
    model = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def pipeline_of(transformer: ZImageTransformer2DModel) -> ZImagePipeline:
    return ZImagePipeline(
        transformer=transformer,
        vae=AutoencoderKL(block_out_channels=(32,)),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )


def factors_for_every_linear(model: torch.nn.Module, rank: int = 3, keep: str = "") -> dict[str, Factors]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: Factors(
            torch.randn(rank, layer.in_features, generator=generator),
            torch.randn(layer.out_features, rank, generator=generator),
        )
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and keep in name
    }


def fused(weights: Weights) -> dict[str, Factors]:
    """The same change with q, k and v of a block as one `qkv`: ranks add up, the up factor is block-diagonal."""
    out: dict[str, Factors] = {}
    for name, factors in weights.items():
        if not name.endswith(QKV_PARTS):
            out[native_name(name)] = factors
        elif name.endswith("to_q"):
            parts = [weights[name.removesuffix("to_q") + part] for part in ("to_q", "to_k", "to_v")]
            out[native_name(name)] = Factors(
                torch.cat([part.down for part in parts]), torch.block_diag(*(part.up for part in parts))
            )
    return out


def _pairs(
    weights: Weights, prefix: str, down: str, up: str, *, scale: float, flat: bool = False, alpha: bool = False
) -> dict[str, Tensor]:
    """Tensors whose change is `scale` times the weights', told by alpha or, without one, folded in."""
    tensors: dict[str, Tensor] = {}
    for name, factors in weights.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors[stem + down] = (factors.down if alpha else factors.down * scale).contiguous()
        tensors[stem + up] = factors.up.contiguous()
        if alpha:
            tensors[f"{stem}.alpha"] = torch.tensor(scale * len(factors.down))
    return tensors


_AB = (".lora_A.weight", ".lora_B.weight")
_DOWN_UP = (".lora_down.weight", ".lora_up.weight")
# Dialect to the tensors whose change is the weights' times a scale; the rows of the facts' matrix.
DIALECTS: dict[str, Callable[[Weights, float], dict[str, Tensor]]] = {
    "diffusers": lambda w, s: _pairs(w, "transformer.", *_AB, scale=s),
    "portable": lambda w, s: _pairs(w, "diffusion_model.", *_AB, scale=s),
    "bare": lambda w, s: _pairs(w, "", *_AB, scale=s),
    "diffsynth": lambda w, s: _pairs(w, "", ".lora_A.default.weight", ".lora_B.default.weight", scale=s),
    "peft": lambda w, s: _pairs(w, "base_model.model.", *_AB, scale=s),
    "kohya-split": lambda w, s: _pairs(w, "lora_unet_", *_DOWN_UP, scale=s, flat=True, alpha=True),
    "dotted-kohya": lambda w, s: _pairs(w, "diffusion_model.", *_DOWN_UP, scale=s, alpha=True),
    "lycoris": lambda w, s: _pairs(w, "lycoris_", *_DOWN_UP, scale=s, flat=True, alpha=True),
    "onetrainer-legacy": lambda w, s: _pairs(w, "transformer.", *_DOWN_UP, scale=s, alpha=True),
    "lora-transformer": lambda w, s: _pairs(w, "lora_transformer_", *_DOWN_UP, scale=s, flat=True, alpha=True),
    "native": lambda w, s: _pairs(fused(w), "diffusion_model.", *_AB, scale=s),
    "kohya-native": lambda w, s: _pairs(fused(w), "lora_unet_", *_DOWN_UP, scale=s, flat=True, alpha=True),
    "kohya-double": lambda w, s: _pairs(w, "lora_unet__", *_DOWN_UP, scale=s, flat=True, alpha=True),
}


def write_dialect(path: Path, dialect: str, weights: Weights, scale: float) -> None:
    """Write a file whose change is `scale` times the weights'; peft's has its configuration beside it."""
    save_file(DIALECTS[dialect](weights, scale), path)
    if dialect == "peft":
        rank = len(next(iter(weights.values())).down)
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
        path.with_name("adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
