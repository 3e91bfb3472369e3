"""The train stage in a process that a test may stop or kill, forked from one that has imported all that it needs.

A process that imports torch, diffusers and peft itself takes four seconds of CPU time before it trains. Tests of how
the command starts, `python -m zimage train` in a shell or below DVC, start it so.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import yaml

# What a run imports late is imported here once, by the process that others are forked from.
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel  # noqa: F401

import zimage.training.run_writer
import zimage.training.setup  # noqa: F401
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE
from zimage.cli.main import main
from zimage.model.base import Base
from zimage.training.loop import Loop
from zimage.training.params import TrainParams

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload([__name__])
IMPORTING = multiprocessing.get_context("spawn")  # with what is read from the environment by an import
PAUSE_S = 0.1  # before each step, so that there is time to be killed


@contextmanager
def stage_process(
    encoded: Path,
    out: Path,
    base: Base,
    params: TrainParams,
    *,
    environment: Mapping[str, str] | None = None,
    made: Connection | None = None,
    imports: bool = False,
    slowly: bool = False,
) -> Iterator[BaseProcess]:
    """Yield the stage at work in a process of its own; params.yaml and what it prints to stderr lie beside `out`.

    Args:
        encoded: The folder of the encode stage.
        out: Of the train stage.
        base: Of the run.
        params: Of the run.
        environment: What differs from this process's.
        made: Gets the number of each step that was made.
        imports: The process imports everything itself.
        slowly: It waits before each step.
    """
    sections = {"train": params, "base": base, "subject": SUBJECT, "machine": MACHINE}
    file, errors = out.with_name("params.yaml"), out.with_name("stderr.txt")
    file.write_text(yaml.safe_dump({name: each.model_dump() for name, each in sections.items()}))
    arguments = ["train", str(encoded), str(out), "--params", str(file)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    context = IMPORTING if imports else FORKED
    process = context.Process(target=_work, args=(arguments, given, errors, made, PAUSE_S if slowly else 0.0))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def _work(
    arguments: list[str], environment: dict[str, str], errors: Path, made: Connection | None, pause_s: float
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    step = Loop.step

    def reported(loop: Loop, number: int) -> torch.Tensor:
        time.sleep(pause_s)
        loss = step(loop, number)
        if made is not None:
            made.send(number)
        return loss

    Loop.step = reported  # type: ignore[method-assign]
    sys.exit(main(arguments))
