"""Children that do not outlive their parents, so that no killed run leaves work on the GPU behind."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """Ask Linux to send this process SIGTERM when the thread that started it ends; elsewhere nothing is asked.

    The setting survives `exec` and is not inherited by children, so each process of a chain asks for itself.

    Args:
        parent: The process that started this one, if it told: it may have ended before this one came to ask.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid() if parent is None else parent
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)


def adopt_orphans() -> None:
    """Ask Linux to make this process the parent of all below it whose own parent ends; elsewhere nothing is asked."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
