"""Two processes that share a run, forked from one that has everything imported: torchrun without its start-up."""

import ctypes
import os
import signal
import time
from collections.abc import Collection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from tests.ports import free_port
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE
from tests.training.stage_process import FORKED
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.loop import Loop
from zimage.training.params import TrainParams

PR_GET_PDEATHSIG = 2  # linux/prctl.h
KILL_AT = 3  # steps done
STOP_AT = 2
WAIT_S = 300


def run_pair(
    encoded: Path, out: Path, params: TrainParams, base: Base, *, killed: Collection[int] = (), stopped: bool = False
) -> list[int]:
    """Return the exit codes of two processes that train together.

    Args:
        encoded: The folder of the encode stage.
        out: Of the train stage.
        params: Of the run.
        base: Of the run.
        killed: Ranks that are killed, without mercy, before their fourth step.
        stopped: Both get SIGTERM in their third step, the one that follows first.
    """
    port, together = free_port(), FORKED.Barrier(len(killed)) if killed else None
    pair = [
        FORKED.Process(
            target=_work, args=(rank, port, together if rank in killed else None, stopped, encoded, out, params, base)
        )
        for rank in (0, 1)
    ]
    for process in pair:
        process.start()
    for process in pair:
        process.join(WAIT_S)
        assert process.exitcode is not None, "a process waits for one that is gone"
    return [int(process.exitcode or 0) for process in pair]


def _work(  # noqa: PLR0917
    rank: int,
    port: int,
    killed: Barrier | None,
    stopped: bool,
    encoded: Path,
    out: Path,
    params: TrainParams,
    base: Base,
) -> None:
    """Be one of two, told so as torchrun tells it; killed with all who come to `killed`, if that is given."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, TORCHELASTIC_RUN_ID="pair")
    torch.set_num_threads(1)
    if killed is not None:
        step = Loop.step

        def fatal(loop: Loop, number: int) -> torch.Tensor:
            if number == KILL_AT:
                killed.wait(WAIT_S)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(loop, number)

        Loop.step = fatal  # type: ignore[method-assign]
    if stopped:
        make = Loop.step

        def stopping(loop: Loop, number: int) -> torch.Tensor:
            if number == STOP_AT:
                time.sleep(0.0 if rank else 0.5)
                os.kill(os.getpid(), signal.SIGTERM)
            return make(loop, number)

        Loop.step = stopping  # type: ignore[method-assign]
    train(encoded, out, params=params, base=base, subject=SUBJECT, machine=MACHINE)
    when_parent_dies = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(when_parent_dies))
    assert when_parent_dies.value == signal.SIGTERM, "a killed torchrun would leave it behind"
