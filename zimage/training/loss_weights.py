"""Weights of the loss by noise level and by part of the picture.

# B batch, C channels, H W latent size
"""

import math

import torch
from torch import Tensor

from zimage.training.params import LossWeight

# Integral over [0, 1] of exp(-2 (s - 1/2)^2) - exp(-1/2), so that `bell` is 1 on average for uniform sigma.
BELL_MEAN = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5)

MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556, section 4.2: the results differ little between 1 and 20
# Integral over [0, 1] of min((1 - s)^2, gamma s^2), so that `min_snr` is 1 on average for uniform sigma.
MIN_SNR_MEAN = MIN_SNR_GAMMA / (3 * (1 + math.sqrt(MIN_SNR_GAMMA)) ** 2)


def sigma_weights(name: LossWeight, sigma: Tensor) -> Tensor:
    """Return the weight of each sample's loss (B,), 1 on average where sigma is uniform, but for sigma_sqrt.

    Sources: bell, modelscope/DiffSynth-Studio@fed7b18f:diffsynth/diffusion/flow_match.py (set_training_weight);
    half_bell, ostris/ai-toolkit@27a03a91:toolkit/samplers/custom_flowmatch_sampler.py (linear_timesteps_weights2, whose
    mean is 1.289); cosmap, arXiv 2403.03206 section 3.1; sigma, Nerogar/OneTrainer@23df3832:modules/modelSetup/mixin/
    ModelSetupDiffusionLossMixin.py (SIGMA, whose mean is 0.5); sigma_sqrt, diffusers@0.42.1:src/diffusers/
    training_utils.py (compute_loss_weighting_for_sd3), whose mean over uniform sigma is infinite.
    min_snr, arXiv 2303.09556: the error of the predicted picture counts min(SNR, 5), where SNR is ((1 - s) / s)^2 for
    x_t = (1 - s) x_0 + s noise; that error is s times the velocity's, since x_0 = x_t - s v, so the velocity's squared
    error counts s^2 min(SNR, 5). Trainers that divide by SNR, as for predicted noise, give another weight.
    """
    match name:
        case "constant":
            return torch.ones_like(sigma)
        case "bell":
            return (torch.exp(-2 * (sigma - 0.5) ** 2) - math.exp(-0.5)) / BELL_MEAN
        case "half_bell":
            bell = torch.exp(-2 * (sigma.clamp_min(0.5) - 0.5) ** 2) - math.exp(-0.5)
            return bell / ((BELL_MEAN + 1 - math.exp(-0.5)) / 2)
        case "cosmap":
            return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        case "sigma":
            return 2 * sigma
        case "sigma_sqrt":
            return sigma**-2
        case "min_snr":
            return torch.minimum((1 - sigma) ** 2, MIN_SNR_GAMMA * sigma**2) / MIN_SNR_MEAN


def face_weights(face: Tensor, face_weight: float) -> Tensor:
    """Return (H, W) of mean 1, `face_weight` times as large on the face as elsewhere; all ones where there is no face.

    Divided by the mean, so that a small face does not make its picture count less, and an empty mask changes nothing.
    """
    weights = 1 + (face_weight - 1) * face
    return weights / weights.mean().clamp_min(torch.finfo(weights.dtype).tiny)


def squared_error(velocity: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean squared error of each sample (B,), float32.

    Args:
        velocity: The model's (B, C, H, W).
        target: `noise - latent`, or another model's velocity.
        weights: (B, 1, H, W) of mean 1, or None for 1 everywhere.
    """
    errors = (velocity - target).square()
    return (errors if weights is None else errors * weights).mean(dim=(1, 2, 3))
