"""Use a CPU's cores by processes of one thread each, forked from the one that has loaded the model.

Why processes: the threads of torch's products spin while they wait for each other at the end of each, so where
something else runs on the machine they fall to a fraction of their speed (measured: see infra/benchmarks.md). Why
forked ones: a base model is opened once and its weights lie in memory once. Why not multiprocessing's pools: what they
call and what it is called with is pickled, and a worker that is killed leaves them waiting or without a word.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

from zimage.core.errors import InputError
from zimage.core.process import die_with_parent
from zimage.core.progress import be_silent

T = TypeVar("T")
R = TypeVar("R")

_limit = 1


def use_processes(count: int) -> None:
    """Set how many processes share the work of a stage from now on; the command line calls this once.

    It changes no result: how work is cut does not depend on it.
    """
    global _limit  # noqa: PLW0603 - a fact of the machine, for the one stage that a process runs
    _limit = count if sys.platform == "linux" else 1  # elsewhere fork is unsafe or missing


def limit() -> int:
    """Return how many processes may share work on a CPU."""
    return _limit


@dataclass(frozen=True)
class _Failed:
    error: Exception


class Forked:
    """Copies of this process that work until the context ends; they end with it, and with this process.

    Args:
        count: How many.
        work: Called in each with its number, from 0 on, and its end of a connection to this process.
    """

    def __init__(self, count: int, work: Callable[[int, Connection], None]) -> None:
        self._count, self._work = count, work
        self._processes: dict[Connection, ForkProcess] = {}

    def __enter__(self) -> "Forked":
        context = get_context("fork")
        try:
            for number in range(self._count):
                ours, theirs = context.Pipe()
                inherited = [*self._processes, ours]
                arguments = (self._work, number, theirs, inherited, os.getpid())
                process = context.Process(target=_run, args=arguments, daemon=True)
                process.start()
                self._processes[ours] = process
                theirs.close()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for line, process in self._processes.items():
            process.kill()  # it writes no file
            process.join()
            line.close()

    @property
    def lines(self) -> list[Connection]:
        """Return this process's ends of the connections."""
        return list(self._processes)

    def send(self, line: Connection, message: object) -> None:
        """Send a process something.

        Raises:
            InputError: the process has ended.
        """
        with suppress(ConnectionError):
            line.send(message)
            return
        raise self._lost(line)

    def receive(self, line: Connection) -> Any:
        """Return what a process has sent, waiting for it.

        Raises:
            InputError: the process was killed, or raised this.
            OSError: the process raised this.
            RuntimeError: the process raised something else.
        """
        try:
            message = line.recv()
        except (EOFError, ConnectionError):
            raise self._lost(line) from None
        if isinstance(message, _Failed):
            raise message.error
        return message

    def _lost(self, line: Connection) -> InputError:
        process = self._processes[line]
        process.join()
        code = process.exitcode or 0
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        return InputError(
            f"One of the processes that share this stage {how}, as happens where the machine's memory is full; run it "
            "again, with a smaller ZIMAGE_PROCESSES if that is so: what was finished is kept."
        )


def spread(work: Callable[[T], R], items: Sequence[T], processes: int) -> Iterator[R]:
    """Yield the result of `work` for each item, in the order of `items`, computed by several processes.

    Args:
        work: It and the items are inherited by fork; only results are pickled.
        items: The inputs.
        processes: The largest number at once; with 1, this process does the work itself.

    Raises:
        InputError: raised by the work, or a process was killed.
        OSError: raised by the work.
        RuntimeError: the work raised something else.
    """
    if min(processes, len(items)) <= 1:
        yield from map(work, items)
        return

    def serve(_: int, line: Connection) -> None:
        while True:
            line.send(work(items[line.recv()]))

    results: dict[int, R] = {}
    numbers = iter(range(len(items)))
    with Forked(min(processes, len(items)), serve) as forked:
        at_work = dict(zip(forked.lines, numbers, strict=False))
        for line, number in at_work.items():
            forked.send(line, number)
        for wanted in range(len(items)):
            while wanted not in results:
                for line in (line for line in wait(at_work) if isinstance(line, Connection)):
                    results[at_work.pop(line)] = forked.receive(line)
                    if (number := next(numbers, -1)) >= 0:
                        at_work[line] = number
                        forked.send(line, number)
            yield results.pop(wanted)


def _run(
    work: Callable[[int, Connection], None],
    number: int,
    line: Connection,
    inherited: Sequence[Connection],
    parent: int,
) -> None:
    """Run as one of the processes: end with the first one, and report only to it."""
    for each in inherited:  # otherwise no connection would ever close
        each.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process too, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent)
    be_silent()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # a fork has none of the threads that OpenMP would wait for
    try:
        work(number, line)
    except (InputError, OSError) as error:
        failed = _Failed(error)
    except Exception:  # noqa: BLE001 - the first process raises it again, with this traceback
        failed = _Failed(RuntimeError(f"a process of this stage failed:\n{traceback.format_exc()}"))
    else:
        return
    with suppress(OSError):  # the first process has ended
        line.send(failed)
