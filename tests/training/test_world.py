"""Two processes on gloo make the LoRA that one makes, within float error."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.crops import SUBJECT
from tests.training.recipe import recipe
from zimage.errors import InputError
from zimage.model.base import Base
from zimage.stages.train import train
from zimage.training.params import TrainParams
from zimage.training.world import World

ROOT = Path(__file__).parents[2]


def test_two_processes_give_the_lora_of_one_for_the_same_global_batch(
    tiny_base: Base, tiny_encoded: Path, tmp_path: Path
) -> None:
    params = recipe(batch=4, at_once=4, steps=4)
    train(tiny_encoded, tmp_path / "one", params=params, base=tiny_base, subject=SUBJECT)
    _run_two(tiny_encoded, tmp_path / "two", tiny_base, params, tmp_path)
    one, two = (load_file(tmp_path / name / "lora.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)


def test_a_batch_is_split_without_gap_or_overlap() -> None:
    world = World()
    rows = []
    for world.rank in range(3):
        world.size = 3
        rows += [row for part in world.rows(12, 3) for row in range(part.start, part.stop)]
    assert rows == list(range(12))


def test_a_batch_that_cannot_be_split_names_what_would() -> None:
    world = World()
    world.size = 3
    with pytest.raises(InputError, match="multiple of 3"):
        world.rows(4, 4)


def _run_two(encoded: Path, out: Path, base: Base, params: TrainParams, folder: Path) -> None:
    sections = {"train": params.model_dump(), "base": base.model_dump(), "subject": SUBJECT.model_dump()}
    (folder / "params.yaml").write_text(yaml.safe_dump(sections))
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
    assert done.returncode == 0, done.stderr[-2000:]
