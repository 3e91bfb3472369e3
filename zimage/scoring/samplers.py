"""Other samplers than the base's own, over the same sigmas: diffusers' multistep schedulers for flow models."""

from typing import Any

import numpy as np

from zimage.evaluation.generate.image_cache import Sampler


class PipelineScheduler:
    """A multistep scheduler as ZImagePipeline calls one.

    The pipeline passes `sigmas` and `mu` to `set_timesteps`. These schedulers refuse a mu without dynamic shifting.
    UniPC takes the sigmas; DPM++ takes none and makes its own of the number of steps and the shift, from 0.999 down,
    which differ from the pipeline's by up to 0.003 with 16 steps.

    Args:
        scheduler: diffusers' scheduler.
        takes_sigmas: Whether its `set_timesteps` takes sigmas before the shift.
    """

    def __init__(self, scheduler: Any, *, takes_sigmas: bool) -> None:
        self._scheduler, self._takes_sigmas = scheduler, takes_sigmas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,  # of dynamic shifting, which Z-Image does not use
    ) -> None:
        """Begin anew with these sigmas, or with as many of its own."""
        if sigmas is not None and self._takes_sigmas:
            self._scheduler.set_timesteps(sigmas=np.array(sigmas), device=device)
            return
        self._scheduler.set_timesteps(num_inference_steps if sigmas is None else len(sigmas), device=device)


def scheduler_of(sampler: Sampler, base: Any) -> PipelineScheduler:
    """Return the scheduler of a sampler, with the shift of the base's own scheduler."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kind = {"dpmpp_2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[sampler]
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=base.config.shift)
    return PipelineScheduler(scheduler, takes_sigmas=kind is UniPCMultistepScheduler)
