"""Prepare the database of a Prefect server before the server starts.

A server that lasts uses PostgreSQL (`flows/server/postgres.py`), the server of a single run SQLite. A new database of
either kind is a copy of one that has Prefect's tables already, as Prefect's migrations take seconds: `python -m
flows.server.database` writes both, once for this environment and these versions. Without them, Prefect migrates by
itself.
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
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from flows.server import postgres
from tasks.settings import inherited
from zimage.core.errors import InputError

if TYPE_CHECKING:
    from prefect.server.database.orm_models import FlowRunState

ADDRESS = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


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
            ADDRESS: f"sqlite+aiosqlite:///{migrated}",
        }
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        with contextlib.closing(sqlite3.connect(migrated)) as database:
            database.execute("vacuum into ?", [str(whole)])  # one file without a log
        whole.replace(target)


def provide_sqlite() -> None:
    """Copy the empty database to where the configured one will be, if that is SQLite and nothing is there yet."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    provide(PREFECT_API_DATABASE_CONNECTION_URL.value(), empty())


@dataclass(frozen=True)
class Database:
    """The database of a server that lasts.

    Args:
        environment: Variables that tell the server of it; empty where it is configured already.
        description: For a person.
        process: PostgreSQL's, where it was started here.
        note: What a person should know of another database in the same PREFECT_HOME, or "".
    """

    environment: dict[str, str]
    description: str
    process: "subprocess.Popen[bytes] | None" = None
    note: str = ""


@contextlib.contextmanager
def lasting_database(log: Path) -> Iterator[Database]:
    """Run PostgreSQL in PREFECT_HOME for the length of the block, unless a database is configured.

    Args:
        log: File for what PostgreSQL prints.

    Raises:
        InputError: see `postgres.running`.
    """
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME, get_current_settings
    from sqlalchemy import make_url

    configured, home = get_current_settings().server.database, PREFECT_HOME.value()
    address = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value())
    if "connection_url" in configured.model_fields_set or configured.driver is not None:
        yield Database({}, address.render_as_string(hide_password=True))
    elif not postgres.is_installed():
        yield Database({}, f"SQLite in {home}: there is no package of PostgreSQL for this platform")
    else:
        folder = home / "postgres"
        note = _note_of_sqlite(Path(address.database or ""))
        with postgres.running(folder, log, template=postgres.migrated()) as running:
            yield Database({ADDRESS: running.address}, f"PostgreSQL in {folder}", running.process, note)


def _note_of_sqlite(path: Path) -> str:
    """Return a sentence about the SQLite database that a stack of a version before 0.2.0 used, or "" if there is none.

    Servers of single runs use the same file and have no deployments.
    """
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as old,
    ):
        if old.execute("select count(*) from deployment").fetchone() != (0,):
            return (
                f"Runs, and schedules that were switched on, of an earlier version are in {path} and not here; "
                f"{ADDRESS}=sqlite+aiosqlite:///{path} uses that database again."
            )
    return ""


@contextlib.contextmanager
def only_server(where: str) -> Iterator[None]:
    """Lock PREFECT_HOME against other servers of this project (flock); the kernel unlocks it when the process dies.

    Two servers on one database both plan the runs of a schedule and both declare runs lost.

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


async def count_recent_states_as_seen() -> None:
    """Let the automations of the server that this process is about to start act on runs that an earlier server began.

    A server remembers in memory which states its automations have seen, and delays a state by a quarter of an hour if
    it has not seen the state before. So the last state of each run counts as seen. A database without tables is left
    alone.
    """
    from prefect.server.database.dependencies import provide_database_interface
    from prefect.server.events.ordering import PRECEDING_EVENT_LOOKBACK
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    database, now = provide_database_interface(), datetime.datetime.now(datetime.UTC)
    last = database.FlowRun.state_id == database.FlowRunState.id
    recent = database.FlowRunState.timestamp > now - PRECEDING_EVENT_LOOKBACK
    with contextlib.suppress(SQLAlchemyError, OSError):  # which the server will report
        async with database.session_context(begin_transaction=True) as session:
            for state in await session.scalars(
                select(database.FlowRunState).join(database.FlowRun, last).where(recent)
            ):
                await _count_as_seen(state)


async def _count_as_seen(state: "FlowRunState") -> None:
    """Record the event of a state, which has the state's id, as seen by the triggers of this process."""
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
    if postgres.is_installed():
        postgres.make_migrated(postgres.migrated())
