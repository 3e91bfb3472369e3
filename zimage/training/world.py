"""The processes that share a run, started by `torchrun`; one process without it."""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from zimage.errors import InputError
from zimage.parent import die_with_parent

WAITS = timedelta(hours=2)  # for the leading process, which makes sample pictures between two steps


class World:
    """This process among those of the run. Every step's samples are split over all; gradients are added up.

    The sum over processes equals the gradient of the whole step in one process but for the order of additions,
    because every share is divided by the size of the whole step.
    """

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        if dist.is_torchelastic_launched():
            die_with_parent()  # a killed torchrun must not leave processes that go on writing
            on_gpus = torch.cuda.is_available()
            if on_gpus:
                torch.cuda.set_device(dist.get_node_local_rank())
            dist.init_process_group("nccl" if on_gpus else "gloo", timeout=WAITS)
            self.rank, self.size = dist.get_rank(), dist.get_world_size()

    @property
    def leads(self) -> bool:
        """Return whether this process writes the files."""
        return self.rank == 0

    def rows(self, batch: int, at_once: int) -> list[slice]:
        """Return this process's part of a step's samples, in pieces of at most `at_once`.

        Raises:
            InputError: the step cannot be split evenly.
        """
        if batch % self.size:
            raise InputError(
                f"A batch of {batch} cannot be split over {self.size} processes; "
                f"set train.batch to a multiple of {self.size}."
            )
        own = batch // self.size
        first = self.rank * own
        return [slice(start, min(start + at_once, first + own)) for start in range(first, first + own, at_once)]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def agreed(self, number: int) -> int:
        """Return the leading process's number in all of them; each waits until all have come this far."""
        if self.size == 1:
            return number
        numbers = [number]
        dist.broadcast_object_list(numbers)
        return numbers[0]

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()
