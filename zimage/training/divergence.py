"""Read loss and gradient norm some steps late, so that the host never waits for the device, and stop a diverged run."""

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from zimage.core.errors import InputError

WINDOW = 20  # steps over which the loss is averaged; a single step's loss depends mostly on its sigma
# The least loss of a model that predicts nothing: the variance of the noise. A first loss below it says little.
NOISE_VARIANCE = 1.0


class DivergedError(InputError):
    """The loss is NaN or infinite, or has grown by `divergence_factor`."""


class StepMetrics(NamedTuple):
    """Loss and gradient norm of one step."""

    step: int  # counted from 0
    loss: float
    norm: float  # of the gradients, before clipping


class PendingMetrics:
    """A queue of metrics on the device, which are read some steps later.

    Args:
        device: Where the numbers are made.
        every: Steps that are read together; on a GPU, what they were is known one such span later.
    """

    def __init__(self, device: torch.device, every: int) -> None:
        self._device, self._every = device, every
        self._fresh: list[tuple[int, Tensor]] = []
        self._crossing: tuple[list[int], Tensor, torch.cuda.Event | None] | None = None

    def put(self, step: int, numbers: Tensor) -> list[StepMetrics]:
        """Queue a step's loss and norm (2,), and return those of earlier steps that have arrived."""
        self._fresh.append((step, numbers))
        if len(self._fresh) < self._every:
            return []
        arrived = self._arrived()
        self._send()
        return arrived if self._device.type == "cuda" else [*arrived, *self._arrived()]

    def rest(self) -> list[StepMetrics]:
        """Wait for all queued metrics and return them."""
        arrived = self._arrived()
        self._send()
        return [*arrived, *self._arrived()]

    def _send(self) -> None:
        if not self._fresh:
            return
        numbers = torch.stack([numbers for _, numbers in self._fresh])
        steps = [step for step, _ in self._fresh]
        self._fresh = []
        if self._device.type == "cpu":
            self._crossing = (steps, numbers, None)
            return
        host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._crossing = (steps, host, event)

    def _arrived(self) -> list[StepMetrics]:
        if self._crossing is None:
            return []
        steps, numbers, event = self._crossing
        self._crossing = None
        if event is not None:
            event.synchronize()
        return [StepMetrics(step, loss, norm) for step, (loss, norm) in zip(steps, numbers.tolist(), strict=True)]


class DivergenceMonitor:
    """Detects a diverged loss.

    The mean of the last WINDOW losses is compared with that of the first WINDOW. Until these are there, the loss of the
    first step, which the base makes without any training, stands for each that is missing.

    Args:
        explosion: How many times the mean loss of the first steps the mean of the latest may reach.
        before: The losses of the steps that a run which goes on has made already.
    """

    def __init__(self, explosion: float, before: Sequence[float] = ()) -> None:
        self._explosion = explosion
        self._first = before[0] if before else None
        self._losses = list(before[1 - WINDOW :])
        self._began = fmean(before[:WINDOW]) if len(before) >= WINDOW else None

    def broken(self, reading: StepMetrics) -> str | None:
        """Return the reason to stop after one more step, or None."""
        loss = reading.loss
        if not (isfinite(loss) and isfinite(reading.norm)):
            return f"the loss is {loss:g} and the gradients' norm {reading.norm:g}"
        self._losses = [*self._losses[1 - WINDOW :], loss]
        if self._began is None:
            return self._broken_at_the_start()
        mean = fmean(self._losses)
        if mean > self._explosion * self._began:
            return f"the mean loss of the last {WINDOW} steps, {mean:.4g}, is {mean / self._began:.1f} times the first"
        return None

    def _broken_at_the_start(self) -> str | None:
        """Return the reason to stop within the first WINDOW steps, or None; keep their mean when all are there."""
        if self._first is None:
            self._first = self._losses[0]
        count, untrained = len(self._losses), max(self._first, NOISE_VARIANCE)
        padded = fmean([*self._losses, *[untrained] * (WINDOW - count)])
        if padded > self._explosion * untrained:
            return f"the mean loss of the first {count} steps, {fmean(self._losses):.4g}, began with {self._first:.4g}"
        if count == WINDOW:
            self._began = padded
        return None
