"""All chance of a step, made on the CPU from the run's seed and the step's number alone.

A resumed run, another device and any number of processes therefore see the same noise, and no random state is kept.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage.training.params import SigmaParams
from zimage.training.sigma import sigmas, uniforms


def generator_of(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator that belongs to these names alone."""
    return torch.Generator().manual_seed(seed_of(seed, *names))


def seed_of(seed: int, *names: str | int) -> int:
    """Return a seed that belongs to these names alone.

    torch takes the lowest 32 bits only (pytorch@v2.13.0:aten/src/ATen/core/MT19937RNGEngine.h), so they are taken from
    a hash: neighbouring seeds and steps share nothing.
    """
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *names)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


@dataclass(frozen=True)
class Draw:
    """The chance in one step, on the CPU."""

    sigma: Tensor  # (B,) float32
    noise: Tensor  # (B, C, H, W) float32
    spread: Tensor  # (B, C, H, W) float32: where in the posterior the latents lie, in standard deviations


def draw(
    seed: int,
    step: int,
    shape: tuple[int, int, int, int],
    params: SigmaParams,
    *,
    sampler_shift: float,
    name: str = "step",
) -> Draw:
    """Return the chance of one step.

    Args:
        seed: Of the run.
        step: Counted from 0.
        shape: (B, C, H, W) of the whole step's latents, on all devices together.
        params: The law of sigma.
        sampler_shift: Of the base's scheduler.
        name: What the step is for, so that preservation has chance of its own.
    """
    generator = generator_of(seed, name, step)
    offset = float(torch.rand(1, generator=generator_of(seed, name, "offset")))
    uniform = uniforms(step, shape[0], stratified=params.stratified, offset=offset, generator=generator)
    noise = torch.randn(shape, generator=generator)
    spread = torch.randn(shape, generator=generator)
    return Draw(sigmas(uniform, params, sampler_shift=sampler_shift), noise, spread)
