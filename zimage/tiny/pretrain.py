"""Make the packaged tiny base: train its autoencoder, then its transformer and text encoder, on drawn faces.

    python -m zimage.tiny.pretrain draw FOLDER          drawn faces and their captions, about 10 minutes
    python -m zimage.tiny.pretrain autoencoder FOLDER   about 25 minutes
    python -m zimage.tiny.pretrain transformer FOLDER   about 45 minutes
    python -m zimage.tiny.pretrain pack FOLDER          writes zimage/tiny/model

Run once by whoever changes the tiny base; about an hour and a half on two cores. The result is committed as
`zimage/tiny/model`. The autoencoder also sees crops of public-domain and CC0 photographs that ship in scikit-image
and matplotlib, so that it can render skin, hair and cloth; the transformer sees drawn faces only.
"""

import argparse
import copy
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from zimage.captions.measure import Measured, measure
from zimage.captions.template import ClassNoun, Language, describe
from zimage.tiny.drawing import draw_face

SIDE_PX = 128
LATENTS, GROUPS = 16, 4
HELD = 100.0  # what holds the encoder's last norm still
EVENING = 0.4  # the components' spreads are raised to this power: 20 to 1 becomes 3.3 to 1
DECODER_RATE = 2e-3
TEXT_WIDTH = 96
VOCAB_SIZE = 700
PEAK_RATE = 2e-3
SAMPLER_SHIFT = 2.0
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
# What Qwen3's template says for one user message, thinking enabled (as Z-Image asks) or not.
CHAT_TEMPLATE = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)


def draw_dataset(folder: Path, *, count: int, seed: int) -> None:
    """Write `count` drawn faces as `drawn.npy` (count, side, side, 3) uint8 and their captions as `captions.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        drawn = list(pool.map(drawn_and_captioned, ((seed, index) for index in range(count)), chunksize=64))
    np.save(folder / "drawn.npy", np.stack([pixels for pixels, _ in drawn]))
    (folder / "captions.json").write_text(json.dumps([captions for _, captions in drawn], ensure_ascii=False))


def drawn_and_captioned(seed: tuple[int, int]) -> tuple[NDArray[np.uint8], list[str]]:
    """Return a drawn face and three captions of it, in the words that captions of photos and prompts will use."""
    generator = np.random.default_rng(seed)
    drawing = draw_face(generator, SIDE_PX)
    half = drawing.face_height * SIDE_PX / 2
    x, y = (value * SIDE_PX for value in drawing.face_centre_xy)
    measured = measure(drawing.pixels, (x - half, y - half, x + half, y + half), yaw_deg=drawing.yaw_deg, roll_deg=drawing.roll_deg)
    return drawing.pixels, [caption_of(measured, drawing.class_noun, generator) for _ in range(3)]


def caption_of(measured: Measured, class_noun: ClassNoun, generator: np.random.Generator) -> str:
    """Return a caption: sometimes Chinese, sometimes shorter, sometimes with a made-up trigger that means nothing yet."""
    language: Language = "zh" if generator.random() < 0.15 else "en"
    letters = "".join(generator.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), generator.integers(3, 8)))
    caption = describe(
        measured,
        trigger=letters if generator.random() < 0.3 else "",
        class_noun="person" if generator.random() < 0.15 else class_noun,
        language=language,
    )
    if generator.random() < 0.25:
        comma = ", " if language == "en" else "，"
        first, *rest = caption.split(comma)
        caption = comma.join([first, *(part for part in rest if generator.random() < 0.5)])
    return caption


def new_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of Z-Image's kind: 8x smaller, 16 channels, no quantisation convolutions."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(24, 48, 64, 64),
        layers_per_block=1,
        latent_channels=LATENTS,
        norm_num_groups=GROUPS,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        sample_size=SIDE_PX,
    )


def photographs() -> list[NDArray[np.uint8]]:
    """Return the public-domain and CC0 photographs whose crops the autoencoder sees; the demo's person is not among them."""
    import matplotlib
    import skimage.data

    hopper = Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB")
    return [np.asarray(hopper)] * 4 + [skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), skimage.data.hubble_deep_field()]


