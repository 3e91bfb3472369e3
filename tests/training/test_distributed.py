"""Two processes on gloo make the LoRA that one makes, within float error, and go on where they were killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.crops import SUBJECT
from tests.training.pair import run_pair
from tests.training.recipe import MACHINE, recipe
from zimage.core.errors import InputError
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.distributed import Launched
from zimage.training.params import TrainParams

ROOT = Path(__file__).parents[2]


PARAMS = recipe(batch_size=4, micro_batch_size=4, steps=5, dropout=0.1)  # a state is kept after every second step


@pytest.fixture(scope="module")
def two(tiny_base: Base, tiny_encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under torchrun make without interruption."""
    folder = tmp_path_factory.mktemp("two")
    _run_two(tiny_encoded, folder / "train", tiny_base, PARAMS, folder)
    return folder / "train"


def test_two_processes_give_the_lora_of_one_for_the_same_global_batch(
    two: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    alike = PARAMS.model_copy(update={"micro_batch_size": 2})  # dropout's chance belongs to samples computed together
    train(tiny_encoded, tmp_path / "one", params=alike, base=tiny_base, subject=SUBJECT, machine=MACHINE)
    one, both = (load_file(folder / "lora.safetensors") for folder in (tmp_path / "one", two))
    assert one.keys() == both.keys()
    for name in one:
        torch.testing.assert_close(both[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("killed", [{1}, {0, 1}])
def test_two_processes_of_which_any_is_killed_go_on_to_the_lora_of_two_never_interrupted(
    killed: set[int], two: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "train"
    codes = run_pair(tiny_encoded, out, PARAMS, tiny_base, killed=killed)
    assert {rank for rank, code in enumerate(codes) if code == -signal.SIGKILL} == killed
    assert 0 not in codes and not out.exists()
    assert run_pair(tiny_encoded, out, PARAMS, tiny_base) == [0, 0]
    assert json.loads((out / "metrics.json").read_text())["resumed_after"] == 2
    for name in ("lora.safetensors", "loss.csv", "checkpoints/step-000004.safetensors"):
        assert (out / name).read_bytes() == (two / name).read_bytes()


def test_two_processes_that_are_stopped_lose_no_step(
    two: Path, tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "train"
    codes = run_pair(tiny_encoded, out, PARAMS, tiny_base, stopped=True)
    assert codes[0] == -signal.SIGTERM and codes[1] != 0
    assert run_pair(tiny_encoded, out, PARAMS, tiny_base) == [0, 0]
    assert json.loads((out / "metrics.json").read_text())["resumed_after"] == 3
    assert (out / "lora.safetensors").read_bytes() == (two / "lora.safetensors").read_bytes()


def test_a_batch_is_split_without_gap_or_overlap() -> None:
    world = _launched(3)
    rows = [[], [], []]  # type: list[list[int]]
    for number, part in enumerate(world.cut(12, 3)):
        rows[number % 3] += range(part.start, part.stop)
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_batch_that_cannot_be_split_names_what_would() -> None:
    with pytest.raises(InputError, match="multiple of 3"):
        _launched(3).cut(4, 4)


def _launched(size: int) -> Launched:
    world = Launched.__new__(Launched)  # without the group that torchrun would call for
    world.size = size
    return world


def _run_two(encoded: Path, out: Path, base: Base, params: TrainParams, folder: Path) -> None:
    sections = {"train": params, "base": base, "subject": SUBJECT, "machine": MACHINE}
    (folder / "params.yaml").write_text(yaml.safe_dump({name: each.model_dump() for name, each in sections.items()}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "zimage", "train", str(encoded), str(out), "--params", str(folder / "params.yaml")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:4000] + done.stderr[-2000:]
