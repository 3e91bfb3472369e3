"""AdamW over all adapters at once with clipping, a moving average and the learning rate of each step; resumable."""

import math

import torch
from torch import Tensor

from zimage.training.adapters import Adapters
from zimage.training.checkpoint import numbered, restore
from zimage.training.params import OptimiserParams, ScheduleParams


def rate_factor(step: int, steps: int, params: ScheduleParams) -> float:
    """Return what the learning rate is multiplied with at a step, counted from 0, of `steps`."""
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if params.type == "constant":
        return 1.0
    done = (step - params.warmup_steps) / max(1, steps - params.warmup_steps)
    return params.final_fraction + (1 - params.final_fraction) * (1 + math.cos(math.pi * done)) / 2


class Optimiser:
    """The optimiser of one run. Nothing in a step waits for the device."""

    def __init__(self, adapters: Adapters, params: OptimiserParams) -> None:
        self._adapters, self._params = adapters, params
        down, up = adapters.halves()
        groups = [{"params": [down]}, {"params": [up]}]
        first, second = params.betas
        self._adamw = torch.optim.AdamW(
            groups, lr=params.learning_rate, betas=(first, second), weight_decay=params.weight_decay, fused=True
        )
        self.average = adapters.values.clone()

    def step(self, rate_factor: float, number: int) -> Tensor:
        """Update the adapters and return the gradient norm before clipping, on the device.

        Args:
            rate_factor: Of the schedule.
            number: The step, counted from 0; the average forgets its beginning faster in the first ones.
        """
        gradient = self._adapters.gradient
        norm: Tensor = torch.linalg.vector_norm(gradient)
        if self._params.clip_norm > 0:
            gradient.mul_((self._params.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group, multiple in zip(self._adamw.param_groups, (1.0, self._params.lora_plus_ratio), strict=True):
            group["lr"] = self._params.learning_rate * rate_factor * multiple
        self._adamw.step()
        if self._params.ema_decay > 0:
            # The warm-up of the decay is that of tensorflow's ExponentialMovingAverage(num_updates).
            decay = min(self._params.ema_decay, (1 + number) / (10 + number))
            self.average.lerp_(self._adapters.values, 1 - decay)
        return norm

    @property
    def result(self) -> Tensor:
        """Return the values that become the LoRA: the average where there is one."""
        return self.average if self._params.ema_decay > 0 else self._adapters.values

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimiser's state; empty moments before the first step."""
        moments = [self._adamw.state[group["params"][0]] for group in self._adamw.param_groups]
        return {
            "values": self._adapters.values,
            "average": self.average,
            **{
                key: tensor
                for name in ("step", "exp_avg", "exp_avg_sq")
                for key, tensor in numbered([moment[name] for moment in moments if moment], name).items()
            },
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        restore(self._adapters.values, tensors, "values")
        restore(self.average, tensors, "average")
        for number, group in enumerate(self._adamw.param_groups):
            parameter = group["params"][0]
            self._adamw.state[parameter] = {
                "step": tensors[f"step.{number}"].clone().to(parameter.device),
                "exp_avg": tensors[f"exp_avg.{number}"].to(parameter.device, copy=True),
                "exp_avg_sq": tensors[f"exp_avg_sq.{number}"].to(parameter.device, copy=True),
            }
