"""What became of processes that were started, stopped or killed."""

import psutil


def runs(pid: int) -> bool:
    """Return whether a process does anything: one that ended may wait long for an init process that collects it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
