"""Run DVC commands, always in a child process, so that a stage's memory is freed when it ends."""

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil

from tasks.settings import PROJECT, inherited
from tasks.workspace.fork_server import ENDED, Command
from zimage.core.errors import InputError

QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "1"}
LOOK_EVERY_S = 0.5
STOPS_WITHIN_S = 20.0  # a training ends the step that it is in; Prefect kills a cancelled run after 30 s
FULL = "No space left on device"
BLOCKING = re.compile(r"^  \(PID (\d+)\): (.*)$")  # of DVC 3.67, after the error that says what is blocked
NAMES = re.compile(r"(data/(?:photos|overrides)/)[^'\"\n]+")  # of a person's files: errors reach states and events
NOT_FETCHED = r"Checkout failed for|failed to download|object \S+ is corrupted"  # of DVC 3.67


class StageFailedError(RuntimeError):
    """A stage or DVC failed for a reason that is not the user's; the log above has the traceback."""


class FetchFailedError(StageFailedError):
    """DVC did not get something whole from the remote."""


@contextmanager
def preloaded() -> Iterator[None]:
    """Keep DVC loaded from one command to the next for the length of the block; it begins to load at once.

    Without it, each command waits for DVC's imports, which take longer than most of its answers.
    """
    _servers.enter()
    try:
        yield
    finally:
        _servers.leave()


def run(
    folder: Path,
    arguments: list[str],
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[dict[str, Any]], None] = lambda _: None,
) -> set[str]:
    """Run `dvc` in a folder until it ends, and return which stages ran, by their own report.

    DVC and all it started end when this process does, however that ends.

    Args:
        folder: The workspace.
        arguments: What follows `dvc`.
        on_line: Gets each line that DVC and a stage print, as it comes.
        on_progress: Gets a stage's latest progress, at most twice a second: name, done, total and numbers.

    Raises:
        InputError: a stage refused its input, or the disk is full; the stage's own sentence.
        StageFailedError: anything else, with DVC's last error line.
    """
    with tempfile.TemporaryDirectory() as temporary:
        progress = Path(temporary) / "progress.jsonl"
        follower = Follower(progress, on_progress)
        errors: list[str] = []
        blocking: re.Match[str] | None = None
        command = Command(str(folder), arguments, environment() | {"ZIMAGE_PROGRESS": str(progress)})
        with _servers.one() as server:
            for line in server.lines(command, follower.look):
                on_line(line)
                if line.startswith("ERROR: "):
                    errors.append(line.removeprefix("ERROR: "))
                blocking = BLOCKING.search(line) or blocking
            code = server.code
            if code < 0:  # DVC was killed, and could not end its stage
                server.end()
        follower.look()
        if code != 0:
            raise _failure(follower.error, errors, folder, blocking)
        return follower.ran


