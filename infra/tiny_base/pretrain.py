"""Make the packaged tiny base: train its decoder, then its transformer and text encoder, on drawn faces.

    python -m infra.tiny_base.pretrain draw FOLDER          drawn faces and their captions
    python -m infra.tiny_base.pretrain autoencoder FOLDER   once more goes on from there
    python -m infra.tiny_base.pretrain transformer FOLDER   once more goes on from there
    python -m infra.tiny_base.pretrain pack FOLDER          writes zimage/tiny/model

Run once by whoever changes the tiny base, then `zimage pin tiny`; see infra/decisions for what was run and how long it
took. The decoder also sees crops of public-domain and CC0 photographs that ship in scikit-image and matplotlib, so that
it can render skin, hair and cloth; the transformer sees drawn faces only.
"""

import argparse
import copy
import json
import logging
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from torch.nn import functional
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

import zimage.tiny
from infra.tiny_base.autoencoder import train_autoencoder
from infra.tiny_base.dataset import SIDE_PX, draw_dataset
from zimage.core.folder import made_aside
from zimage.core.progress import Progress

logger = logging.getLogger(__name__)

TEXT_WIDTH = 96
VOCAB_SIZE = 700
SAMPLER_SHIFT = 2.0
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# What Qwen3's template says for one user message, thinking enabled (as Z-Image asks) or not.
CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)


def new_transformer() -> ZImageTransformer2DModel:
    """Return an untrained transformer of 4 million parameters; its pad tokens start at zero instead of unset memory."""
    transformer = ZImageTransformer2DModel(
        dim=192,
        n_layers=5,
        n_refiner_layers=1,
        n_heads=6,
        n_kv_heads=6,
        cap_feat_dim=TEXT_WIDTH,
        axes_dims=[8, 12, 12],
        axes_lens=[640, 64, 64],
    )
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 2 and "pad_token" not in name:
            torch.nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias") or "pad_token" in name:
            torch.nn.init.zeros_(parameter)
    for block in [*transformer.noise_refiner, *transformer.layers]:
        torch.nn.init.zeros_(block.adaLN_modulation[0].weight)
        block.adaLN_modulation[0].bias.data.view(4, -1)[1::2] = 0.5  # gates: tanh(0) would cut every block off
    final = transformer.all_final_layer["2-1"]
    torch.nn.init.zeros_(final.linear.weight)
    torch.nn.init.zeros_(final.adaLN_modulation[1].weight)
    return transformer


def new_text_encoder(vocab_size: int) -> Qwen3Model:
    """Return an untrained Qwen3 whose `hidden_states[-2]` is the output of its second of three layers."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=TEXT_WIDTH // 4,
        max_position_embeddings=640,
    )
    return Qwen3Model(config)


def new_tokenizer(texts: list[str], vocab_size: int) -> Qwen2Tokenizer:
    """Return a Qwen2 tokenizer (byte-level BPE, Qwen's chat template) with one token for each word of the template."""
    blank = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    trained = blank.train_new_from_iterator(texts, vocab_size, new_special_tokens=SPECIAL_TOKENS)
    state = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:3]})
    tokenizer.add_tokens(SPECIAL_TOKENS[3:])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(tokenizer: Qwen2Tokenizer, texts: list[str]) -> list[list[int]]:
    """Return the tokens of prompts as ZImagePipeline makes them."""
    mark = "CONTENT"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    return tokenizer([chat.replace(mark, text) for text in texts]).input_ids  # type: ignore[no-any-return]


