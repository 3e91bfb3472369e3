"""Work that forked processes share: in order, with one end for all, and told by the first one alone."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.processes import children
from zimage.core.errors import InputError
from zimage.core.process_group import Forked, spread
from zimage.core.progress import tracked


def test_results_come_in_the_order_of_the_items_whichever_is_ready_first() -> None:
    before = children()

    def work(item: int) -> tuple[int, int]:
        time.sleep(0.2 if item == 0 else 0)
        return item * item, os.getpid()

    results = list(spread(work, range(9), 3))
    assert [square for square, _ in results] == [item * item for item in range(9)]
    makers = {maker for _, maker in results}
    assert len(makers) == 3 and os.getpid() not in makers
    assert children() <= before


@pytest.mark.parametrize(("items", "processes"), [([], 3), ([1], 3), ([1, 2], 1)])
def test_one_process_or_one_item_needs_no_other_process(items: list[int], processes: int) -> None:
    assert list(spread(lambda _: os.getpid(), items, processes)) == [os.getpid()] * len(items)


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (InputError("a LoRA does not fit"), InputError, "^a LoRA does not fit$"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
        (ZeroDivisionError("a fault of ours"), RuntimeError, "ZeroDivisionError: a fault of ours"),
    ],
)
def test_what_the_work_raises_is_raised_here(raised: Exception, kind: type[Exception], message: str) -> None:
    before = children()

    def work(item: int) -> int:
        if item == 3:
            raise raised
        return item

    with pytest.raises(kind, match=message):
        list(spread(work, range(6), 2))
    assert children() <= before


def test_a_killed_process_is_an_end_with_a_sentence() -> None:
    before = children()

    def work(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(InputError, match=r"^One of the processes that share this stage was killed \(SIGKILL\)"):
        list(spread(work, range(6), 2))
    assert children() <= before


def test_processes_end_where_what_they_made_is_not_asked_for_any_more() -> None:
    before = children()
    results = spread(lambda item: item, range(100), 2)
    assert next(results) == 0
    assert len(children() - before) == 2
    results.close()  # type: ignore[attr-defined]
    assert children() <= before


def test_only_the_first_process_tells_of_progress(capfd: pytest.CaptureFixture[str]) -> None:
    def work(item: int) -> int:
        return sum(tracked([item], "inner", 1))

    assert list(spread(work, range(4), 2)) == [0, 1, 2, 3]
    assert "inner" not in capfd.readouterr().err


def test_what_the_first_process_has_loaded_is_shared_and_not_copied() -> None:
    loaded = bytearray(os.urandom(100_000_000))

    def work(_: int) -> tuple[int, int]:
        total = sum(loaded[::4096])
        return total, psutil.Process().memory_full_info().uss

    results = list(spread(work, range(2), 2))
    assert len({total for total, _ in results}) == 1
    assert all(own < 50_000_000 for _, own in results)


def test_a_process_computes_with_one_thread_whatever_threads_the_first_one_had() -> None:
    before = children()
    """It has none of them, so a product on two would wait for ever."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        matrix = torch.ones(500, 500)
        assert matrix.exp().sum() > 0
        found = list(spread(lambda _: (float((matrix.exp() @ matrix).sum()), torch.get_num_threads()), range(2), 2))
    finally:
        torch.set_num_threads(before)
    assert {threads for _, threads in found} == {1}


def test_a_process_learns_that_the_first_one_has_gone(tmp_path: Path) -> None:
    """Through its line as well, for a training defers the signal that the kernel sends."""
    told = tmp_path / "told"

    def work(_: int, line: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with pytest.raises(EOFError):
            line.recv()  # type: ignore[attr-defined]
        told.touch()

    first = os.fork()
    if first == 0:
        with Forked(2, work):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(first, 0)
    deadline = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
