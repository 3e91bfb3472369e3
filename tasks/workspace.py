"""Asking DVC, the only caller of it. Always as a child process, so that a stage's memory goes when the stage ends."""

import contextlib
import fcntl
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import psutil

from tasks.settings import PROJECT
from zimage.errors import InputError
from zimage.folder import write_whole
from zimage.parent import die_with_parent

# DVC is started through this line so that it, and all below it, ends when this process is killed.
DVC = "from tasks.workspace import bind; bind(); from dvc.cli import main; raise SystemExit(main())"
QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
# Copies or reflinks, never hard links: a process of root could write through those into the cache.
CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    type = "reflink,copy"
"""
LOOK_EVERY_S = 0.5
STOPS_WITHIN_S = 10.0
SHARED = ["--pull", "--allow-missing"]
UP_TO_DATE = "Data and pipelines are up to date."
FULL = "No space left on device"
NOT_FETCHED = r"Checkout failed for|failed to download|object \S+ is corrupted"  # of DVC 3.67


class Outcome(StrEnum):
    """What DVC did to bring a stage up to date."""

    RAN = "ran"
    RESTORED = "restored"
    UNCHANGED = "unchanged"


class StageFailedError(RuntimeError):
    """A stage or DVC failed for a reason that is not the user's; the log above has the traceback."""


class FetchFailedError(StageFailedError):
    """DVC did not get something whole from the remote."""


def make(folder: Path, project: Path) -> None:
    """Make `folder` a workspace, or bring one up to date: a DVC repository of its own with the project's stages."""
    (folder / "data" / "overrides").mkdir(parents=True, exist_ok=True)
    (folder / ".dvc").mkdir(parents=True, exist_ok=True)
    write_changed(folder / ".dvc" / "config", CONFIG)
    shutil.copyfile(project / ".dvcignore", folder / ".dvcignore")
    for name in ("dvc.yaml", "code.yaml"):
        write_changed(folder / name, (project / name).read_text(encoding="utf-8"))


def write_changed(path: Path, text: str) -> None:
    """Write a file, whole, unless it holds `text` already."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text.encode())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a workspace for the length of the block; the hold ends with the process, however that ends.

    Raises:
        InputError: another process holds it.
    """
    path = folder / ".dvc" / "tmp" / "held"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise InputError(f"{folder} is being worked on by {holder}; wait for it to end, or stop it.") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def is_up_to_date(folder: Path, stage: str, *, shared: bool = False) -> bool:
    """Return whether DVC would leave `stage` and all it builds on alone; only looks.

    With `shared`, what is absent here counts as what the lock says of it.
    """
    lines: list[str] = []
    try:
        _dvc(folder, ["repro", "--dry", *(["--allow-missing"] if shared else []), stage], on_line=lines.append)
    except StageFailedError:  # what is missing now may come from a stage above; the run itself will tell
        return False
    return all(line.endswith("didn't change, skipping") or line == UP_TO_DATE for line in lines)


def bring_up_to_date(
    folder: Path,
    stage: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
    shared: bool = False,
) -> Outcome:
    """Run `stage`, and what it builds on, as far as DVC finds it stale; return what became of `stage` itself.

    Args:
        folder: The workspace.
        stage: A stage of its dvc.yaml.
        on_line: Gets each line that DVC and the stage print, as it comes.
        on_progress: Gets the stage's latest progress, at most twice a second: name, done, total and numbers.
        shared: Other machines share the work: fetch what the stage reads, and leave out what nobody needs here. Never
            with `--single-item`: DVC would compare with nothing upstream, and restored an old result without a word.

    Raises:
        InputError: the stage refused its input, or the disk is full; the stage's own sentence.
        StageFailedError: anything else, with DVC's last error line.
    """
    lines: list[str] = []

    def keep(line: str) -> None:
        lines.append(line)
        on_line(line)

    _dvc(folder, ["repro", *(SHARED if shared else []), stage], on_line=keep, on_progress=on_progress)
    return outcome(lines, stage)


def connect(folder: Path, remote: str, endpoint: str) -> None:
    """Let DVC share the workspace through `remote`, a folder or `s3://bucket/prefix`; it hashes all that arrives."""
    url = f"    url = {remote}\n    verify = true\n" + (
        f"    endpointurl = {endpoint}\n" if endpoint and "://" in remote else ""
    )
    write_changed(folder / ".dvc" / "config.local", f"[core]\n    remote = store\n['remote \"store\"']\n{url}")


def track(folder: Path, inputs: list[str]) -> None:
    """Write what `inputs` (paths in the workspace) hold into `<input>.dvc` and the cache; untouched where it is so."""
    _dvc(folder, ["add", *inputs], on_line=lambda _: None)


