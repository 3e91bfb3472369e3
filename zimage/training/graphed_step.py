"""Forward and backward pass as one CUDA graph per shape, for steps that are limited by kernel launches.

A graph replays kernels with the addresses they had. So inputs are copied to fixed buffers, and whatever was a number
when it was recorded stays that number for ever, without a word. Therefore nothing is trained with a graph that has not
first given the loss and the gradients of the plain way, for other inputs than those it was recorded with.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# (latents, noise, sigma, context, face weights or None, samples in the step) -> loss; adds gradients to the adapters'.
Passes = Callable[..., Tensor]
# (passes without arguments) -> what repeats them
Record = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

WARM_UPS = 3  # kernels are chosen, tables made and blocks compiled before anything is recorded
# Of loss and gradients, relative: the flash kernel adds up in another order each time, and products are in bfloat16.
TOLERANCE = 0.02


class GraphedStep:
    """Forward and backward, recorded as a CUDA graph for each new shape and replayed after; eager where that fails.

    One failure is enough: what could not be recorded once keeps what memory it took, and would take it for each shape.
    Too little memory is no such failure: it is raised, and the remedy in its message is machine.cuda_graphs=false.

    Args:
        passes: Forward and back, which read nothing but their arguments and the adapters, and use no random numbers.
        gradient: The adapters', to which passes add.
        record: How something is recorded.
    """

    def __init__(self, passes: Passes, gradient: Tensor, record: Record) -> None:
        self._passes, self._gradient, self._record = passes, gradient, record
        self._made: dict[tuple[Any, ...], Passes] = {}
        self._records = True

    def __call__(self, *inputs: Any) -> Tensor:
        """Return the loss, and add the gradients to the adapters'."""
        shape = tuple(tuple(each.shape) if isinstance(each, Tensor) else each for each in inputs)
        if shape not in self._made:
            self._made[shape] = self._checked(inputs) if self._records else self._passes
        return self._made[shape](*inputs)

    def _checked(self, inputs: Sequence[Any]) -> Passes:
        """Return what repeats the passes for inputs like these, or the passes themselves where it differs from them."""
        before = self._gradient.clone()
        wanted = self._outcome(self._passes, inputs)
        try:
            repeated = self._repeating(inputs)
            found = self._outcome(repeated, inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("a CUDA graph could not be recorded, and none is used: %s", error)
            self._records = False
            return self._passes
        finally:
            self._gradient.copy_(before)
        differences = [float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
        if all(difference <= TOLERANCE for difference in differences):  # false for what is no number
            logger.info("recorded a CUDA graph; loss and gradients differ by %.1e and %.1e from plain", *differences)
            return repeated
        logger.warning(
            "a CUDA graph gave another loss or other gradients than the plain way (%.1e, %.1e); it is not used",
            *differences,
        )
        return self._passes

    def _repeating(self, inputs: Sequence[Any]) -> Passes:
        """Return the passes recorded with halved inputs, replayed with the real ones in the same buffers."""
        buffers = [each.detach() / 2 if isinstance(each, Tensor) else each for each in inputs]
        repeat = self._record(lambda: self._passes(*buffers))

        def repeated(*inputs: Any) -> Tensor:
            for place, given in zip(buffers, inputs, strict=True):
                if isinstance(place, Tensor):
                    place.copy_(given, non_blocking=True)
            return repeat().clone()

        return repeated

    def _outcome(self, passes: Passes, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return the loss and the gradients of these inputs alone."""
        self._gradient.zero_()
        loss = passes(*inputs)
        return loss, self._gradient.clone()


class Recorder:
    """Records on a GPU; all graphs share one pool of memory, since one is done before the next begins."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, passes: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return what repeats the passes; its loss is overwritten by the next repetition."""
        current, aside = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                passes()
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                loss = passes()
        finally:
            torch.cuda.set_stream(current)  # torch.cuda.graph does not, where its recording cannot be ended
        self._pool = graph.pool()

        def repeat() -> Tensor:
            graph.replay()
            return loss

        return repeat