def environment() -> dict[str, str]:
    """Return the environment of DVC and of stages: this interpreter as `python`, our code, and no telemetry."""
    given, programs = inherited(), str(Path(sys.executable).parent)
    return {
        **given,
        **QUIET,
        "PATH": os.pathsep.join([programs, given.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), given.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "SHELL": "/bin/sh",  # the same everywhere; it may stand between DVC and the stage, see `forkserver.bind`
    }


class _Server:
    """A fork server and its output.

    Args:
        code: The exit code of the command that ended last.
    """

    def __init__(self) -> None:
        self.code = 0
        self._process = subprocess.Popen(  # in this process group: cancelling signals the group
            [sys.executable, "-m", "tasks.workspace.fork_server"],
            cwd=PROJECT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert self._process.stdout is not None
        self._said: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(self._process.stdout, self._said), daemon=True).start()

    def lines(self, command: Command, look: Callable[[], None]) -> Iterator[str]:
        """Yield what a command prints, line by line as it comes, and look after its progress in between."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; its output follows below
            self._process.stdin.write(command.line())
            self._process.stdin.flush()
        due = time.monotonic() + LOOK_EVERY_S
        while True:
            if time.monotonic() >= due:  # also where lines come faster than this
                look()
                due = time.monotonic() + LOOK_EVERY_S
            try:
                line = self._said.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                continue
            if line is None:
                self.code = self._process.wait() or 1
                return
            if line.startswith(ENDED):
                self.code = int(line.removeprefix(ENDED))
                return
            yield line

    @property
    def is_alive(self) -> bool:
        """Return whether it can run another command."""
        return self._process.poll() is None

    def close(self) -> None:
        """End it while it runs nothing."""
        self._process.kill()
        self._close_pipes()

    def end(self) -> None:
        """End it, DVC and all processes below: SIGTERM first, so that they clean up, then SIGKILL."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            processes = [*top.children(recursive=True), top]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            _, alive = psutil.wait_procs(processes, timeout=STOPS_WITHIN_S)
            for process in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._close_pipes()

    def _close_pipes(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


class _Servers:
    """Pool of idle fork servers; it is emptied when the last `preloaded` block ends."""

    def __init__(self) -> None:
        self._lock, self._wanted = threading.Lock(), 0
        self._idle: list[_Server] = []

    def enter(self) -> None:
        """Start one, unless one is idle, and keep idle ones from now on."""
        with self._lock:
            self._wanted += 1
            if not self._idle:
                self._idle.append(_Server())

    def leave(self) -> None:
        """End the idle ones, unless another `preloaded` block is open."""
        with self._lock:
            self._wanted -= 1
            unwanted = [] if self._wanted else self._idle
            self._idle = self._idle if self._wanted else []
        for server in unwanted:
            server.close()

    @contextmanager
    def one(self) -> Iterator[_Server]:
        """Yield one for a command; after an exception it ends with all that it started."""
        with self._lock:
            server = self._idle.pop() if self._idle else None
        if server is not None and not server.is_alive:
            server.close()
            server = None
        server = server or _Server()
        try:
            yield server
        except BaseException:
            server.end()
            raise
        with self._lock:
            is_wanted = self._wanted > 0 and server.is_alive
            if is_wanted:
                self._idle.append(server)
        if not is_wanted:
            server.close()


_servers = _Servers()


def _pump(source: IO[str], said: "queue.Queue[str | None]") -> None:
    with source:
        for line in source:
            if line.strip():
                said.put(line.rstrip())
    said.put(None)


def _failure(refusal: InputError | None, errors: list[str], folder: Path, blocking: re.Match[str] | None) -> Exception:
    said = NAMES.sub(r"\1…", errors[-1]) if errors else "DVC printed no error"
    if refusal is not None:
        return refusal
    if FULL in said:
        return InputError(f"The disk of {folder} is full; free some space and run again: what was finished is kept.")
    if blocking is not None and said.endswith("is being blocked by:"):
        holder = f"process {blocking[1]} (`{blocking[2]}`)"
        return InputError(f"{folder} is being worked on by {holder}; wait for it to end, or stop it.")
    if re.search(r"Unable to acquire lock", said):
        return InputError(f"{folder} is being worked on by another `dvc`; wait for it to end, or stop it.")
    if re.search(NOT_FETCHED, said):
        return FetchFailedError(said)
    return StageFailedError(said)


class Follower:
    """Reads the JSON lines that a stage appends to its progress file: that it runs, its progress, why it refused.

    Args:
        path: The file, which need not be there yet.
        on_progress: Gets the latest progress: name, done, total and numbers.
    """

    def __init__(self, path: Path, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self.error: InputError | None = None
        self.ran: set[str] = set()
        self._path, self._on_progress, self._read = path, on_progress, 0

    def look(self) -> None:
        """Read the whole lines since the last look, and pass on the latest progress among them."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        events = [json.loads(line) for line in whole.splitlines()]
        self.ran |= {event["stage"] for event in events if "stage" in event}
        failed = next((event for event in events if "error" in event), None)
        if failed is not None:
            self.error = InputError(failed["error"], names=failed["names"])
        counted = [event for event in events if "done" in event]
        if counted:
            self._on_progress(counted[-1])
