"""Other samplers than the base's own, over the same sigmas: diffusers' multistep schedulers for flow models."""

from typing import Any

from zimage.evaluation.generate.image_cache import Sampler


class PipelineScheduler:
    """A multistep scheduler as ZImagePipeline calls one.

    The pipeline passes `sigmas` and `mu` to `set_timesteps`. These schedulers refuse a mu without dynamic shifting and
    make the same sigmas themselves from the number of steps and the shift.

    Args:
        scheduler: diffusers' scheduler.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,  # of dynamic shifting, which Z-Image does not use
    ) -> None:
        """Begin anew with as many steps as there are sigmas."""
        self._scheduler.set_timesteps(num_inference_steps if sigmas is None else len(sigmas), device=device)


def scheduler_of(sampler: Sampler, base: Any) -> PipelineScheduler:
    """Return the scheduler of a sampler, with the shift of the base's own scheduler."""
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kind = {"dpmpp_2m": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}[sampler]
    return PipelineScheduler(
        kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=base.config.shift)
    )
