"""Process photos on all cores, in processes that a hostile file may crash.

Why processes: dlib holds Python's lock while it embeds (measured: two threads 0.95 times as fast as one, two
processes 1.86 to 2.02 times, see infra/benchmarks.md). Why not multiprocessing's pools: they break as a whole when a
decoder crashes, cannot time out one item, outlive a killed parent, and run the caller's script again where it has no
`if __name__` guard. They also unpickle what a worker sends: here a worker that a file has taken over can only send
JSON, which is checked against the type that is expected.
"""

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from zimage.core.errors import InputError
from zimage.core.sandbox import small_environment

T = TypeVar("T")
R = TypeVar("R")

LIMIT_S = 120.0  # a photo takes seconds; what takes two minutes was made to
AHEAD = 2  # items in flight for each worker: enough that none waits, few enough to bound memory
THREADS_OF = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# glibc reserves 64 MB of address space for each arena. It would return each large block to the kernel, which clears
# every page of the next one again: a third of the time in which a photo of 12 MP is decoded (see infra/benchmarks.md).
ALLOCATION = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": str(256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20),
}
# Address space of a worker. Libraries start a thread for each core, and each reserves room for its stack.
MEMORY_BYTES, MEMORY_BYTES_A_CORE = 6 * 2**30, 64 * 2**20
MAX_ANSWER_BYTES = 16 * 2**20  # of a worker; the largest holds the faces in one picture


@dataclass(frozen=True)
class Lost:
    """An item that crashed its worker twice, or exceeded the time limit."""

    detail: str


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mapped(
    make_work: Callable[[], Callable[[T], R]],
    items: Iterable[T],
    kind: type[R],
    *,
    workers: int | None = None,
    limit_s: float = LIMIT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[tuple[T, R | Lost]]:
    """Yield each item with its result, from processes that are started for these items; see `WorkerPool`."""
    with WorkerPool(make_work, kind, workers=workers, limit_s=limit_s, memory_bytes=memory_bytes) as pool:
        yield from pool.mapped(items)


class WorkerPool(Generic[T, R]):
    """Worker processes: started when there is work, replaced when one is lost, ended with the block. Use with `with`.

    Args:
        make_work: Called once in each worker; returns the work. Both it and the items are pickled.
        kind: Type of what the work returns; it crosses as JSON, so pydantic must know how to read it.
        workers: Processes; all cores where None.
        limit_s: Time one item may take.
        memory_bytes: Address space one worker may have.
    """

    def __init__(
        self,
        make_work: Callable[[], Callable[[T], R]],
        kind: type[R],
        *,
        workers: int | None = None,
        limit_s: float = LIMIT_S,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._make_work, self._limit_s, self._memory_bytes = make_work, limit_s, memory_bytes
        self._answers = TypeAdapter(kind)
        self._count = workers or cores()
        self._threads = ThreadPoolExecutor(self._count)
        self._idle: list[_Worker] = []
        self._all: list[_Worker] = []
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> "WorkerPool[T, R]":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._stop()
        self._threads.shutdown(wait=True)
        for worker in self._all:
            worker.close()

    def mapped(self, items: Iterable[T]) -> Iterator[tuple[T, R | Lost]]:
        """Yield each item with its result, in the order of `items`, for any number of workers.

        Args:
            items: Are drawn only a few ahead of what is yielded, so memory stays bounded.

        Raises:
            InputError, OSError: raised by the work, and raised again here.
        """
        waiting: deque[tuple[T, Future[R | Lost]]] = deque()
        for item in items:
            waiting.append((item, self._threads.submit(self._done, item)))
            if len(waiting) >= self._count * AHEAD:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()

    def _done(self, item: T) -> R | Lost:
        """Return a worker's result for `item`; a crash is tried once more, because memory may have been short."""
        lost = Lost("The run was stopped.")
        for _ in range(2):
            worker = self._hired()
            if worker is None:
                break
            try:
                content = worker.answer(item, self._limit_s)
            except TimeoutError:
                worker.kill()
                return Lost(f"It took longer than {self._limit_s:.0f} s to open.")
            except (EOFError, OSError):  # OSError: also an answer that claims to be longer than any
                lost = Lost(f"Opening it ended the process that tried (exit code {worker.kill()}).")
                continue
            try:
                answer = self._read(content)
            except ValidationError:
                worker.kill()
                return Lost("The process that opened it gave an answer of an unknown form.")
            self._idle.append(worker)
            return answer
        return lost

    def _read(self, content: bytes) -> R:
        """Return the answer in a worker's message, or raise what the work raised."""
        message = _MESSAGE.validate_json(content)
        match message:
            case {"done": value}:
                return self._answers.validate_json(value)
            case {"input_error": sentence}:
                raise InputError(sentence)
            case {"os_error": text}:
                code, reason, *place = from_json(text)
                raise OSError(code, reason, *place)
        raise RuntimeError(f"a worker failed:\n{message.get('failed')}")

    def _stop(self) -> None:
        """End all workers, which also ends the waits for their answers, and start no more."""
        with self._lock:
            self._stopped = True
            for worker in self._all:
                worker.kill()

    def _hired(self) -> "_Worker | None":
        with self._lock:
            if self._stopped:
                return None
            if self._idle:
                return self._idle.pop()
            worker = _Worker(self._make_work, self._memory_bytes)
            self._all.append(worker)
            return worker


_MESSAGE = TypeAdapter(dict[Literal["done", "input_error", "os_error", "failed"], str])


class _Worker:
    """A process and the connection to it."""

    def __init__(self, make_work: Callable[[], Callable[[Any], Any]], memory_bytes: int) -> None:
        memory_bytes += MEMORY_BYTES_A_CORE * cores()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zimage.photos.worker", str(theirs.fileno()), str(memory_bytes)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # decoders in C grumble there; tracebacks come over the line
                env={
                    **small_environment(os.environ),
                    "PYTHONPATH": os.pathsep.join(sys.path),
                    **ALLOCATION,
                    **dict.fromkeys(THREADS_OF, "1"),
                },
            )
        self._line = Connection(ours.detach())
        self._line.send(make_work)

    def answer(self, item: Any, limit_s: float) -> bytes:
        self._line.send(item)
        if not self._line.poll(limit_s):
            raise TimeoutError
        return self._line.recv_bytes(MAX_ANSWER_BYTES)

    def kill(self) -> int:
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        self._line.close()
