"""The processes of a run: one, several on a CPU's cores, or those that `torchrun` started.

A step is cut into pieces of `train.micro_batch_size` samples. On a CPU the gradients of all pieces are added one
after the other in their order, whichever process has computed them, so any number of processes gives the same bits.
"""

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor

from zimage.core.errors import InputError
from zimage.core.process import die_with_parent
from zimage.core.process_group import Forked
from zimage.model.device import device_and_dtype, processes_on

WAITS = timedelta(hours=2)  # for the leading process, which makes sample pictures between two steps

# Adds the gradients of some of a step's samples to the adapters' and returns their share of its loss.
Piece = Callable[[], Tensor]


class World:
    """This process alone."""

    rank, size = 0, 1
    can_hang = False  # waiting for a process that has ended

    @property
    def is_main(self) -> bool:
        """Return whether this process writes the files."""
        return self.rank == 0

    def cut(self, batch: int, micro_batch_size: int) -> list[slice]:
        """Return the pieces of a step's samples, of at most `micro_batch_size` each."""
        return [slice(start, min(start + micro_batch_size, batch)) for start in range(0, batch, micro_batch_size)]

    def all_reduce(self, pieces: Sequence[Piece], gradient: Tensor) -> Tensor:
        """Sum the gradients of all pieces into `gradient`, and return the sum of the losses."""
        gradient.zero_()
        loss = gradient.new_zeros(())
        for piece in pieces:
            loss += piece()
        return loss

    def broadcast_int(self, number: int) -> int:
        """Return the main process's number in every process; a barrier."""
        return number

    @contextmanager
    def joined(self, follow: Callable[[], None], values: int, pieces: int) -> Iterator[None]:
        """Start the other processes, which run until the context ends.

        Args:
            follow: Is what each of them does.
            values: How many numbers a gradient has.
            pieces: How many a step has at most.
        """
        yield

    def close(self) -> None:
        """Leave the group of processes."""


class Launched(World):
    """One of the processes that torchrun started; each computes as many of a step's samples.

    The sum over processes equals the gradient of the whole step in one process but for the order of additions.
    """

    can_hang = True

    def __init__(self) -> None:
        die_with_parent()  # a killed torchrun must not leave processes that go on writing
        on_gpus = torch.cuda.is_available()
        if on_gpus:
            torch.cuda.set_device(dist.get_node_local_rank())
        dist.init_process_group("nccl" if on_gpus else "gloo", timeout=WAITS)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def cut(self, batch: int, micro_batch_size: int) -> list[slice]:
        """Return the pieces of a step's samples, dealt round-robin to the processes.

        Raises:
            InputError: the step cannot be split evenly.
        """
        if batch % self.size:
            raise InputError(
                f"A batch of {batch} cannot be split over {self.size} processes; "
                f"set train.batch_size to a multiple of {self.size}."
            )
        own = batch // self.size
        parts = super().cut(own, micro_batch_size)
        return [slice(first + part.start, first + part.stop) for part in parts for first in range(0, batch, own)]

    def all_reduce(self, pieces: Sequence[Piece], gradient: Tensor) -> Tensor:
        """Leave the sum of all pieces' gradients in `gradient`, and return that of losses."""
        loss = super().all_reduce(pieces[self.rank :: self.size], gradient)
        dist.all_reduce(gradient)
        dist.all_reduce(loss)
        return loss

    def broadcast_int(self, number: int) -> int:
        """Return the main process's number in every process; a barrier."""
        numbers = [number]
        dist.broadcast_object_list(numbers)
        return numbers[0]

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


class Team(World):
    """One of several single-threaded processes that share a CPU; the main process has forked the others.

    They synchronise once a step. Each piece's gradient and loss are written to a slot in shared memory. There are two
    sets of slots, used alternately: a process may write the next step's set while another still reads the last one.

    Args:
        size: How many processes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._turn = 0
        self._to_leader: Connection | None = None
        self._forked: Forked | None = None
        self._slots = torch.empty(0)  # (2, pieces, values + 1): the gradient of each piece, then its loss

    def all_reduce(self, pieces: Sequence[Piece], gradient: Tensor) -> Tensor:
        """Leave the sum of all pieces' gradients in `gradient`, in their order, and return that of losses."""
        self._turn = 1 - self._turn
        slots = self._slots[self._turn, : len(pieces)]
        for number in range(self.rank, len(pieces), self.size):
            gradient.zero_()
            slots[number, -1] = pieces[number]()
            slots[number, :-1] = gradient
        self.broadcast_int(0)
        loss = gradient.zero_().new_zeros(())
        for place in slots:
            gradient += place[:-1]
            loss += place[-1]
        return loss

    def broadcast_int(self, number: int) -> int:
        """Return the main process's number in every process; a barrier."""
        if self._to_leader is not None:
            self._to_leader.send(number)
            found: int = self._to_leader.recv()
            return found
        assert self._forked is not None
        for line in self._forked.lines:
            self._forked.receive(line)
        for line in self._forked.lines:
            self._forked.send(line, number)
        return number

    @contextmanager
    def joined(self, follow: Callable[[], None], values: int, pieces: int) -> Iterator[None]:
        """Fork the other processes, which end with the context."""
        shape = (2, pieces, values + 1)
        shared = mmap.mmap(-1, torch.Size(shape).numel() * torch.float32.itemsize)
        self._slots = torch.frombuffer(shared, dtype=torch.float32).view(shape)

        def work(number: int, line: Connection) -> None:
            self.rank, self._to_leader = number + 1, line
            follow()

        with Forked(self.size - 1, work) as self._forked:
            yield


def begin_world(batch: int, micro_batch_size: int) -> World:
    """Return the world that torchrun, the device and the machine's setting call for (see zimage.core.process_group)."""
    if dist.is_torchelastic_launched():
        return Launched()
    size = min(processes_on(device_and_dtype()[0]), len(World().cut(batch, micro_batch_size)))
    return Team(size) if size > 1 else World()
