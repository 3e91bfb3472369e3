"""What became of processes that were started, stopped or killed."""

import psutil


def runs(pid: int) -> bool:
    """Return whether a process does anything: one that ended may wait long for an init process that collects it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def children() -> set[psutil.Process]:
    """Return the processes that this one has started and that have not ended; other tests may have left some."""
    return set(psutil.Process().children())
