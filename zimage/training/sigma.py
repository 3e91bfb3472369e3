"""How much noise each sample gets. The law is training's own: the sampler's shift only counts where it is asked for."""

import torch
from torch import Tensor

from zimage.training.params import SigmaParams

# The fractional parts of its multiples fill the unit interval most evenly, however many are taken (Weyl, 1916;
# Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018).
GOLDEN = (5**0.5 - 1) / 2


def sigmas(uniform: Tensor, params: SigmaParams, *, sampler_shift: float) -> Tensor:
    """Return sigma for draws of the uniform law on (0, 1), float32.

    Sources: logit-normal, arXiv 2403.03206 section 3.1; shift, idem section 5.3.2 (equation 23) and
    diffusers@0.42.1:src/diffusers/schedulers/scheduling_flow_match_euler_discrete.py, set_timesteps.
    """
    match params.law:
        case "logit_normal":
            return shifted(torch.sigmoid(params.mean + params.std * torch.special.ndtri(uniform)), params.shift).float()
        case "uniform":
            return shifted(uniform, params.shift).float()
        case "scheduler":
            return shifted(uniform, sampler_shift).float()


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
    edge = torch.finfo(torch.float32).eps
    return draws.clamp(edge, 1 - edge)
