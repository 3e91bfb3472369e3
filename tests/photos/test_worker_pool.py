import operator
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.processes import runs
from zimage.consent import Consent, read_consent
from zimage.core.errors import InputError
from zimage.core.sandbox import ENVIRONMENT, NET_ABI, landlock_abi
from zimage.photos import worker_pool
from zimage.photos.worker_pool import ALLOCATION, MEMORY_BYTES_A_CORE, THREADS_OF, Lost, WorkerPool, mapped

doubled = partial(partial, operator.mul, 2)
crashing = partial(partial, os._exit)
sleeping = partial(partial, time.sleep)
reading = partial(partial, read_consent)
holding = partial(partial, bytes)
reading_text = partial(partial, Path.read_text)
executing = partial(partial, exec)
evaluating = partial(partial, eval)
unpacking = partial(partial, operator.truediv, 1)


def results(answers: Iterator[tuple[object, object]]) -> list[object]:
    return [result for _, result in answers]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    answers = list(mapped(doubled, range(40), int, workers=workers))
    assert answers == [(n, 2 * n) for n in range(40)]


def test_one_pool_does_two_rounds_of_work_in_the_same_processes() -> None:
    asked = ["[__import__('os').getpid(), __import__('time').sleep(0.1)][0]"] * 6
    with WorkerPool(evaluating, int, workers=2) as pool:
        first, second = ({answer for _, answer in pool.mapped(asked) if isinstance(answer, int)} for _ in range(2))
    assert second <= first
    assert first and not any(map(runs, first))


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's variables")
def test_a_worker_reuses_the_memory_of_the_picture_before() -> None:
    picture = "__import__('PIL.Image').Image.new('RGB', (4000, 3000)) and 0"
    faults = "__import__('resource').getrusage(0).ru_minflt"
    _, between = results(mapped(evaluating, [picture, f"-{faults} + ({picture}) + {faults}"], int, workers=1))
    assert isinstance(between, int)
    assert between < 1000  # such a picture takes 11,719 pages


def test_items_are_drawn_only_a_few_ahead() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    answers = mapped(doubled, items(), int, workers=2)
    next(answers)
    assert len(drawn) <= 4
    answers.close()


def test_an_item_that_kills_its_process_is_lost_alone() -> None:
    answers = list(mapped(crashing, [3, 4], type(None), workers=1))
    assert [result for _, result in answers] == [
        Lost("Opening it ended the process that tried (exit code 3)."),
        Lost("Opening it ended the process that tried (exit code 4)."),
    ]


def test_an_item_that_takes_too_long_is_lost_alone() -> None:
    slow, quick = results(mapped(sleeping, [60, 0], type(None), workers=1, limit_s=5))
    assert slow == Lost("It took longer than 5 s to open.")
    assert quick is None


def test_what_a_user_can_mend_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no consent file"):
        list(mapped(reading, [tmp_path / "consent.yaml"], Consent, workers=1))


def test_our_own_mistake_comes_with_the_workers_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(mapped(unpacking, [0], float, workers=1))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_has_no_secrets_no_core_files_and_no_way_to_more_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_AUTH_STRING", "ZIMAGE_NOTIFY"):
        monkeypatch.setenv(name, "secret")
    files = [Path("/proc/self", name) for name in ("environ", "limits", "status")]
    environment, limits, status = results(mapped(reading_text, files, str, workers=1, memory_bytes=3 * 2**30))
    names = {entry.partition("=")[0] for entry in str(environment).split("\0") if entry}
    assert names <= {*ENVIRONMENT, *THREADS_OF, "PYTHONPATH", *ALLOCATION}
    found = {line[:26].strip(): line[26:].split() for line in str(limits).splitlines()}
    assert found["Max core file size"][:2] == ["0", "0"]
    address_space = int(found["Max address space"][1])
    assert address_space == 3 * 2**30 + worker_pool.cores() * MEMORY_BYTES_A_CORE
    assert "NoNewPrivs:\t1" in str(status)


@pytest.mark.skipif(landlock_abi() < 1, reason="this kernel has no Landlock")
def test_a_worker_cannot_read_the_environment_of_its_parent() -> None:
    with pytest.raises(PermissionError, match="Permission denied"):
        list(mapped(reading_text, [Path("/proc", str(os.getpid()), "environ")], str, workers=1))


@pytest.mark.skipif(landlock_abi() < NET_ABI, reason="this kernel has no Landlock for TCP")
def test_a_worker_cannot_connect_to_a_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        connecting = f"import socket; socket.create_connection({server.getsockname()!r}, timeout=10)"
        with pytest.raises(PermissionError):
            list(mapped(executing, [connecting], type(None), workers=1))


def test_a_worker_that_asks_for_more_memory_than_it_may_have_does_not_get_it() -> None:
    with pytest.raises(RuntimeError, match="MemoryError"):
        list(mapped(holding, [64 * 2**30], bytes, workers=1))


def test_an_answer_that_is_pickled_or_of_another_type_is_not_read() -> None:
    pickled = (
        "import gc\n"
        "from multiprocessing.connection import Connection\n"
        "for line in gc.get_objects():\n"
        "    if isinstance(line, Connection):\n"
        "        line.send(('done', 'pickled'))\n"
    )
    lost = [Lost("The process that opened it gave an answer of an unknown form.")]
    assert results(mapped(executing, [pickled], str, workers=1)) == lost
    assert results(mapped(doubled, [2], Path, workers=1)) == lost


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_process_is_left_when_the_caller_stops_early() -> None:
    before = set(children_of(os.getpid()))
    answers = mapped(sleeping, [0, 30, 30, 30], type(None), workers=2)
    next(answers)
    answers.close()
    assert set(children_of(os.getpid())) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "import functools, time\n"
        "from zimage.photos.worker_pool import mapped\n"
        "work = functools.partial(functools.partial, time.sleep)\n"
        "for _ in mapped(work, [0, 0, 60, 60], type(None), workers=2): print('go', flush=True)\n"
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
