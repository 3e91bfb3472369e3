"""Detect pictures that copy a training photo, and measure the variety of a set of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE_PX = 32  # small enough to forgive recompression and a shift of a pixel or two, large enough to tell poses apart

Thumb = NDArray[np.float32]  # (SIDE_PX²,) with mean 0 and length 1


@dataclass(frozen=True)
class Originals:
    """What may be copied: the name and thumb of each training crop, as it is and mirrored."""

    files: Sequence[str]
    thumbs: NDArray[np.float32]  # (N, SIDE_PX²)


def thumb(image_rgb: NDArray[np.uint8]) -> Thumb:
    """Return the middle square of a picture as grey values whose dot product with another's is their correlation."""
    image = Image.fromarray(image_rgb).convert("L")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    grey = np.asarray(image, np.float32).ravel()
    grey = grey - grey.mean()
    length = float(np.linalg.norm(grey))
    return np.asarray(grey / length if length > 0 else grey, np.float32)


def originals_of(crops: Sequence[tuple[str, NDArray[np.uint8]]]) -> Originals:
    """Return the thumbs of (file, picture) pairs."""
    both = [(file, thumb(view)) for file, picture in crops for view in (picture, picture[:, ::-1])]
    thumbs = np.array([small for _, small in both], np.float32).reshape(-1, SIDE_PX**2)
    return Originals([file for file, _ in both], thumbs)


def most_alike(image_rgb: NDArray[np.uint8], originals: Originals) -> tuple[str | None, float]:
    """Return the training crop that the whole picture resembles most, and their correlation (1: the same); None and 0
    where no training crop is known.
    """
    if not originals.files:
        return None, 0.0
    correlations = originals.thumbs @ thumb(image_rgb)
    best = int(correlations.argmax())
    return originals.files[best], float(correlations[best])


def variety(pictures: Sequence[NDArray[np.uint8]]) -> list[float]:
    """Return 1 minus the correlation of every pair: 0 where pictures of one prompt are all the same."""
    thumbs = np.stack([thumb(picture) for picture in pictures])
    upper = np.triu_indices(len(thumbs), k=1)
    return [float(value) for value in (1 - thumbs @ thumbs.T)[upper]]
