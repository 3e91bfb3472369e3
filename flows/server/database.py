"""Prepare Prefect's database before its server starts: a migrated SQLite file, serialised writers, events of old runs.

The first two are for SQLite. An empty one is copied, which takes no time; Prefect's migrations take seconds.
`python -m flows.server.database` makes it, once for this environment and this version of Prefect. Where it is not
there, or the configured database is no file of SQLite, a server does what Prefect does by itself.
"""

import contextlib
import datetime
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from asyncio import AbstractEventLoop, Lock, get_running_loop
from collections.abc import AsyncGenerator, Iterator
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from tasks.settings import inherited
from zimage.core.errors import InputError

if TYPE_CHECKING:
    from prefect.server.database.orm_models import FlowRunState

_has_turn: ContextVar[bool] = ContextVar("_has_turn", default=False)


def empty() -> Path:
    """Return where the empty database is, if it was made."""
    return Path(sys.prefix) / "share" / "zimage" / f"prefect-{version('prefect')}.db"


def make_empty(target: Path) -> None:
    """Write an empty database with all of Prefect's tables, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        migrated, whole = Path(temporary) / "migrated.db", Path(temporary) / "whole.db"
        environment = inherited() | {
            "PREFECT_HOME": temporary,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{migrated}",
        }
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with contextlib.closing(sqlite3.connect(migrated)) as database:
            database.execute("vacuum into ?", [str(whole)])  # one file, with no log beside it
        whole.replace(target)


def prepare() -> None:
    """Prepare for the server that this process is about to make: its database, if there is none, and its writers."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    address = PREFECT_API_DATABASE_CONNECTION_URL.value()
    provide(address, empty())
    serialize_sqlite_writes(address)


@contextlib.contextmanager
def only_server(where: str) -> Iterator[None]:
    """Lock PREFECT_HOME against other servers of this project (flock); the kernel unlocks it when the process dies.

    Two servers on one SQLite both plan the runs of a schedule and both declare runs lost.

    Args:
        where: What to say of this server to others that are refused, such as "at http://127.0.0.1:4200".

    Raises:
        InputError: another server has it.
    """
    from prefect.settings import PREFECT_HOME

    path = PREFECT_HOME.value() / "zimage-server.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            other = file.read().strip() or "in another process"
            raise InputError(
                f"A server runs {other} with PREFECT_HOME {path.parent} already; use that one, or stop it first."
            ) from None
        file.truncate(0)
        file.write(f"{where} (process {os.getpid()})")
        file.flush()
        yield


def provide(address: str, source: Path) -> None:
    """Put a copy of `source`, if that was made, where a database will be, if nothing is there yet.

    Args:
        address: Of the database, as SQLAlchemy writes it.
        source: The empty database.
    """
    from sqlalchemy import make_url

    url = make_url(address)
    target = Path(url.database or "")
    if url.get_backend_name() != "sqlite" or not target.is_absolute() or not source.is_file() or _is_used(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    # Unless another server was quicker, or the file system knows no second names; then Prefect makes its own.
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary, contextlib.suppress(OSError):
        copied = Path(temporary) / target.name
        shutil.copyfile(source, copied)
        os.link(copied, target)


def serialize_sqlite_writes(address: str) -> None:
    """Let the writers of this process's server wait for one another, if its database is SQLite.

    Prefect's requests read before they write, and SQLite lets nobody write who began to read before somebody else
    wrote: such a request ends at once, with 503. Prefect's client tries again then; its UI, where a person clicked,
    does not. Here a writer takes its turn before it reads.

    Args:
        address: Of the database, as SQLAlchemy writes it.
    """
    from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
    from prefect.server.database.dependencies import MODELS_DEPENDENCIES
    from sqlalchemy import make_url
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    class InTurn(AioSqliteConfiguration):
        _turns: ClassVar[WeakKeyDictionary[AbstractEventLoop, Lock]] = WeakKeyDictionary()

        @contextlib.asynccontextmanager
        async def begin_transaction(
            self, session: AsyncSession, with_for_update: bool = False
        ) -> AsyncGenerator[AsyncSessionTransaction, None]:
            if _has_turn.get():  # within another, which has it, this would wait for ever
                async with super().begin_transaction(session, with_for_update) as transaction:
                    yield transaction
                return
            # Who waits here is served in order, and keeps no connection of the few from anybody.
            async with self.turn(), super().begin_transaction(session, with_for_update=True) as transaction:
                await session.connection()  # begins now
                SQLITE_BEGIN_MODE.set("DEFERRED")  # and so does whatever is opened until the end
                yield transaction

        @classmethod
        @contextlib.asynccontextmanager
        async def turn(cls) -> AsyncGenerator[None, None]:
            async with cls._turns.setdefault(get_running_loop(), Lock()):
                token = _has_turn.set(True)
                try:
                    yield
                finally:
                    _has_turn.reset(token)

    if make_url(address).get_backend_name() == "sqlite":
        MODELS_DEPENDENCIES["database_config"] = InTurn(connection_url=address)


async def listen_anew() -> None:
    """Let the automations of the server that this process is about to make act on runs that an earlier server began.

    What each run's last state was counts as seen: a server remembers that in memory, and puts the next state aside for
    a quarter of an hour if it does not know the one before. A database without tables yet is left alone.
    """
    from prefect.server.database.dependencies import provide_database_interface
    from prefect.server.events.ordering import PRECEDING_EVENT_LOOKBACK
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    database, now = provide_database_interface(), datetime.datetime.now(datetime.UTC)
    last = database.FlowRun.state_id == database.FlowRunState.id
    recent = database.FlowRunState.timestamp > now - PRECEDING_EVENT_LOOKBACK
    with contextlib.suppress(SQLAlchemyError, OSError):  # which its server will tell of
        async with database.session_context(begin_transaction=True) as session:
            for state in await session.scalars(
                select(database.FlowRunState).join(database.FlowRun, last).where(recent)
            ):
                await _count_as_heard(state)


async def _count_as_heard(state: "FlowRunState") -> None:
    """Let the triggers of this process know the event of a state, which has the state's identity."""
    from prefect.server.events.ordering.memory import CausalOrdering
    from prefect.server.events.schemas.events import ReceivedEvent, Resource

    run = Resource({"prefect.resource.id": f"prefect.flow-run.{state.flow_run_id}"})
    event = ReceivedEvent(id=state.id, occurred=state.timestamp, event=f"prefect.flow-run.{state.name}", resource=run)
    await CausalOrdering(scope="triggers").record_event_as_seen(event)


def _is_used(target: Path) -> bool:
    """Return whether there is a database, or the log of a deleted one, which SQLite would write into a new one."""
    return any(target.with_name(f"{target.name}{ending}").exists() for ending in ("", "-wal", "-shm", "-journal"))


if __name__ == "__main__":
    make_empty(empty())
