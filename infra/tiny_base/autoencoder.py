"""The tiny base's autoencoder: a linear encoder written into the class' own weights, and a trained decoder.

A linear code needs no training, so the transformer can be trained before the decoder is finished, and a better decoder
can replace it later without touching the transformer.
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch.nn import functional

from infra.tiny_base.dataset import SIDE_PX, crop_of, photographs
from infra.tiny_base.drawing import draw_face
from zimage.core.progress import Progress

LATENTS, GROUPS = 16, 4
HELD = 100.0  # what holds the encoder's last norm still
EVENING = 0.4  # the components' spreads are raised to this power: 20 to 1 becomes 3.3 to 1
DECODER_RATE = 2e-3


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


def principal_components(
    pictures: list[NDArray[np.uint8]], *, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean (192,), 16 directions (192, 16) and their spreads (16,) of 8x8 blocks, as (colour, row, column)."""
    generator = np.random.default_rng(seed)
    crops = np.stack([crop_of(pictures[generator.integers(len(pictures))], 64, generator) for _ in range(1500)])
    blocks = crops.reshape(-1, 3, 8, 8, 8, 8).transpose(0, 2, 4, 1, 3, 5).reshape(-1, 192).astype(np.float64)
    variances, directions = np.linalg.eigh(np.cov(blocks.T))
    return blocks.mean(0), directions[:, ::-1][:, :LATENTS], np.sqrt(variances[::-1][:LATENTS])


@torch.no_grad()
def write_linear_encoder(
    model: AutoencoderKL, mean: NDArray[np.float64], directions: NDArray[np.float64], spreads: NDArray[np.float64]
) -> None:
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
    # After two halvings, channel (colour, y % 2, x % 2, y // 2 % 2, x // 2 % 2) holds pixel (y % 4, x % 4) of a cell.
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
    """Return the channels of a component and its negative: four components in the first half of each group of 16."""
    start = component // 4 * 16 + component % 4 * 2
    return start, start + 1


@torch.no_grad()
def prepare_decoder(
    model: AutoencoderKL, mean: NDArray[np.float64], directions: NDArray[np.float64], spreads: NDArray[np.float64]
) -> None:
    """Start the decoder as the blurred picture: each block's mean colour runs through the skips, details near zero."""
    decoder = model.decoder
    for name, parameter in decoder.named_parameters():
        if ".conv2." in name:
            parameter.mul_(0.05)
    colours = torch.from_numpy(
        (directions * spreads ** (1 - EVENING)).reshape(3, 64, LATENTS).mean(1)
    ).float()  # (3, 16)
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
    """Write the linear encoder and train the decoder; keep them, with the latents' shift and scale, as `folder/vae`.

    What an earlier round wrote there is trained further.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    photos = photographs()
    drawn = [draw_face(np.random.default_rng([seed, i])).pixels for i in range(300)]
    if (folder / "vae").exists():
        model = AutoencoderKL.from_pretrained(folder / "vae").train()
    else:
        model = new_autoencoder()
        components = principal_components([*photos * 8, *drawn[:64]], seed=seed)
        write_linear_encoder(model, *components)
        prepare_decoder(model, *components)
        finish_autoencoder(model, drawn).save_pretrained(folder / "vae")
    decoder = model.decoder
    average = torch.optim.swa_utils.AveragedModel(
        decoder, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=DECODER_RATE, weight_decay=1e-4, betas=(0.9, 0.98), fused=True
    )
    progress = Progress("decoder", steps)
    for step in range(steps):
        rate = DECODER_RATE * (min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
        for group in optimizer.param_groups:
            group["lr"] = rate
        crops = [
            crop_of(
                photos[generator.integers(len(photos))]
                if generator.random() < 0.65
                else drawn[generator.integers(len(drawn))],
                64,
                generator,
            )
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
        progress.advance(loss=loss.item())
        if step % 400 == 399 or step == steps - 1:
            model.decoder = average.module
            model.save_pretrained(folder / "vae")
            model.decoder = decoder


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return L1 of the pixels plus L1 of their differences to the right and below, which keeps edges where they are."""
    loss = functional.l1_loss(output, target)
    for dim in (-1, -2):
        loss = loss + 0.5 * functional.l1_loss(output.diff(dim=dim), target.diff(dim=dim))
    return loss


@torch.no_grad()
def finish_autoencoder(model: AutoencoderKL, drawn: list[NDArray[np.uint8]]) -> AutoencoderKL:
    """Return the model with shift and scale such that the latents of drawn faces have mean 0 and spread 1."""
    x = torch.from_numpy(np.stack(drawn[:64])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = model.encode(x).latent_dist.mean
    model.register_to_config(
        shift_factor=round(latents.mean().item(), 4), scaling_factor=round(1 / latents.std().item(), 4)
    )
    return model
