"""A very small SDXL of the real classes with random weights, and a LoRA for it."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.-"


def write_tiny_sdxl(folder: Path) -> Path:
    """Write the folder: two U-Net levels, two text encoders of width 32, a 2x autoencoder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CLIPTextConfig(
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            vocab_size=2 * len(LETTERS) + 2,
            max_position_embeddings=77,
            projection_dim=32,
            hidden_act="gelu",
        )
        pipeline = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=(32, 64),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
            ),
            text_encoder=CLIPTextModel(config),
            text_encoder_2=CLIPTextModelWithProjection(config),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=UNet2DConditionModel(
                block_out_channels=(32, 64),
                layers_per_block=1,
                sample_size=32,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                transformer_layers_per_block=(1, 2),
                projection_class_embeddings_input_dim=80,
                cross_attention_dim=64,
            ),
            scheduler=EulerDiscreteScheduler(),
        )
    pipeline.save_pretrained(folder)
    return folder


def write_sdxl_lora(path: Path, *, scale: float = 1.0) -> Path:
    """Write a LoRA for the tiny SDXL's cross-attention, in diffusers' names."""
    generator = torch.Generator().manual_seed(3)
    stem = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2"
    tensors = {}
    for name, width in (("to_k", 64), ("to_v", 64), ("to_q", 64)):
        tensors[f"{stem}.{name}.lora_A.weight"] = torch.randn(2, width, generator=generator) * scale
        tensors[f"{stem}.{name}.lora_B.weight"] = torch.randn(64, 2, generator=generator)
    save_file(tensors, path)
    return path


def _tokenizer() -> CLIPTokenizer:
    vocab = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: at for at, token in enumerate(vocab)}, merges=[], model_max_length=77)
