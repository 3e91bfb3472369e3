"""Measure how degraded a picture is without another one to compare it with: blur, noise, and the grid of 8 px blocks.

None of the three needs a model. Contents move them too (a soft background is blurred, grass is noise), so a value means
little by itself: it is compared with that of another picture of the same prompt and noise.
"""

import numpy as np
from numpy.typing import NDArray

from zimage.photos.pictures import Mask

BLUR_PX = 11  # side of the filter
BLOCK_PX = 8  # of JPEG's blocks and of the pixels that one latent of the autoencoder decodes to
NORMAL_MAD = 0.6745  # median of |x| of a normal distribution with a standard deviation of 1
ROUNDING = 1 / 12  # variance of rounding to whole levels, so that no picture has a noise of 0


def blur(grey: Mask) -> float:
    """Return the blur effect of a grey picture (H, W), 0 for sharp to 1: the share of edges that a blur spares.

    Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual blur metric", SPIE 6492
    (2007), by skimage.
    """
    from skimage.measure import blur_effect

    return float(blur_effect(grey, h_size=BLUR_PX))


def noise(grey: Mask) -> float:
    """Return the standard deviation of the noise of a grey picture (H, W) in levels of 255, that of rounding included.

    Median of the absolute diagonal details of the finest Haar wavelets over 0.6745 (Donoho & Johnstone, "Ideal spatial
    adaptation by wavelet shrinkage", Biometrika 81, 1994): edges are few and hardly move a median.
    """
    even = grey[: grey.shape[0] // 2 * 2, : grey.shape[1] // 2 * 2].astype(np.float32)
    details = (even[::2, ::2] - even[1::2, ::2] - even[::2, 1::2] + even[1::2, 1::2]) / 2
    return float(np.sqrt((np.median(np.abs(details)) / NORMAL_MAD) ** 2 + ROUNDING))


def blocking(grey: Mask) -> float:
    """Return how much larger jumps between blocks of 8 px are than those within, of a grey picture (H, W); 1 for none.

    A jump is by how much a step between two pixels exceeds the mean of the steps beside it (Minami & Zakhor, "An
    optimization approach for removing blocking effects in transform coding", IEEE TCSVT 5, 1995). The grid begins at
    the corner of the picture, so that of a JPEG is not seen after the picture was cut or its size was changed.
    """
    return float(np.mean([_jumps_at_borders(grey.astype(np.float32)), _jumps_at_borders(grey.T.astype(np.float32))]))


def _jumps_at_borders(picture: NDArray[np.float32]) -> float:
    steps = np.abs(np.diff(picture, axis=1))
    jumps = np.maximum(steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2, 0).mean(axis=0)
    at_border = np.arange(len(jumps)) % BLOCK_PX == BLOCK_PX - 2  # jump k lies between the pixels k + 1 and k + 2
    within = float(jumps[~at_border].mean())
    return float(jumps[at_border].mean()) / within if within else 1.0
