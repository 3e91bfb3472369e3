import operator
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.processes import runs
from zimage.errors import InputError
from zimage.faces.consent import read_consent
from zimage.faces.workers import Lost, mapped

doubled = partial(partial, operator.mul, 2)
crashing = partial(partial, os._exit)
sleeping = partial(partial, time.sleep)
reading = partial(partial, read_consent)
unpacking = partial(partial, operator.truediv, 1)


def results(answers: Iterator[tuple[object, object]]) -> list[object]:
    return [result for _, result in answers]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    answers = list(mapped(doubled, range(40), workers=workers))
    assert answers == [(n, 2 * n) for n in range(40)]


def test_items_are_drawn_only_a_few_ahead() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    answers = mapped(doubled, items(), workers=2)
    next(answers)
    assert len(drawn) <= 4
    answers.close()


def test_an_item_that_kills_its_process_is_lost_alone() -> None:
    answers = list(mapped(crashing, [3, 4], workers=1))
    assert [result for _, result in answers] == [
        Lost("Opening it ended the process that tried (exit code 3)."),
        Lost("Opening it ended the process that tried (exit code 4)."),
    ]


def test_an_item_that_takes_too_long_is_lost_alone() -> None:
    slow, quick = results(mapped(sleeping, [60, 0], workers=1, limit_s=5))
    assert slow == Lost("It took longer than 5 s to open.")
    assert quick is None


def test_what_a_user_can_mend_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no consent file"):
        list(mapped(reading, [tmp_path / "consent.yaml"], workers=1))


def test_our_own_mistake_comes_with_the_workers_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(mapped(unpacking, [0], workers=1))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_process_is_left_when_the_caller_stops_early() -> None:
    before = set(children_of(os.getpid()))
    answers = mapped(sleeping, [0, 30, 30, 30], workers=2)
    next(answers)
    answers.close()
    assert set(children_of(os.getpid())) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "import functools, time\n"
        "from zimage.faces.workers import mapped\n"
        "work = functools.partial(functools.partial, time.sleep)\n"
        "for _ in mapped(work, [0, 0, 60, 60], workers=2): print('go', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        workers = [
            int(p) for t in Path(f"/proc/{parent.pid}/task").iterdir() for p in (t / "children").read_text().split()
        ]
        parent.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(runs, workers)):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.2)
