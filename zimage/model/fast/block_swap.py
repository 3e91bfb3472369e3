"""Block swapping: weights of blocks wait in main memory and are copied to the device shortly before use.

Two slots on the device are enough: one block computes while the next one is copied, in the forward and in the
backward pass. Adapters, norms and modulations stay; only the large frozen weights travel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from zimage.model.fast.block import Block
from zimage.model.fast.weight_formats import FrozenWeight

PLACES = 2


class BlockSwapper:
    """The waiting weights of some blocks, all of one shape, in the order in which data meets them.

    Args:
        device: Where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._waiting: list[list[FrozenWeight]] = []
        self._places: list[list[FrozenWeight]] = []
        self._holds: list[int | None] = [None] * PLACES
        self._free: list[Any] = [None] * PLACES  # events: what last read a place is done
        self._arrived: list[Any] = [None] * PLACES  # events: what was sent to a place is there
        self._current: int | None = None
        self._crossing = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.waits = 0  # how often a block was not on its way yet when it was wanted

    def take(self, block: Block) -> None:
        """Take a block's large weights from the device; visitors stand in for them from now on."""
        projections = [block.qkv, block.out, block.w13, block.w2]
        frozen = [projection.frozen for projection in projections]
        if not self._places:
            self._places = [[each.with_tensors(_like(each)) for each in frozen] for _ in range(PLACES)]
        for part, projection in enumerate(projections):
            projection.frozen = OffloadedWeight(self, len(self._waiting), part, projection.frozen.shape)
        self._waiting.append([each.with_tensors(_at_home(each)) for each in frozen])

    def here(self, number: int, part: int) -> FrozenWeight:
        """Return one weight of a block on the device, and send for the block that is wanted next."""
        if number != self._current:
            self._go_to(number)
        return self._places[self._holds.index(number)][part]

    def _go_to(self, number: int) -> None:
        before, self._current = self._current, number
        if before in self._holds:
            self._free[self._holds.index(before)] = self._now(None)
        if number not in self._holds:
            self.waits += 1
            self._send(number, spared=before)
        if self._crossing is not None:
            torch.cuda.current_stream(self._device).wait_event(self._arrived[self._holds.index(number)])
        following = self._following(before, number)
        if following not in self._holds:
            self._send(following, spared=number)

    def _following(self, before: int | None, number: int) -> int:
        """Return the block that comes after this one: on in the same direction, and back from either end."""
        step = 1 if before is None or number >= before else -1
        last = len(self._waiting) - 1
        if not 0 <= number + step <= last:
            step = -step
        return min(max(number + step, 0), last)

    def _send(self, number: int, *, spared: int | None) -> None:
        """Let a block's weights cross to a place, but not to that of the block that is spared."""
        place = next(place for place in range(PLACES) if spared is None or self._holds[place] != spared)
        self._holds[place] = number
        if self._crossing is None:
            self._copy(number, place)
            return
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._crossing):
            if self._free[place] is None:  # its memory belonged to another slot, whose kernels may still run
                self._crossing.wait_stream(computing)
            else:
                self._crossing.wait_event(self._free[place])
            self._copy(number, place)
            self._arrived[place] = self._now(self._crossing)

    def _copy(self, number: int, place: int) -> None:
        for source, target in zip(self._waiting[number], self._places[place], strict=True):
            for there, here in zip(source.tensors(), target.tensors(), strict=True):
                here.copy_(there, non_blocking=True)

    def _now(self, stream: Any) -> Any:
        """Return an event that is recorded now, or None where there are no streams."""
        if self._crossing is None:
            return None
        event = torch.cuda.Event()
        event.record(stream or torch.cuda.current_stream(self._device))
        return event


class OffloadedWeight:
    """A frozen weight that comes when it is wanted."""

    def __init__(self, swapper: BlockSwapper, number: int, part: int, shape: tuple[int, int]) -> None:
        self._swapper, self._number, self._part = swapper, number, part
        self.shape = shape

    def matmul(self, x: Tensor) -> Tensor:
        """Return x @ weight^T."""
        return _Visit.apply(x, self)  # type: ignore[no-any-return,no-untyped-call]

    def matmul_grad_input(self, dy: Tensor) -> Tensor:
        """Return dy @ weight."""
        return self.here().matmul_grad_input(dy)

    def exact(self) -> Tensor | None:
        """Return the weight as the model has it, valid until another block is visited; None where it is rounded."""
        return self.here().exact()

    def here(self) -> FrozenWeight:
        """Return the weight on the device; valid until another block is visited."""
        return self._swapper.here(self._number, self._part)

    def tensors(self) -> list[Tensor]:
        """Return what it is kept in on the device just now."""
        return self.here().tensors()

    def with_tensors(self, tensors: list[Tensor]) -> FrozenWeight:
        """Return the same weight, kept in one place."""
        return self.here().with_tensors(tensors)


class _Visit(Function):
    """Autograd must not keep a slot that other blocks will use: the weight is copied again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, visitor: OffloadedWeight) -> Tensor:
        ctx.visitor = visitor
        return visitor.here().matmul(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.visitor.matmul_grad_input(dy), None


def _like(frozen: FrozenWeight) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in frozen.tensors()]


def _at_home(frozen: FrozenWeight) -> list[Tensor]:
    """Return copies in the machine's memory, pinned where they will cross to a GPU."""
    return [
        tensor.to("cpu", copy=True).pin_memory() if tensor.is_cuda else tensor.clone() for tensor in frozen.tensors()
    ]
