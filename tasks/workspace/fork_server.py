"""Fork server that has imported DVC, so that a DVC command starts in a third of the time.

`python -m tasks.workspace.fork_server` reads a `Command` per line of its stdin and runs them one after the other. What
they print goes to its stdout; a line `ENDED` with the exit code follows. It ends with its stdin, and what runs ends
with it.

Why no plain `subprocess` of `python -m dvc`: each command then imports DVC again. `dvc repro --dry` of six stages that
are up to date took 0.72 s of CPU time so and 0.16 s here (median of 8, side by side), and each phase asks several
times. `multiprocessing`'s fork server would import the caller's main module, Prefect's engine, into each child.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from zimage.core.process import adopt_orphans, collect_rarely, die_with_parent

ENDED = "\0ended "
# What `dvc repro` imports on its way, found by comparing `sys.modules` before and after.
LOADED = (
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.cachemgr",
    "dvc.repo.artifacts",
    "dvc.repo.graph",
    "dvc.repo.index",
    "dvc.repo.metrics",
    "dvc.repo.params",
    "dvc.repo.plots",
    "dvc.repo.reproduce",
    "dvc.rwlock",
    "dvc.scm",
    "dvc.stage.cache",
    "dvc.stage.run",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.db.local",
    "dvc_data.index",
    "networkx",
    "scmrepo.git",
)


@dataclass(frozen=True)
class Command:
    """One `dvc …`.

    Args:
        folder: In which it runs.
        arguments: What follows `dvc`.
        environment: All of it.
    """

    folder: str
    arguments: list[str]
    environment: dict[str, str]

    def line(self) -> str:
        """Return it as a server reads it."""
        return json.dumps(asdict(self)) + "\n"


def serve() -> None:
    """Run commands until stdin ends."""
    collect_rarely()
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()  # so that no child copies pages of it by looking for garbage there
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who waits for the command decides
    signal.signal(signal.SIGTERM, end_below)
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    adopt_orphans()  # so that a stage whose DVC was killed is below this one, and ends with it
    for line in iter(sys.stdin.buffer.readline, b""):
        child = os.fork()
        if child == 0:
            _run(Command(**json.loads(line)))
        code = _ended(child, read)
        sys.stdout.write(f"\n{ENDED}{code}\n")
        sys.stdout.flush()


def _ended(child: int, woken: int) -> int:
    """Return the exit code of a child once it has one; end all, if stdin ends before: nobody waits for it any more."""
    with selectors.DefaultSelector() as selector:
        selector.register(woken, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if any(key.fileobj is sys.stdin for key, _ in selector.select()):
                end_below()
            with contextlib.suppress(BlockingIOError):
                os.read(woken, 4096)


def _run(command: Command) -> NoReturn:
    """Become DVC."""
    from dvc.cli import main

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bind()
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - its descriptor is wanted
        os.dup2(nothing.fileno(), sys.stdin.fileno())
    os.environ.clear()
    os.environ.update(command.environment)
    os.chdir(command.folder)
    sys.argv = ["dvc", *command.arguments]
    sys.exit(main(command.arguments))


def is_dvc(command: list[str]) -> bool:
    """Return whether a process with this command line may be DVC: called by itself, or forked by a server."""
    return any(word == "tasks.workspace.fork_server" or Path(word).name == "dvc" for word in command)


def bind() -> None:
    """Let this process end when its parent does, and take all it started with it.

    A stage asks for the same by itself, but a shell may stand between the two: dash does not become the one command it
    is given, as bash does.
    """
    signal.signal(signal.SIGTERM, end_below)
    die_with_parent()


def end_below(*_: object) -> None:
    """Ask all processes below this one to end, and end; DVC lets go of its locks on the way out.

    Once: a second signal, of whoever asked the whole tree, would leave the file of those locks half written.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    serve()
    os._exit(0)  # it has nothing to tidy up
