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
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image

from zimage.captions.measure import Measured, measure
from zimage.captions.template import ClassNoun, Language, describe
from zimage.tiny.drawing import draw_face

SIDE_PX = 128


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
        latent_channels=16,
        norm_num_groups=8,
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


def train_autoencoder(folder: Path, *, steps: int, seed: int) -> None:
    """Train the autoencoder and write it, with its latent mean and spread as shift and scale, to `folder/vae`."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    photos = photographs()
    drawn = [draw_face(np.random.default_rng([seed, i])).pixels for i in range(600)]
    model = new_autoencoder()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3, weight_decay=1e-4, betas=(0.9, 0.98), fused=True)
    started = time.monotonic()
    for step in range(steps):
        large = step > 0.75 * steps
        side_px, count = (SIDE_PX, 3) if large else (64, 8)
        rate = min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * rate
        crops = [
            crop_of(photos[generator.integers(len(photos))] if generator.random() < 0.6 else drawn[generator.integers(len(drawn))], side_px, generator)
            for _ in range(count)
        ]
        x = torch.from_numpy(np.stack(crops))
        with torch.autocast("cpu", torch.bfloat16, enabled=not large):
            posterior = model.encode(x).latent_dist
            output = model.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean)).sample
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        reconstruction = reconstruction_loss(output.float(), x)
        loss = reconstruction + 2e-4 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        if step % 100 == 0:
            print(f"autoencoder {step}/{steps} rec {reconstruction.item():.4f} kl {kl.item():.3f} {time.monotonic() - started:.0f} s", flush=True)
        if step % 1000 == 999 or step == steps - 1:
            finish_autoencoder(average.module, drawn).save_pretrained(folder / "vae")


@torch.no_grad()
def finish_autoencoder(model: AutoencoderKL, drawn: list[NDArray[np.uint8]]) -> AutoencoderKL:
    """Return the model with shift and scale such that the latents of drawn faces have mean 0 and spread 1."""
    x = torch.from_numpy(np.stack(drawn[:64])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = model.encode(x).latent_dist.mean
    model.register_to_config(shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4))
    return model


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
        train_autoencoder(arguments.folder, steps=arguments.steps or 3200, seed=arguments.seed)


if __name__ == "__main__":
    main()
