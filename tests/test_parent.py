import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import runs

PROJECT = Path(__file__).parent.parent
CHILD = """
import os, time
from zimage.parent import die_with_parent
die_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""
LATE = """
import os, sys, time
from zimage.parent import die_with_parent
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
print(os.getpid(), flush=True)
die_with_parent(int(sys.argv[1]))
time.sleep(600)
"""


def starts(child: str, then: str) -> list[str]:
    """The command of a process that starts a child, tells it of itself, and does something then."""
    starting = (
        f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())])"
    )
    return [sys.executable, "-c", f"{starting}; {then}"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked")
def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen(starts(CHILD, then="time.sleep(600)"), stdout=subprocess.PIPE, cwd=PROJECT) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.stdout.read()  # ends when the child's end of the pipe is closed

    assert_ends(child)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be asked")
def test_a_child_whose_parent_was_gone_before_it_could_ask_ends_if_it_was_told_which_it_was() -> None:
    said = subprocess.run(
        starts(LATE, then="os._exit(0)"), stdout=subprocess.PIPE, cwd=PROJECT, check=True, timeout=60
    ).stdout

    assert_ends(int(said))


def assert_ends(child: int) -> None:
    deadline = time.monotonic() + 10
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)
