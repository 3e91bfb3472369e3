"""A very small Z-Image folder of the real classes with random weights, for every test that needs a base.

Tests take the fixture `tiny_base` (tests/conftest.py), which makes the folder once a session.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from zimage.model.base import Base, identify

WIDTH, TEXT_WIDTH = 48, 32
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# The released tokenizer's template on one user message, with thinking enabled (as diffusers asks) and disabled.
CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)


def write_tiny_base(folder: Path, *, seed: int = 0, shift: float = 3.0) -> Base:
    """Write the folder and return the Base that pins it: 2 + 1 + 1 blocks of width 48, 8x autoencoder, 16 channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=tiny_vae(),
            text_encoder=tiny_text_encoder(),
            tokenizer=tiny_tokenizer(),
            transformer=tiny_transformer(),
        )
    pipeline.save_pretrained(folder)
    return Base(model=str(folder), identity=identify(str(folder)))


def whole_pipeline(base: Base) -> ZImagePipeline:
    """Diffusers' own pipeline with its text encoder, in float32: what ours are compared with."""
    pipeline = ZImagePipeline.from_pretrained(base.model, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_transformer(*, layers: int = 2) -> ZImageTransformer2DModel:
    """A random transformer of which every part counts: norms differ from one, pad tokens from zero."""
    transformer = ZImageTransformer2DModel(
        dim=WIDTH,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 8, 8],
        axes_lens=[256, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif name.endswith("pad_token"):
            torch.nn.init.normal_(parameter)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return transformer.eval()


def tiny_vae() -> AutoencoderKL:
    """A random autoencoder with the released one's factor, channels, shift and scale."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    ).eval()


def tiny_text_encoder() -> Qwen3Model:
    """A random Qwen3 of three layers, so that `hidden_states[-2]` differs from both the last and the first."""
    return Qwen3Model(
        Qwen3Config(
            vocab_size=256 + len(SPECIAL_TOKENS),
            hidden_size=TEXT_WIDTH,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=1024,
        )
    ).eval()


def tiny_tokenizer() -> Qwen2Tokenizer:
    """A Qwen2 tokenizer with one token a byte (no merges) and the released special tokens and chat template."""
    vocab = {symbol: number for number, symbol in enumerate(_byte_symbols())}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:3]})
    tokenizer.add_tokens(SPECIAL_TOKENS[3:])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _byte_symbols() -> Iterator[str]:
    """Yield GPT-2's printable stand-in of every byte (openai/gpt-2: src/encoder.py, bytes_to_unicode)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    stand_ins = itertools.count(256)
    for byte in range(256):
        yield chr(byte) if byte in printable else chr(next(stand_ins))
