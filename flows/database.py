"""Prefect's database before its first use: a copy of an empty one, which takes no time; its migrations take seconds.

`python -m flows.database` makes the empty one, once for this environment and this version of Prefect. Where it is not
there, or the configured database is no file of SQLite, a server does what Prefect does by itself.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tasks.settings import inherited


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


def provide_configured() -> None:
    """Put a copy of the empty database where Prefect's settings have theirs, if nothing is there yet."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    provide(PREFECT_API_DATABASE_CONNECTION_URL.value(), empty())


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


def _is_used(target: Path) -> bool:
    """Return whether there is a database, or the log of a deleted one, which SQLite would write into a new one."""
    return any(target.with_name(f"{target.name}{ending}").exists() for ending in ("", "-wal", "-shm", "-journal"))


if __name__ == "__main__":
    make_empty(empty())