def crop_of(picture: NDArray[np.uint8], side_px: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a random square (3, side, side) in [-1, 1]: another scale, place, brightness and white balance each time."""
    height, width = picture.shape[:2]
    least = side_px / min(height, width)
    scale = math.exp(generator.uniform(math.log(max(least, 0.25)), math.log(max(1.1, least))))
    size = int(side_px / scale)
    top, left = generator.integers(0, height - size + 1), generator.integers(0, width - size + 1)
    square = Image.fromarray(picture[top : top + size, left : left + size]).resize((side_px, side_px), Image.Resampling.LANCZOS)
    values = np.asarray(square, np.float32) / 255
    if generator.random() < 0.5:
        values = values[:, ::-1]
    values = values ** math.exp(generator.normal(0, 0.2)) * np.exp(generator.normal(0, 0.12, 3)).astype(np.float32)
    return (np.clip(values, 0, 1) * 2 - 1).transpose(2, 0, 1)


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 of the pixels plus L1 of their differences to the right and below, which keeps edges where they are."""
    loss = F.l1_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


def principal_components(pictures: list[NDArray[np.uint8]], *, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (192,), 16 directions (192, 16) and their spreads (16,) of 8x8 RGB blocks, in (channel, row, column) order."""
    generator = np.random.default_rng(seed)
    crops = np.stack([crop_of(pictures[generator.integers(len(pictures))], 64, generator) for _ in range(1500)])
    blocks = crops.reshape(-1, 3, 8, 8, 8, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 192).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(blocks.T))
    return blocks.mean(0), directions[:, ::-1][:, :LATENTS], np.sqrt(variances[::-1][:LATENTS])


@torch.no_grad()
def write_linear_encoder(model: AutoencoderKL, mean: NDArray[np.float64], directions: NDArray[np.float64], spreads: NDArray[np.float64]) -> None:
    """Write into the encoder's own weights the linear map from each 8x8 block to its principal components.

    A linear code needs no training, so the transformer can be trained before the decoder is. The residual branches are
    zero; the three strided convolutions gather 2x2 pixels each; the last norm is held constant by channels of +-100,
    and `silu(a) - silu(-a) = a` undoes the activation. The spreads are evened out, not equalised: a component's noise
    should drown it in order of its size.
    """
    encoder = model.encoder
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    for channel in range(3):
        encoder.conv_in.weight[channel, channel, 1, 1] = 1
    kept = 3
    for level in range(2):
        convolution = encoder.down_blocks[level].downsamplers[0].conv  # padded right and below: taps 0 and 1
        for channel in range(kept):
            for row in range(2):
                for column in range(2):
                    convolution.weight[(channel * 2 + row) * 2 + column, channel, row, column] = 1
        kept *= 4
        shortcut = encoder.down_blocks[level + 1].resnets[0].conv_shortcut
        shortcut.weight[:kept, :kept, 0, 0] = torch.eye(kept)
    # After two halvings, channel ((colour, y % 2, x % 2), y // 2 % 2, x // 2 % 2) holds pixel (y % 4, x % 4) of its cell.
    maps = torch.from_numpy(directions * (spreads ** (EVENING - 1))).float()  # (192, 16)
    offset = -torch.from_numpy(mean).float() @ maps
    last = encoder.down_blocks[2].downsamplers[0].conv
    for colour in range(3):
        for y in range(8):
            for x in range(8):
                channel = ((colour * 2 + y % 2) * 2 + x % 2) * 4 + ((y // 2) % 2) * 2 + (x // 2) % 2
                for component in range(LATENTS):
                    value = maps[(colour * 8 + y) * 8 + x, component]
                    positive, negative = _pair(component)
                    last.weight[positive, channel, y // 4, x // 4] = value
                    last.weight[negative, channel, y // 4, x // 4] = -value
    for component in range(LATENTS):
        positive, negative = _pair(component)
        last.bias[positive], last.bias[negative] = offset[component], -offset[component]
        encoder.conv_out.weight[component, positive, 1, 1], encoder.conv_out.weight[component, negative, 1, 1] = 1, -1
    for group in range(GROUPS):
        start = group * 64 // GROUPS
        constants = torch.arange(start + 8, start + 16)
        last.bias[constants] = HELD * (1 - 2 * (constants % 2)).float()
    encoder.conv_norm_out.weight.fill_(HELD / 2**0.5)
    encoder.conv_norm_out.bias.zero_()
    encoder.conv_out.bias[LATENTS:] = -20.0  # log-variance: the code has no noise of its own


def _pair(component: int) -> tuple[int, int]:
    """Return the channels that carry a component and its negative: four components in the first half of each group of 16."""
    start = component // 4 * 16 + component % 4 * 2
    return start, start + 1


@torch.no_grad()
def prepare_decoder(model: AutoencoderKL, mean: NDArray[np.float64], directions: NDArray[np.float64], spreads: NDArray[np.float64]) -> None:
    """Start the decoder as the blurred picture: each block's mean colour runs through the skips, details start at nothing."""
    decoder = model.decoder
    for name, parameter in decoder.named_parameters():
        if ".conv2." in name:
            parameter.mul_(0.05)
    colours = torch.from_numpy((directions * spreads ** (1 - EVENING)).reshape(3, 64, LATENTS).mean(1)).float()  # (3, 16)
    decoder.conv_in.weight[:3] = 0
    decoder.conv_in.weight[:3, :, 1, 1] = colours
    decoder.conv_in.bias[:3] = torch.from_numpy(mean.reshape(3, 64).mean(1)).float()
    kernel = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks:
        if block.upsamplers is not None:
            block.upsamplers[0].conv.weight[:3] = 0
            for channel in range(3):
                block.upsamplers[0].conv.weight[channel, channel] = kernel[:, None] * kernel[None]
            block.upsamplers[0].conv.bias[:3] = 0
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            shortcut.weight[:3] = 0
            shortcut.weight[:3, :3, 0, 0] = torch.eye(3)
            shortcut.bias[:3] = 0
    width = decoder.conv_norm_out.num_channels // GROUPS
    last = decoder.up_blocks[-1].resnets[0].conv_shortcut
    decoder.conv_out.weight[:, : 3 * width] *= 0.1
    held = 4.0
    for colour in range(3):
        first = colour * width
        last.weight[first : first + 4] = 0
        last.weight[first, colour], last.weight[first + 1, colour] = 1, -1
        last.bias[first : first + 2] = 0
        last.bias[first + 2], last.bias[first + 3] = held, -held
        decoder.conv_norm_out.weight[first : first + 2] = held * (2 / width) ** 0.5
        decoder.conv_out.weight[:, first : first + 2] = 0
        decoder.conv_out.weight[colour, first, 1, 1], decoder.conv_out.weight[colour, first + 1, 1, 1] = 1, -1
    decoder.conv_out.bias.zero_()


def train_autoencoder(folder: Path, *, steps: int, seed: int) -> None:
    """Write the linear encoder and train the decoder; keep them, with the latents' shift and scale, as `folder/vae`."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    photos = photographs()
    drawn = [draw_face(np.random.default_rng([seed, i])).pixels for i in range(300)]
    components = principal_components([*photos * 8, *drawn[:64]], seed=seed)
    model = new_autoencoder()
    write_linear_encoder(model, *components)
    prepare_decoder(model, *components)
    finish_autoencoder(model, drawn).save_pretrained(folder / "vae")
    decoder = model.decoder
    average = torch.optim.swa_utils.AveragedModel(decoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=DECODER_RATE, weight_decay=1e-4, betas=(0.9, 0.98), fused=True)
    started = time.monotonic()
    for step in range(steps):
        rate = DECODER_RATE * (min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        crops = [
            crop_of(photos[generator.integers(len(photos))] if generator.random() < 0.65 else drawn[generator.integers(len(drawn))], 64, generator)
            for _ in range(8)
        ]
        x = torch.from_numpy(np.stack(crops))
        with torch.no_grad():
            z = model.encode(x).latent_dist.mean
            # The transformer's latents will not be exact: a decoder that has seen some error forgives it.
            z = z + torch.randn_like(z) * torch.rand(len(z), 1, 1, 1) * 0.06 / model.config.scaling_factor
        with torch.autocast("cpu", torch.bfloat16):
            output = decoder(z)
        loss = reconstruction_loss(output.float(), x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(decoder)
        if step % 50 == 0:
            print(f"autoencoder {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
        if step % 400 == 399 or step == steps - 1:
            model.decoder = average.module
            model.save_pretrained(folder / "vae")
            model.decoder = decoder


@torch.no_grad()
def finish_autoencoder(model: AutoencoderKL, drawn: list[NDArray[np.uint8]]) -> AutoencoderKL:
    """Return the model with shift and scale such that the latents of drawn faces have mean 0 and spread 1."""
    x = torch.from_numpy(np.stack(drawn[:64])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = model.encode(x).latent_dist.mean
    model.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))
    return model


def new_transformer() -> ZImageTransformer2DModel:
    """Return an untrained transformer of 4 million parameters; its pad tokens start at zero instead of unset memory."""
    transformer = ZImageTransformer2DModel(
        dim=192, n_layers=5, n_refiner_layers=1, n_heads=6, n_kv_heads=6, cap_feat_dim=TEXT_WIDTH, axes_dims=[8, 12, 12], axes_lens=[640, 64, 64]
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
    """Return a Qwen2 tokenizer (byte-level BPE, Qwen's chat template) whose merges make the template's words one token."""
    blank = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    trained = blank.train_new_from_iterator(texts, vocab_size, new_special_tokens=SPECIAL_TOKENS)
    state = json.loads(trained.backend_tokenizer.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=state["vocab"], merges=[tuple(merge) for merge in state["merges"]], pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:3]})
    tokenizer.add_tokens(SPECIAL_TOKENS[3:])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(tokenizer: Qwen2Tokenizer, text: str) -> list[int]:
    """Return the tokens of a prompt as ZImagePipeline makes them."""
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True)
    return tokenizer(chat).input_ids  # type: ignore[no-any-return]


def train_transformer(folder: Path, *, steps: int, seed: int, batch: int = 32) -> None:
    """Train transformer and text encoder together on the latents of the drawn faces; write the pipeline's folder."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    captions: list[list[str]] = json.loads((folder / "captions.json").read_text())
    tokenizer = new_tokenizer([text for texts in captions for text in texts], VOCAB_SIZE)
    tokens = [[prompt_ids(tokenizer, text) for text in [*texts, ""]] for texts in captions]
    latents = drawn_latents(folder)
    text_encoder, transformer = new_text_encoder(len(tokenizer)), new_transformer()
    model = torch.nn.ModuleDict({"text_encoder": text_encoder, "transformer": transformer})
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(tokenizer)} tokens, longest {max(len(t) for ts in tokens for t in ts)}")
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    started = time.monotonic()
    for step in range(steps):
        rate = PEAK_RATE * min(1.0, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
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
        loss = F.mse_loss(-torch.stack(output).squeeze(2).float(), noise - x0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 50 == 0:
            print(f"transformer {step}/{steps} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
        if step % 500 == 499 or step == steps - 1:
            write_pipeline(folder, average.module["transformer"], average.module["text_encoder"], tokenizer)


@torch.no_grad()
def drawn_latents(folder: Path) -> torch.Tensor:
    """Return the normalised latents (count, 16, side/8, side/8) of the drawn faces, in half precision."""
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    pixels = np.load(folder / "drawn.npy", mmap_mode="r")
    parts = []
    for start in range(0, len(pixels), 64):
        x = torch.from_numpy(np.array(pixels[start : start + 64])).permute(0, 3, 1, 2).float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mean
        parts.append(((z - vae.config.shift_factor) * vae.config.scaling_factor).half())
    return torch.cat(parts)


def write_pipeline(folder: Path, transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model, tokenizer: Qwen2Tokenizer) -> None:
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


def main() -> None:
    """Run one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["draw", "autoencoder", "transformer", "pack"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.part == "draw":
        draw_dataset(arguments.folder, count=arguments.steps or 16000, seed=arguments.seed)
    elif arguments.part == "autoencoder":
        train_autoencoder(arguments.folder, steps=arguments.steps or 2400, seed=arguments.seed)
    elif arguments.part == "transformer":
        train_transformer(arguments.folder, steps=arguments.steps or 4000, seed=arguments.seed)


if __name__ == "__main__":
    main()
