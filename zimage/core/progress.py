"""Show progress: a bar on a terminal, plain lines elsewhere, JSON lines for a process that follows."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PLAIN_EVERY_S = 10.0
FOLLOWED_EVERY_S = 0.5

_followed: Path | None = None
_silent = False


def follow_in(path: Path | None) -> None:
    """Append progress as JSON lines to `path` from now on; the command line sets it, once, at its start."""
    global _followed  # noqa: PLW0603 - one process runs one stage, and its progress has one reader
    _followed = path


def be_silent() -> None:
    """Report no progress from now on: another process counts the work of this one."""
    global _silent  # noqa: PLW0603 - as above
    _silent = True


class Progress:
    """A counted piece of work. Use as a context manager and call `advance`.

    Args:
        name: What is counted, for example "train" or "pictures".
        total: How many in all; 0 where nobody knows.
        done: How many are done already, for work that goes on where it stopped.
    """

    def __init__(self, name: str, total: int, done: int = 0) -> None:
        from tqdm import tqdm

        self.name, self.total, self.done = name, total, done
        self._started = time.monotonic()
        self._first = done
        self._told_plain = self._told_follower = float("-inf")
        self._terminal = sys.stderr.isatty()
        shown = {"disable": not self._terminal or _silent, "file": sys.stderr, "leave": False}
        self._bar = tqdm(total=total or None, initial=done, desc=name, **shown)

    def __enter__(self) -> "Progress":
        self._tell({}, force=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._tell({}, force=True)

    def advance(self, count: int = 1, **numbers: float | int | str) -> None:
        """Count `count` more as done; `numbers` (loss, seconds per step) are shown after the count."""
        self.done += count
        if self._terminal:
            self._bar.set_postfix({key: _short(value) for key, value in numbers.items()}, refresh=False)
            self._bar.update(count)
        self._tell(numbers)

    def _tell(self, numbers: dict[str, float | int | str], force: bool = False) -> None:
        if _silent:
            return
        now = time.monotonic()
        if not self._terminal and (force or now - self._told_plain >= PLAIN_EVERY_S):
            self._told_plain = now
            of = f"/{self.total}" if self.total else ""
            extra = "".join(f"  {key} {_short(value)}" for key, value in numbers.items())
            left_s = self._left_s(now)
            left = "" if left_s is None else f"  {left_s} s left"
            print(f"{self.name} {self.done}{of}{extra}{left}", file=sys.stderr, flush=True)  # noqa: T201
        if _followed is not None and (force or now - self._told_follower >= FOLLOWED_EVERY_S):
            self._told_follower = now
            line: dict[str, object] = {"name": self.name, "done": self.done, "total": self.total, **numbers}
            if (left_s := self._left_s(now)) is not None:
                line["left_s"] = left_s
            with _followed.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _left_s(self, now: float) -> int | None:
        """Return how many seconds the rest will take at the speed so far; None if unknown."""
        done_here = self.done - self._first
        if done_here == 0 or self.done >= self.total:
            return None
        return round((now - self._started) / done_here * (self.total - self.done))


def tracked(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """Yield `items` and count them as progress."""
    with Progress(name, total) as progress:
        for item in items:
            yield item
            progress.advance()


def _short(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
