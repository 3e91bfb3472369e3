"""Sample the sigmas and the noise of a step on the CPU, deterministic in the seed and the step's number."""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from zimage.model.sequence import PATCH
from zimage.training.params import BetaParams, MixtureParams, ModeParams, ShiftByTokens, TimestepSamplingParams

# The fractional parts of its multiples fill the unit interval most evenly, however many are taken (Weyl, 1916;
# Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018).
GOLDEN = (5**0.5 - 1) / 2


def sigmas(uniform: Tensor, params: TimestepSamplingParams, *, sampler_shift: float, tokens: int = 4096) -> Tensor:
    """Return sigma for samples of the uniform distribution on (0, 1), float32.

    Sources: logit-normal, mode and cosmap, arXiv 2403.03206 section 3.1; shift, idem section 5.3.2 (equation 23) and
    diffusers@0.42.1:src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py, set_timesteps.

    Args:
        uniform: The samples, float64.
        params: The distribution.
        sampler_shift: Of the base's scheduler.
        tokens: Of the picture, for a shift that depends on them.
    """
    match params.distribution:
        case "scheduler":
            return shifted(uniform, sampler_shift).float()
        case MixtureParams(mixture=parts):
            found, start = torch.empty_like(uniform), 0.0
            for number, part in enumerate(parts):
                stop = start + part.share if number < len(parts) - 1 else 1.0
                mine = (uniform >= start) & (uniform < stop)
                # Stretched to (0, 1), evenly spread samples are so within each part too.
                stretched = _inside((uniform[mine] - start) / (stop - start))
                found[mine] = shifted(_logit_normal(stretched, part.mean, part.std), shift_of(part.shift, tokens))
                start = stop
            return found.float()
        case "logit_normal":
            plain = _logit_normal(uniform, params.mean, params.std)
        case "uniform":
            plain = uniform
        case "cosmap":
            plain = 1 - 1 / (torch.tan(math.pi / 2 * uniform) + 1)
        case ModeParams(mode_scale=scale):
            plain = 1 - uniform - scale * (torch.cos(math.pi / 2 * uniform) ** 2 - 1 + uniform)
        case BetaParams(alpha=alpha, beta=beta):
            from scipy.special import betaincinv

            plain = _inside(torch.from_numpy(betaincinv(alpha, beta, uniform.numpy())))
    return shifted(plain, shift_of(params.shift, tokens)).float()


def _logit_normal(uniform: Tensor, mean: float, std: float) -> Tensor:
    return torch.sigmoid(mean + std * torch.special.ndtri(uniform))


def shift_of(shift: float | ShiftByTokens, tokens: int) -> float:
    """Return the shift of a picture of so many tokens."""
    if not isinstance(shift, ShiftByTokens):
        return shift
    (few, many), (low, high) = shift.tokens, shift.log_shifts
    return math.exp(low + (high - low) * (tokens - few) / (many - few))


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """Return `shift * sigma / (1 + (shift - 1) * sigma)`."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def uniforms(step: int, batch: int, *, stratified: bool, offset: float, generator: torch.Generator) -> Tensor:
    """Return one draw of (0, 1) for each sample of a step, float64.

    Args:
        step: Counted from 0.
        batch: Samples in a step.
        stratified: Take the next points of one sequence through all steps, instead of independent draws.
        offset: Where in [0, 1) that sequence begins.
        generator: For independent draws.
    """
    if stratified:
        draws = (offset + GOLDEN * torch.arange(step * batch, (step + 1) * batch, dtype=torch.float64)) % 1.0
    else:
        draws = torch.rand(batch, generator=generator, dtype=torch.float64)
    return _inside(draws)


def noise_levels(params: TimestepSamplingParams, *, sampler_shift: float, tokens: int) -> list[tuple[float, float]]:
    """Return the middle of each twentieth of [0, 1] and the density of sigma there, 1 where all come alike.

    Args:
        params: The distribution.
        sampler_shift: Of the base's scheduler.
        tokens: Of the picture, for a shift that depends on them.
    """
    bins, draws = 20, 100_000
    found = sigmas(
        (torch.arange(draws, dtype=torch.float64) + 0.5) / draws, params, sampler_shift=sampler_shift, tokens=tokens
    )
    counts = torch.histc(found, bins=bins, min=0.0, max=1.0)
    return [((number + 0.5) / bins, float(count) * bins / draws) for number, count in enumerate(counts)]


def _inside(draws: Tensor) -> Tensor:
    edge = torch.finfo(torch.float32).eps
    return draws.clamp(edge, 1 - edge)


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
class StepNoise:
    """Sigmas and noise of one step, on the CPU."""

    sigma: Tensor  # (B,) float32
    noise: Tensor  # (B, C, H, W) float32
    spread: Tensor  # (B, C, H, W) float32: where in the posterior the latents lie, in standard deviations


def sample_step_noise(
    seed: int,
    step: int,
    shape: tuple[int, int, int, int],
    params: TimestepSamplingParams,
    *,
    sampler_shift: float,
    name: str = "step",
) -> StepNoise:
    """Sample sigmas and noise of one step.

    Args:
        seed: Of the run.
        step: Counted from 0.
        shape: (B, C, H, W) of the whole step's latents, on all devices together.
        params: The distribution of sigma.
        sampler_shift: Of the base's scheduler.
        name: What the step is for, so that prior preservation has a random stream of its own.
    """
    generator = generator_of(seed, name, step)
    offset = float(torch.rand(1, generator=generator_of(seed, name, "offset")))
    uniform = uniforms(step, shape[0], stratified=params.stratified, offset=offset, generator=generator)
    noise = torch.randn(shape, generator=generator)
    spread = torch.randn(shape, generator=generator)
    tokens = (shape[2] // PATCH) * (shape[3] // PATCH)
    return StepNoise(sigmas(uniform, params, sampler_shift=sampler_shift, tokens=tokens), noise, spread)
