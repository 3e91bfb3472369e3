"""Processes that a training forks on a CPU: the same bits for any number of them, and one end for all."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from tests.processes import children
from tests.training.crops import SUBJECT
from tests.training.recipe import MACHINE, recipe
from tests.training.stage_process import stage_process
from zimage.core.errors import InputError
from zimage.core.folder import aside_of
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.loop import Loop

PRESERVATION = {"weight": 1.0, "every": 2, "batch_size": 3, "pictures": "crops", "target": "base"}
PARAMS = recipe(
    batch_size=4, micro_batch_size=1, steps=5, dropout=0.1, prior_preservation=PRESERVATION
)  # 4 or 7 pieces a step
MADE = ("lora.safetensors", "loss.csv", "checkpoints/step-000004.safetensors")
KILL_AT = 3  # steps done; a state is kept after every second one


@dataclass
class Stage:
    """The train stage and what it reads."""

    encoded: Path
    base: Base
    share: Callable[[int], None]

    def run(self, out: Path, processes: int) -> Path:
        """Train in so many processes and return the output."""
        self.share(processes)
        train(self.encoded, out, params=PARAMS, base=self.base, subject=SUBJECT, machine=MACHINE)
        return out


@pytest.fixture
def stage(tiny_encoded: Path, tiny_base: Base, share: Callable[[int], None]) -> Stage:
    return Stage(tiny_encoded, tiny_base, share)


@pytest.fixture(scope="module")
def alone(tiny_base: Base, tiny_encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes without interruption."""
    out = tmp_path_factory.mktemp("alone") / "train"
    train(tiny_encoded, out, params=PARAMS, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    return out


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_number_of_processes_gives_the_lora_of_one_to_the_last_bit(
    processes: int, alone: Path, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    step = Loop.step

    def seen(loop: Loop, number: int) -> torch.Tensor:
        sizes.add(loop.world.size)
        return step(loop, number)

    monkeypatch.setattr(Loop, "step", seen)
    out = stage.run(tmp_path / "train", processes)
    assert sizes == {processes}
    assert all((out / name).read_bytes() == (alone / name).read_bytes() for name in MADE)


@pytest.mark.parametrize("afterwards", [1, 3])
def test_a_killed_process_ends_the_stage_with_a_sentence_and_another_number_goes_on(
    afterwards: int, alone: Path, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    out, step = tmp_path / "train", Loop.step

    def fatal(loop: Loop, number: int) -> torch.Tensor:
        if (loop.world.rank, number) == (1, KILL_AT):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "step", fatal)
        with pytest.raises(InputError, match=r"was killed \(SIGKILL\).*memory is full; run it again"):
            stage.run(out, 2)
    assert not out.exists()
    assert children() <= before
    stage.run(out, afterwards)
    assert json.loads((out / "metrics.json").read_text())["resumed_after"] == 2
    assert all((out / name).read_bytes() == (alone / name).read_bytes() for name in MADE)


def test_an_error_in_another_process_is_raised_in_the_leading_one(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Loop.step

    def faulty(loop: Loop, number: int) -> torch.Tensor:
        if loop.world.rank == 1:
            raise ZeroDivisionError("a fault of ours")
        return step(loop, number)

    monkeypatch.setattr(Loop, "step", faulty)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of ours"):
        stage.run(tmp_path / "train", 2)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_training_that_is_stopped_or_killed(
    how: signal.Signals, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(batch_size=4, micro_batch_size=1, steps=100_000, checkpoint_every=1)
    out = tmp_path / "train"
    with stage_process(tiny_encoded, out, tiny_base, params, environment={"ZIMAGE_PROCESSES": "3"}) as process:
        deadline = time.monotonic() + 300
        while not list((aside_of(out) / "resume").glob("step-*.safetensors")):
            assert process.exitcode is None and time.monotonic() < deadline
            time.sleep(0.01)
        others = psutil.Process(process.pid).children()
        assert len(others) == 2
        psutil.Process(process.pid).send_signal(how)
        process.join(300)
        gone, alive = psutil.wait_procs(others, timeout=60)
        assert (len(gone), alive) == (2, [])
    assert not out.exists()
    if how != signal.SIGKILL:
        errors = (tmp_path / "stderr.txt").read_text()
        assert process.exitcode == 2
        assert "Stopped; nothing half done was left" in errors and "Traceback" not in errors
