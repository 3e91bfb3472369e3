"""Processes that end with their parent, collect garbage rarely, and stop quietly when nobody reads their output."""

import atexit
import gc
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil  # loaded by the functions that use it: `zimage --help` does not

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LOOK_EVERY_S = 0.5
SHELLS = {"sh", "ash", "bash", "busybox", "dash", "fish", "ksh", "mksh", "zsh"}


def die_with_parent(parent: int | None = None) -> None:
    """Have Linux send this process SIGTERM when the thread that started it ends; no effect elsewhere.

    The setting survives `exec` and is not inherited by children, so each process of a chain asks for itself.

    Args:
        parent: The process that started this one, if known: it may have ended before this call.
    """
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)


def end_with_job(*, only_starter: bool, started_by_dvc: bool) -> None:
    """Send this process SIGTERM when an ancestor of it in its process group ends, however that ends.

    The process group is what a shell calls a job: `make`, `dvc repro` and the shell through which DVC starts a stage,
    or all that a CI step runs. DVC passes no signal on, and a shell outlives the DVC that started it (dash does not
    replace itself by its last command), so watching the parent alone is not enough.

    Args:
        only_starter: Do not look beyond the first ancestor that is no shell. For a process whose job goes on without
            its beginning, as below `nohup`, which ignores SIGHUP; that is found out here.
        started_by_dvc: DVC has started this process. Where it is found no more, it ended meanwhile.
    """
    only_starter = only_starter or signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    ancestors = _ancestors_in_group(only_starter=only_starter)
    leads_job = os.getpgrp() == os.getpid()  # below torchrun, which makes a group of each process
    if started_by_dvc and not leads_job and all(map(_is_shell, ancestors)):
        os.kill(os.getpid(), signal.SIGTERM)
    threading.Thread(target=_end_with, args=(ancestors,), daemon=True).start()


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs (Linux only; no effect elsewhere)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def _ancestors_in_group(*, only_starter: bool) -> "list[psutil.Process]":
    """Return the ancestors of this process in its process group, the nearest first."""
    import psutil

    found: list[psutil.Process] = []
    parent = psutil.Process().parent()
    while parent is not None and _group_of(parent) == os.getpgrp():
        found.append(parent)
        if only_starter and not _is_shell(parent):
            break
        try:
            parent = parent.parent()
        except psutil.NoSuchProcess:  # it ended just now, as the thread will see at once
            break
    return found


def _group_of(process: "psutil.Process") -> int | None:
    try:
        return os.getpgid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_shell(process: "psutil.Process") -> bool:
    import psutil

    try:
        return process.name().lstrip("-") in SHELLS
    except psutil.NoSuchProcess:
        return False


def _end_with(processes: "list[psutil.Process]") -> None:
    while all(map(_runs, processes)):
        time.sleep(LOOK_EVERY_S)
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGTERM)  # to the main thread, so that it wakes up where it waits


def _runs(process: "psutil.Process") -> bool:
    """Return whether a process is still running; a zombie is not."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# Thresholds of the garbage collector: new objects before the youngest generation is searched, and searches before the
# older ones are. Python's own 700 and 10 search hundreds of times through a million objects of torch, diffusers or
# Prefect while those load, and find nothing.
THRESHOLDS = (20_000, 20, 20)


def collect_rarely() -> None:
    """Collect garbage rarely from now on, and not once more when the process ends.

    Loading the libraries of a stage takes a seventh less time. Python's last collections search everything that is
    alive, 1.3 s after torch, diffusers, transformers and peft were loaded, and free what the end of the process frees.
    Objects in cycles that are alive then get no `__del__`.
    """
    gc.set_threshold(*THRESHOLDS)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


@contextmanager
def without_collections() -> Iterator[None]:
    """Collect no garbage within the block, which makes many long-lived objects and no cycles.

    Each look goes through all of them again: of a LoRA file's 100,000 tensors, half of the time of reading the header.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


UNREAD = 141  # exit code that a shell reports for a program that SIGPIPE ended


def quiet_if_unread(run: Callable[[], int]) -> int:
    """Return the exit code of `run`; where the reader of its output ends first, it ends without a message."""
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes there when Python ends
        return UNREAD
    return code


def _is_unread() -> bool:
    """Return whether standard output is a pipe without a reader; another pipe may have broken."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
