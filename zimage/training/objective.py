"""The objective of a step: velocity error on the subject's pictures, prior preservation on the class's.

# B batch, C channels, H W latent size
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from zimage.model.denoiser import Denoiser
from zimage.model.device import sent
from zimage.training.dataset import Dataset
from zimage.training.loss_weights import sigma_weights, squared_error
from zimage.training.noise import StepNoise, sample_step_noise
from zimage.training.params import LossWeight, PriorPreservationParams, TimestepSamplingParams
from zimage.training.plan import Step


@dataclass(frozen=True)
class Objective:
    """The loss of a step.

    Args:
        denoiser: The model.
        dataset: Pictures and texts.
        sigma: The law of noise levels.
        sampler_shift: Of the base's scheduler.
        loss_weight: What noise levels count.
        latents: The posteriors' means, or samples of them.
        seed: Of the run.
    """

    denoiser: Denoiser
    dataset: Dataset
    timestep_sampling: TimestepSamplingParams
    sampler_shift: float
    loss_weight: LossWeight
    latents: Literal["mean", "sample"]
    seed: int

    def sample_noise(self, number: int, step: Step, *, name: str = "step") -> StepNoise:
        """Sample a step's sigmas and noise.

        Deterministic in (seed, step, name), so a resumed run and another device draw the same.
        """
        channels = self.dataset.channels
        shape = (len(step.items), channels, step.bucket.height, step.bucket.width)
        return sample_step_noise(
            self.seed, number, shape, self.timestep_sampling, sampler_shift=self.sampler_shift, name=name
        )

    def inputs(self, step: Step, step_noise: StepNoise, rows: slice) -> tuple[Any, ...]:
        """Return what `forward_backward` reads of these rows of a step."""
        part = step.part(rows)
        clean, noise, sigma = self._parts(part, step_noise, rows)
        context = self.dataset.context(part, self.denoiser)
        return clean, noise, sigma, context, self.dataset.loss_weights(part), len(step.items)

    def forward_backward(  # noqa: PLR0917
        self, clean: Tensor, noise: Tensor, sigma: Tensor, context: Tensor, loss_weights: Tensor | None, samples: int
    ) -> Tensor:
        """Return the loss of some of a step's samples, and add its gradients to the adapters'.

        The losses of all parts of a step add up to the mean over its samples.
        """
        errors = squared_error(self._velocity(clean, noise, sigma, context), noise - clean, loss_weights)
        loss = (errors * sigma_weights(self.loss_weight, sigma)).sum() / samples
        loss.backward()
        return loss.detach()

    def preservation_loss(
        self, step: Step, step_noise: StepNoise, rows: slice, params: PriorPreservationParams
    ) -> Tensor:
        """Return the weighted prior-preservation loss of these samples; all parts of a step add up to its mean."""
        part = step.part(rows)
        clean, noise, sigma = self._parts(part, step_noise, rows)
        context = self.dataset.context(part, self.denoiser)
        if params.target == "picture":
            target = noise - clean
        else:
            with torch.no_grad(), self.denoiser.without_adapters():
                target = self._velocity(clean, noise, sigma, context)
        errors = squared_error(self._velocity(clean, noise, sigma, context), target, None)
        return params.weight * (errors * sigma_weights(self.loss_weight, sigma)).sum() / len(step.items)

    @torch.no_grad()
    def plain_loss(self, clean: Tensor, noise: Tensor, sigma: float, text: int) -> float:
        """Return the unweighted loss of one picture at one sigma, for comparisons between steps.

        Args:
            clean: Its latents (1, C, H, W), on the model's device.
            noise: As large.
            sigma: Share of noise, 0 to 1.
            text: Number of its caption.
        """
        context = self.dataset.context(self.dataset.one(text, (clean.shape[2], clean.shape[3])), self.denoiser)
        share = torch.full((1,), sigma, device=clean.device)
        return float((self._velocity(clean, noise, share, context) - (noise - clean)).square().mean())

    def _parts(self, part: Step, step_noise: StepNoise, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' latents, noise and sigma on the device."""
        device = self.denoiser.device
        spread = sent(step_noise.spread[rows], device) if self.latents == "sample" else None
        clean = self.dataset.latents(part, spread)
        return clean, sent(step_noise.noise[rows], device), sent(step_noise.sigma[rows], device)

    def _velocity(self, clean: Tensor, noise: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        return self.denoiser.velocity(noisy, sigma, context)
