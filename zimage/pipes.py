"""What a program does whose output nobody reads any more, as in `zimage inspect FILE | head -1`."""

import os
import select
import sys
from collections.abc import Callable

UNREAD = 141  # as a shell tells of a program that SIGPIPE ended


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
    """Return whether standard output is a pipe that nobody reads; another pipe may have broken."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
