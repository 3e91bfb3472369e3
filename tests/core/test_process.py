"""None"""

import gc
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.processes import runs
from zimage.core.process import LOOK_EVERY_S, collect_rarely, without_collections

PYTHON_S = (700, 10, 10)


@pytest.fixture
def as_python_has_it() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*PYTHON_S)
    yield
    gc.set_threshold(*before)


def test_garbage_is_looked_for_less_often_and_still_found(as_python_has_it: None) -> None:
    collect_rarely()

    assert gc.isenabled()
    assert all(now > was for now, was in zip(gc.get_threshold(), PYTHON_S, strict=True))


@pytest.mark.parametrize(("call", "searched"), [("", "searched\n"), ("collect_rarely()", "")])
def test_a_process_ends_without_a_last_search(call: str, searched: str) -> None:
    program = f"""
from zimage.core.process import collect_rarely
class InACycle:
    def __init__(self): self.itself = self
    def __del__(self): print("searched")
alive = InACycle()
{call}
print("end", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "end\n" + searched
    assert not done.stderr


def test_nothing_is_looked_for_within_a_block_and_afterwards_as_before() -> None:
    with pytest.raises(ValueError, match="within"), without_collections():
        assert not gc.isenabled()
        raise ValueError("within")
    assert gc.isenabled()

    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


PROJECT = Path(__file__).parents[3]
DVC = str(Path(sys.executable).with_name("dvc"))
CHILD = """
import os, time
from zimage.core.process import die_with_parent
die_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""
LATE = """
import os, sys, time
from zimage.core.process import die_with_parent
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


WRITES = """
import os, pathlib, sys, time
import zimage.cli.main, zimage.demo

def write(path, content):
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(600)

zimage.demo._write = write
"""
STAGE = (
    WRITES
    + """
sys.exit(zimage.cli.main.main(["demo", "photos", "--seed", "1"]))
"""
)
LATE_STAGE = (
    WRITES
    + """
import psutil
pathlib.Path("pid").write_text(str(os.getpid()))
while "repro" in sum((each.cmdline() for each in psutil.Process().parents()), []):
    time.sleep(0.01)
"""
    + STAGE
)


def as_repository(folder: Path) -> None:
    """What `dvc init --no-scm` makes."""
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = True\n")


@contextmanager
def repro(
    folder: Path, code: str, *before: str, shell: str = "/bin/sh"
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Real `dvc repro` of a stage that waits, as a CI step starts it; yields the step and the stage's process."""
    as_repository(folder)
    (folder / "stage.py").write_text(code)
    (folder / "dvc.yaml").write_text(f"stages:\n  wait: {{cmd: '{sys.executable} stage.py', always_changed: true}}\n")
    environment = {**os.environ, "SHELL": shell, "PYTHONPATH": str(PROJECT), "DVC_NO_ANALYTICS": "1"}
    step = ["/bin/sh", "-c", " ".join([*before, DVC, "repro; echo ended"])]
    with subprocess.Popen(step, cwd=folder, env=environment, start_new_session=True) as started:
        try:
            pid = folder / "pid"
            deadline = time.monotonic() + 120
            while not (pid.is_file() and pid.read_text()) and time.monotonic() < deadline:
                time.sleep(0.02)
            yield started, int(pid.read_text())
        finally:
            os.killpg(started.pid, signal.SIGKILL)


def dvc_of(step: subprocess.Popen[bytes]) -> int:
    (dvc,) = (each for each in psutil.Process(step.pid).children() if "repro" in each.cmdline())
    return int(dvc.pid)


@pytest.mark.parametrize(("how", "shell"), [(signal.SIGTERM, "/bin/sh"), (signal.SIGKILL, "/bin/bash")])
def test_a_stage_ends_when_the_dvc_that_started_it_through_a_shell_is_ended(
    tmp_path: Path, how: signal.Signals, shell: str
) -> None:
    with repro(tmp_path, STAGE, shell=shell) as (step, stage):
        assert stage in [each.pid for each in psutil.Process(dvc_of(step)).children(recursive=True)]
        os.kill(dvc_of(step), how)

        assert_ends(stage)
    assert not (tmp_path / ".photos.part").exists()  # it tidied up


def test_a_stage_ends_when_the_step_that_called_dvc_is_killed(tmp_path: Path) -> None:
    with repro(tmp_path, STAGE) as (step, stage):
        step.kill()

        assert_ends(stage)


def test_a_stage_that_comes_up_after_its_dvc_was_killed_ends(tmp_path: Path) -> None:
    with repro(tmp_path, LATE_STAGE) as (step, stage):
        os.kill(dvc_of(step), signal.SIGKILL)

        assert_ends(stage)


def test_below_nohup_a_stage_goes_on_without_the_step_and_ends_with_dvc(tmp_path: Path) -> None:
    with repro(tmp_path, STAGE, "nohup") as (step, stage):
        dvc = dvc_of(step)
        step.kill()
        step.wait()
        time.sleep(3 * LOOK_EVERY_S)
        assert runs(stage)
        os.kill(dvc, signal.SIGTERM)

        assert_ends(stage)


def test_a_stage_is_not_run_beside_itself(tmp_path: Path) -> None:
    """Here the first one was started by hand, so that DVC's own locks say nothing of it."""
    (tmp_path / "stage.py").write_text(STAGE)
    with subprocess.Popen(
        [sys.executable, "stage.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}
    ) as first:
        try:
            while not (tmp_path / "pid").exists():
                assert first.poll() is None
                time.sleep(0.02)
            (tmp_path / "pid").unlink()
            as_repository(tmp_path)
            command = f"{sys.executable} -m zimage demo photos --seed 1"
            (tmp_path / "dvc.yaml").write_text(f"stages:\n  photos: {{cmd: '{command}', outs: [photos]}}\n")
            environment = {**os.environ, "PYTHONPATH": str(PROJECT), "DVC_NO_ANALYTICS": "1"}
            second = subprocess.run(
                [DVC, "repro"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, check=False
            )
        finally:
            first.kill()

    assert f"zimage: photos is being written by process {first.pid} on {platform.node()}; wait for it" in second.stderr
    assert second.returncode != 0
    assert not (tmp_path / "photos").exists()


def assert_ends(child: int) -> None:
    deadline = time.monotonic() + 10
    while runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child)