def is_tracked(path: Path) -> bool:
    """Return whether DVC can fetch an input that may be absent here."""
    return path.with_name(f"{path.name}.dvc").is_file()


def push(folder: Path, targets: list[str], *, on_line: Callable[[str], None]) -> None:
    """Send the results of stages, and tracked inputs, to the remote, with the record of what was run to get them."""
    _dvc(folder, ["push", "--run-cache", *targets], on_line=on_line)


def pull(folder: Path, targets: list[str], *, on_line: Callable[[str], None]) -> None:
    """Fetch the results of stages, and tracked inputs, as the lock and the `.dvc` files name them."""
    _dvc(folder, ["pull", *targets], on_line=on_line)


def outcome(lines: list[str], stage: str) -> Outcome:
    """Return what `dvc repro` says of `stage`; its lines about the stages above are of no concern."""
    if f"Running stage '{stage}':" in lines:
        return Outcome.RAN
    if any(line.startswith(f"Stage '{stage}' is cached") for line in lines):
        return Outcome.RESTORED
    return Outcome.UNCHANGED


def _dvc(
    folder: Path,
    arguments: list[str],
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        progress = Path(temporary) / "progress.jsonl"
        follower = _Follower(progress, on_progress)
        errors: list[str] = []
        with subprocess.Popen(
            [sys.executable, "-c", DVC, *arguments],
            cwd=folder,
            env=_environment(progress),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:  # in this process group: cancelling signals the group
            try:
                for line in _lines(child, follower.look):
                    on_line(line)
                    if line.startswith("ERROR: "):
                        errors.append(line.removeprefix("ERROR: "))
            except BaseException:
                _end(child)
                raise
        follower.look()
        if child.returncode != 0:
            raise _failure(follower.error, errors, folder)


def _environment(progress: Path) -> dict[str, str]:
    """Return the environment of DVC: this interpreter as `python`, this project's code, and no telemetry."""
    beside = str(Path(sys.executable).parent)
    return {
        **os.environ,
        **QUIET,
        "PATH": os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "SHELL": "/bin/sh",  # the same everywhere; it may stand between DVC and the stage, see `bind`
        "ZIMAGE_PROGRESS": str(progress),
    }


def _lines(child: subprocess.Popen[str], look: Callable[[], None]) -> Iterator[str]:
    """Yield the child's lines as they come, and look after its progress in between."""
    assert child.stdout is not None
    waiting: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(child.stdout, waiting), daemon=True).start()
    while True:
        try:
            line = waiting.get(timeout=LOOK_EVERY_S)
        except queue.Empty:
            look()
            continue
        if line is None:
            return
        yield line


def _pump(source: IO[str], waiting: "queue.Queue[str | None]") -> None:
    for line in source:
        if line.strip():
            waiting.put(line.rstrip())
    waiting.put(None)


def _end(child: "subprocess.Popen[str]") -> None:
    """End DVC and all it started: first asked, so that they tidy up, then killed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(child.pid)
        processes = [*top.children(recursive=True), top]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOPS_WITHIN_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    child.wait()


def _failure(sentence: str | None, errors: list[str], folder: Path) -> Exception:
    said = errors[-1] if errors else "DVC ended without a word"
    if sentence is not None:
        return InputError(sentence)
    if FULL in said:
        return InputError(f"The disk of {folder} is full; free some space and run again: what was finished is kept.")
    if re.search(r"Unable to acquire lock", said):
        return InputError(f"{folder} is being worked on by another `dvc`; wait for it to end, or stop it.")
    if re.search(NOT_FETCHED, said):
        return FetchFailedError(said)
    return StageFailedError(said)


class _Follower:
    """Reads the JSON lines that a stage appends to its progress file."""

    def __init__(self, path: Path, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self.error: str | None = None
        self._path, self._on_progress, self._read = path, on_progress, 0

    def look(self) -> None:
        """Pass on the newest whole line since the last look, and keep the sentence of a failure."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        events = [json.loads(line) for line in whole.splitlines()]
        self.error = next((event["error"] for event in events if "error" in event), self.error)
        counted = [event for event in events if "done" in event]
        if counted:
            self._on_progress(counted[-1])


def bind() -> None:
    """Let this process end when its parent does, and take all it started with it.

    A stage asks for the same by itself, but a shell may stand between the two: dash does not become the one command it
    is given, as bash does.
    """
    signal.signal(signal.SIGTERM, _end_below)
    die_with_parent()


def _end_below(*_: object) -> None:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    raise SystemExit(128 + signal.SIGTERM)  # DVC lets go of its locks on the way out
