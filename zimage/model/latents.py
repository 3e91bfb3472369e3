"""Encode pictures to the transformer's latents: autoencoder output, shifted and scaled."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# Pixels a token is wide: 8 of the autoencoder times 2 of the patch; heights and widths are multiples of it.
# Source: diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, vae_scale_factor * 2.
PIXELS_A_TOKEN = 16


class Posterior(NamedTuple):
    """The autoencoder's posterior of a picture, in the transformer's latent space."""

    mean: Tensor  # (C, h, w)
    std: Tensor  # (C, h, w)


@torch.no_grad()
def posterior(vae: "AutoencoderKL", pixels: Tensor) -> Posterior:
    """Return mean and standard deviation of a picture's latents: `(z - shift) * scale` of the autoencoder's own.

    Args:
        vae: The base's autoencoder, which states shift and scale (0.1159 and 0.3611 as released).
        pixels: (3, H, W) in [-1, 1], H and W multiples of 16.
    """
    found = vae.encode(pixels[None].to(vae.device, vae.dtype)).latent_dist
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    return Posterior((found.mean[0] - shift) * scale, found.std[0] * scale)


@torch.no_grad()
def decode(vae: "AutoencoderKL", latents: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W) in [-1, 1] of latents (B, C, h, w) in the transformer's space."""
    own = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pixels: Tensor = vae.decode(own).sample
    return pixels.clamp(-1, 1)


def pixels_of(image_rgb: npt.NDArray[np.uint8]) -> Tensor:
    """Return (3, H, W) in [-1, 1] of a picture (H, W, 3)."""
    return torch.from_numpy(np.array(image_rgb, order="C")).permute(2, 0, 1).float() / 127.5 - 1


def image_of(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Return the picture (H, W, 3) of pixels (3, H, W) in [-1, 1]."""
    levels = ((pixels.float().cpu() + 1) * 127.5).round().clamp(0, 255)
    image: npt.NDArray[np.uint8] = levels.byte().permute(1, 2, 0).numpy()
    return image