def train_transformer(folder: Path, *, steps: int, seed: int, peak_rate: float, batch: int = 16) -> None:
    """Train transformer and text encoder together on the latents of the drawn faces; write the pipeline's folder.

    What an earlier round wrote to `folder/model` is trained further.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    captions: list[list[str]] = json.loads((folder / "captions.json").read_text())
    tokenizer = new_tokenizer([text for texts in captions for text in texts], VOCAB_SIZE)
    flat = prompt_ids(tokenizer, [text for texts in captions for text in [*texts, ""]])
    tokens = [flat[start : start + 4] for start in range(0, len(flat), 4)]
    latents = drawn_latents(folder)
    text_encoder, transformer = new_text_encoder(len(tokenizer)), new_transformer()
    if (folder / "model").exists():
        transformer = ZImageTransformer2DModel.from_pretrained(folder / "model" / "transformer", dtype=torch.float32)
        text_encoder = Qwen3Model.from_pretrained(folder / "model" / "text_encoder", dtype=torch.float32)
    transformer.train()
    text_encoder.train()
    model = torch.nn.ModuleDict({"text_encoder": text_encoder, "transformer": transformer})
    logger.info("%d parameters, %d tokens", sum(p.numel() for p in model.parameters()), len(tokenizer))
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    progress = Progress("transformer", steps)
    for step in range(steps):
        rate = peak_rate * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # One padded caption length a batch, so that no attention mask is needed; one caption in twenty is empty.
        wanted = 64 if generator.random() < 0.8 else 32
        rows: list[tuple[int, list[int]]] = []
        while len(rows) < batch:
            index = int(generator.integers(len(tokens)))
            choice = tokens[index][3 if generator.random() < 0.05 else int(generator.integers(3))]
            if (len(choice) + 31) // 32 * 32 == wanted:
                rows.append((index, choice))
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(choice) for _, choice in rows], batch_first=True)
        x0 = latents[[index for index, _ in rows]].float()
        sigma = torch.sigmoid(torch.randn(batch) * 1.1 + 0.3)
        noise = torch.randn_like(x0)
        noisy = (1 - sigma.view(-1, 1, 1, 1)) * x0 + sigma.view(-1, 1, 1, 1) * noise
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-2]
            texts = [row[: len(choice)] for row, (_, choice) in zip(hidden, rows, strict=True)]
            output = transformer(list(noisy.unsqueeze(2)), 1 - sigma, texts).sample
        loss = functional.mse_loss(-torch.stack(output).squeeze(2).float(), noise - x0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        progress.advance(loss=loss.item())
        if step % 500 == 499 or step == steps - 1:
            parts = dict(average.module.named_children())
            write_pipeline(folder, parts["transformer"], parts["text_encoder"], tokenizer)


@torch.no_grad()
def drawn_latents(folder: Path) -> torch.Tensor:
    """Return the normalised latents (count, 16, side/8, side/8) of the drawn faces.

    The encoder is affine in each 8x8 block, so what it does to unit blocks tells what it does to all: one product
    instead of all its convolutions.
    """
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    units = torch.cat([torch.zeros(1, 192), torch.eye(192)]).view(-1, 3, 8, 8)
    answers = vae.encode(units).latent_dist.mean.flatten(1)
    offset, maps = answers[0], answers[1:] - answers[0]
    pixels = np.load(folder / "drawn.npy", mmap_mode="r")
    parts = []
    for start in range(0, len(pixels), 256):
        x = torch.from_numpy(np.array(pixels[start : start + 256])).float() / 127.5 - 1
        blocks = x.view(len(x), SIDE_PX // 8, 8, SIDE_PX // 8, 8, 3).permute(0, 1, 3, 5, 2, 4).flatten(3)
        z = (blocks @ maps + offset).permute(0, 3, 1, 2)
        parts.append((z - vae.config.shift_factor) * vae.config.scaling_factor)
    return torch.cat(parts)


def write_pipeline(
    folder: Path, transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model, tokenizer: Qwen2Tokenizer
) -> None:
    """Write everything as the folder that ZImagePipeline opens, in bfloat16 to keep the package small."""
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SAMPLER_SHIFT),
        vae=AutoencoderKL.from_pretrained(folder / "vae"),
        text_encoder=copy.deepcopy(text_encoder),
        tokenizer=tokenizer,
        transformer=copy.deepcopy(transformer),
    )
    pipeline.to(dtype=torch.bfloat16)
    pipeline.save_pretrained(folder / "model")


def pack(folder: Path, model: Path) -> None:
    """Write `model`, the folder that is packaged: the trained transformer with the newest decoder, in bfloat16."""
    with made_aside(model) as aside:
        shutil.copytree(folder / "model", aside, dirs_exist_ok=True)
        shutil.rmtree(aside / "vae")
        AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.bfloat16).save_pretrained(aside / "vae")


def main() -> None:
    """Run one of the four parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["draw", "autoencoder", "transformer", "pack"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=16000, help="of drawn faces")
    parser.add_argument("--steps", type=int, help="of training")
    parser.add_argument("--peak-rate", type=float, default=2e-3, help="learning rate of the transformer after warm-up")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    match given.part:
        case "draw":
            draw_dataset(given.folder, count=given.count, seed=given.seed)
        case "autoencoder":
            train_autoencoder(given.folder, steps=given.steps or 2400, seed=given.seed)
        case "transformer":
            train_transformer(given.folder, steps=given.steps or 4500, seed=given.seed, peak_rate=given.peak_rate)
        case "pack":
            pack(given.folder, Path(zimage.tiny.__file__).with_name("model"))


if __name__ == "__main__":
    main()
