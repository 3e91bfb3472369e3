"""The learning rate of each step."""

import math

from zimage.training.params import ScheduleParams


def rate_factor(step: int, steps: int, params: ScheduleParams) -> float:
    """Return what the learning rate is multiplied with at a step, counted from 0, of `steps`."""
    if step < params.warmup_steps:
        return (step + 1) / params.warmup_steps
    if params.law == "constant":
        return 1.0
    done = (step - params.warmup_steps) / max(1, steps - params.warmup_steps)
    return params.final_fraction + (1 - params.final_fraction) * (1 + math.cos(math.pi * done)) / 2
