"""Sample pictures from the model in training with the pipeline's own rules and no second copy of the weights."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zimage.model.denoiser import Denoiser

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    scheduler: "FlowMatchEulerDiscreteScheduler",
    noise: Tensor,
    context: Tensor,
    empty: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    before_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Return latents (B, C, H, W), equal to what ZImagePipeline makes of the same noise and texts.

    Source: diffusers@0.42.1:src/diffusers/pipelines/z_image/pipeline_z_image.py, __call__.

    Args:
        denoiser: The model, with its adapters as they are.
        scheduler: Of the base; not changed.
        noise: (B, C, H, W), float32.
        context: The refined captions (B, L, D).
        empty: The refined empty text (1, L', D), for guidance.
        steps: Euler steps.
        guidance_scale: As the pipeline counts: 0 is none, 4 is 5 elsewhere.
        before_step: Called before each step; what it raises ends the sampling.
    """
    walk = copy.deepcopy(scheduler)
    walk.set_timesteps(device=noise.device, sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=0.0)
    latents = noise
    for timestep in walk.timesteps:
        before_step()
        sigma = (timestep / 1000).expand(len(latents))
        velocity = denoiser.velocity(latents, sigma, context)
        if guidance_scale > 0:
            without = denoiser.velocity(latents, sigma, empty.expand(len(latents), -1, -1))
            velocity = velocity + guidance_scale * (velocity - without)
        latents = walk.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
