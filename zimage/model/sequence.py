"""Z-Image's single token sequence: image tokens, then caption tokens, each padded to a multiple of 32.

# B batch, C channels, H W latent size, N image tokens, P values a patch, L caption tokens, A rotary axes
Pads carry a learned token and are attended like all others; positions count them. So the shape of a batch is told by
(height, width, padded caption length), and inside one such bucket no mask is needed.
Source of all of it: diffusers@0.42.1:src/diffusers/models/transformers/transformer_z_image.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PATCH = 2
MULTIPLE = 32  # SEQ_MULTI_OF


class SequenceBucket(NamedTuple):
    """What must be equal for samples to share a batch without a mask."""

    height: int  # of the latents
    width: int
    caption: int  # padded length, tokens


def padded(length: int) -> int:
    """Return the next multiple of 32."""
    return -(-length // MULTIPLE) * MULTIPLE


def image_length(bucket: SequenceBucket) -> int:
    """Return how many tokens the picture itself takes, without pads."""
    return (bucket.height // PATCH) * (bucket.width // PATCH)


def sequence_length(bucket: SequenceBucket) -> int:
    """Return how many tokens a sample takes in all, pads included."""
    return padded(image_length(bucket)) + bucket.caption


def patchify(latents_BCHW: Tensor) -> Tensor:
    """Return (B, N, P): rows of patches, values ordered (row in patch, column in patch, channel)."""
    B, C, H, W = latents_BCHW.shape
    patches = latents_BCHW.reshape(B, C, H // PATCH, PATCH, W // PATCH, PATCH)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(B, (H // PATCH) * (W // PATCH), PATCH * PATCH * C)


def unpatchify(tokens_BNP: Tensor, height: int, width: int) -> Tensor:
    """Return the latents (B, C, H, W) of which `patchify` would make these tokens."""
    B, _, P = tokens_BNP.shape
    patches = tokens_BNP.reshape(B, height // PATCH, width // PATCH, PATCH, PATCH, P // PATCH**2)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(B, P // PATCH**2, height, width)


def caption_positions(length: int) -> Tensor:
    """Return (L, A) for a padded caption: 1, 2, 3 … on the first axis, also for the pads."""
    first = torch.arange(1, length + 1, dtype=torch.int32)
    return torch.stack([first, torch.zeros_like(first), torch.zeros_like(first)], dim=-1)


def image_positions(bucket: SequenceBucket) -> Tensor:
    """Return (padded N, A): (padded caption length + 1, row, column), and (0, 0, 0) for each pad."""
    first = torch.tensor([bucket.caption + 1], dtype=torch.int32)
    rows = torch.arange(bucket.height // PATCH, dtype=torch.int32)
    columns = torch.arange(bucket.width // PATCH, dtype=torch.int32)
    grid = torch.stack(torch.meshgrid(first, rows, columns, indexing="ij"), dim=-1).flatten(0, 2)
    pads = padded(len(grid)) - len(grid)
    return torch.cat([grid, grid.new_zeros(pads, 3)])
