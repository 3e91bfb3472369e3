"""Run the parts of a stack as child processes that never outlive it, and end them with all that they started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil

from tasks.settings import PROJECT, inherited
from zimage.core.folder import make_private

STOPS_WITHIN_S = 20.0
LOOK_EVERY_S = 0.5
MARK = "ZIMAGE_PART_OF"  # environment variable that names the part of a stack that a process belongs to
# The first word of a command selects the program; any other command is one of Prefect's.
PARENT = "import sys; from zimage.core.process import die_with_parent; die_with_parent(int(sys.argv.pop(1)))"
PREFECT = f"{PARENT}; from prefect.cli import app; app()"
PROGRAMS = {
    "server": f"{PARENT}; from flows.server.__main__ import main; main(sys.argv[2:])",
    "watch": f"{PARENT}; from flows.server.watch import main; main()",
    "run": f"{PARENT}; import os; os.execvp(sys.argv[2], sys.argv[2:])",
}


@contextmanager
def started(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command with its output appended to `log`; it ends with the block, as does all that it started.

    It has a session of its own: a terminal sends Ctrl-C to everybody at once, and here the order matters.

    Args:
        command: `server` with options of `python -m flows.server`, `watch`, `run` with a program and its arguments, or
            a command of Prefect's.
        log: The file.
        environment: Added to the environment of this process.
    """
    make_private(log.parent)
    with log.open("ab") as file:
        process = subprocess.Popen(
            child(PROGRAMS.get(command[0], PREFECT), command),
            cwd=PROJECT,
            env={**inherited(), **(environment or {}), MARK: uuid4().hex},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process.pid)
        process.wait()


def child(code: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs code with the words of `command` as arguments, as a child of this process."""
    return [sys.executable, "-c", code, str(os.getpid()), *command]


def end(*pids: int) -> None:
    """End processes and all that they have started: first asked, so that they tidy up, then killed.

    Whoever is about to end may start something all the same, and be gone before that: it is found by what it inherited.
    """
    marks = {mark for pid in pids if (mark := _mark_of(pid))}
    asked: set[psutil.Process] = set()
    until = time.monotonic() + STOPS_WITHIN_S
    while (alive := _alive(pids, marks)) and time.monotonic() < until:
        for process in alive - asked:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        asked |= alive
        psutil.wait_procs(alive, timeout=LOOK_EVERY_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _alive(pids: Sequence[int], marks: set[str]) -> set[psutil.Process]:
    """Return these processes, all below them, and all that bear these marks, as far as they live."""
    found: set[psutil.Process] = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(pid)
            found |= {top, *top.children(recursive=True)}
    if marks:
        found |= {each for each in psutil.process_iter() if _mark_of(each.pid) in marks}
    return {each for each in found if _lives(each)}


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def _mark_of(pid: int) -> str:
    with contextlib.suppress(psutil.Error, OSError):
        return str(psutil.Process(pid).environ().get(MARK, ""))
    return ""
