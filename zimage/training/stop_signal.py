"""Delay SIGTERM and Ctrl-C to the end of a step, so that no finished step is lost.

Signals reach Python between any two lines, also between the optimiser's step and the moving average that follows it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ENDS_WITHIN_S = 60  # of a stop, where other processes may have left this one waiting for them


class Stop:
    """A request to stop this process."""

    def __init__(self) -> None:
        self.asked = False

    def raise_if_asked(self) -> None:
        """Pass unless a stop was asked for.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def deferred_stop(*, together: bool) -> Iterator[Stop]:
    """Record SIGINT and SIGTERM during the block instead of acting on them; yield the record.

    Outside the main thread, where no signal is handled, nothing is deferred.

    Args:
        together: The process waits for others in each step. They may have stopped before it, so it is ended by the
            kernel some time after a stop, whatever it waits for then.
    """
    stop, came = Stop(), []

    def note(number: int, _: object) -> None:
        stop.asked = True
        came.append(number)
        if together:
            signal.alarm(ENDS_WITHIN_S)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
