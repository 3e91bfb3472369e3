"""The trainer as on a GPU, on one without contents (tests/fake_gpu), in a process that has it before it has torch.

Every tensor knows its device there, so that mixing the machine's with the GPU's raises, and so does whatever would make
the host wait for a number of the device. What comes out is not computed, and no kernel runs.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zimage.model.base import Base
from zimage.training.memory import WORKSPACE_GB

PROJECT = Path(__file__).parent.parent.parent
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="NOT TESTED: the GPU without contents needs g++ or clang++"
)


def on_a_gpu(*command: str) -> list[str]:
    """Run a program of tests/fake_gpu and return its lines."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@needs_compiler
def test_all_of_a_step_is_on_the_gpu_and_nothing_in_it_waits(tiny_base: Base, tiny_encoded: Path) -> None:
    said = on_a_gpu("tests.fake_gpu.loop", tiny_base.model, str(tiny_encoded))

    assert [line.split()[:3] for line in said] == [
        ["none", "none", "0"],
        ["none", "full", "2"],
        ["int8", "full", "0"],
        ["fp8", "none", "0"],
        ["fp8", "full", "2"],
        ["nf4", "full", "2"],
    ]


@needs_compiler
def test_the_steps_that_are_timed_on_a_gpu_are_all_on_it() -> None:
    assert on_a_gpu("tests.fake_gpu.benchmark") == [
        *("bfloat16", "full checkpointing", "int8", "fp8", "nf4", "nf4, 2 blocks away")
    ]


@needs_compiler
def test_a_step_of_the_released_model_takes_what_is_computed_and_at_most_6_gb() -> None:
    row = on_a_gpu("tests.fake_gpu.memory", "8gb", "--px", "1024")[-1]
    counted, computed = (float(cell) for cell in row.split("|")[5:7])

    assert computed < counted < computed + WORKSPACE_GB  # in 4 bits, weights that are written out are part of it
    assert counted < 6.0
