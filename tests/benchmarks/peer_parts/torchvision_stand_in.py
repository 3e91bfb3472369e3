"""The few transforms of torchvision that diffusers' training script takes, by Pillow and torch.

A build of torch without a torchvision that fits it can run the script with this in its place; pictures of the asked
size pass resizing and cropping unchanged.
"""

import enum
import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

transforms = functional = sys.modules[__name__]  # the script's two imports


class InterpolationMode(enum.Enum):
    """How pixels are resampled."""

    BILINEAR = Image.Resampling.BILINEAR


def resize(image: Image.Image, size: Sequence[int], interpolation: InterpolationMode) -> Image.Image:
    """Return the picture with `size` (height, width) pixels."""
    return image.resize((size[1], size[0]), interpolation.value)


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """Return a part of the picture."""
    return image.crop((left, top, left + width, top + height))


def center_crop(image: Image.Image, size: Sequence[int]) -> Image.Image:
    """Return the middle (height, width) of the picture."""
    top, left = round((image.height - size[0]) / 2), round((image.width - size[1]) / 2)
    return crop(image, top, left, *size)


def hflip(image: Image.Image) -> Image.Image:
    """Return the picture mirrored."""
    return ImageOps.mirror(image)


class RandomCrop:
    """Draws where a crop lies."""

    @staticmethod
    def get_params(image: Image.Image, output_size: Sequence[int]) -> tuple[int, int, int, int]:
        """Return top, left, height and width."""
        spare = image.height - output_size[0], image.width - output_size[1]
        top, left = (int(torch.randint(each + 1, ())) for each in spare)
        return top, left, output_size[0], output_size[1]


def to_tensor(image: Image.Image) -> Tensor:
    """Return (3, H, W) in [0, 1] of a picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return the tensor less a mean and over a deviation, each for every channel or for all."""
    return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
