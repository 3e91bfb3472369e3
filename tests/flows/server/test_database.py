import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prefect.client.base import PrefectHttpxSyncClient
from prefect.server.database.dependencies import temporary_database_interface
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, temporary_settings

from flows.server.database import count_recent_states_as_seen, empty, make_empty, provide
from flows.server.processes import started
from flows.server.stack import HOST, _wait_for_server
from flows.server.temporary import TemporaryServer
from tests.flows import stack_parts
from tests.ports import free_port


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("empty") / "share" / "empty.db"
    make_empty(target)
    return target


def content(path: Path) -> dict[str, int]:
    """The tables of a database, and how many rows each has."""
    with contextlib.closing(sqlite3.connect(path)) as opened:
        names = [name for (name,) in opened.execute("select name from sqlite_master where type = 'table'")]
        return {name: opened.execute(f'select count(*) from "{name}"').fetchone()[0] for name in names}


def test_it_has_prefects_tables_and_nothing_in_them(made: Path) -> None:
    found = content(made)

    assert {"flow_run", "task_run", "artifact", "events", "alembic_version"} <= set(found)
    assert {name for name, rows in found.items() if rows} == {"alembic_version"}
    assert [path.name for path in made.parent.iterdir()] == ["empty.db"]


def test_a_new_home_gets_a_copy(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "home" / "prefect.db"
    provide(f"sqlite+aiosqlite:///{target}", made)

    assert target.read_bytes() == made.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["prefect.db"]


def test_a_database_that_is_there_stays_as_it_is(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "prefect.db"
    target.write_bytes(b"somebody's runs")
    provide(f"sqlite+aiosqlite:///{target}", made)

    assert target.read_bytes() == b"somebody's runs"


def test_the_log_of_a_deleted_database_is_never_played_into_a_copy(made: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.db-wal").write_bytes(b"what somebody deleted")
    provide(f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}", made)

    assert not (tmp_path / "prefect.db").exists()


@pytest.mark.parametrize(
    "address", ["postgresql+asyncpg://prefect:secret@db:5432/prefect", "sqlite+aiosqlite:///:memory:"]
)
def test_a_database_that_is_no_file_is_left_to_prefect(
    made: Path, address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    provide(address, made)

    assert list(tmp_path.iterdir()) == []


def test_without_the_empty_one_nothing_is_done(tmp_path: Path) -> None:
    provide(f"sqlite+aiosqlite:///{tmp_path / 'home' / 'prefect.db'}", tmp_path / "was never made.db")

    assert list(tmp_path.iterdir()) == []


def test_prefects_server_takes_the_copy_for_its_own(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "prefect.db"
    address = f"sqlite+aiosqlite:///{target}"
    provide(address, made)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)
    server = TemporaryServer()
    server.wait()
    made_flow = httpx.post(f"{server.api}/flows/", json={"name": "personalize"})
    server.end()

    assert made_flow.status_code == 201
    found = content(target)
    assert found["flow"] == 1
    assert list(found) == list(content(made))
    assert found["alembic_version"] == 1


CLIENTS = 20  # more than the server has connections


def ask_in_turn(api: str, deployment: str) -> list[int]:
    """What a client gets that starts and cancels one run after another, and never tries again."""
    with httpx.Client(base_url=api, timeout=60) as client:
        found = []
        for _ in range(5):
            made = client.post(f"/deployments/{deployment}/create_flow_run", json={})
            cancelled = client.post(
                f"/flow_runs/{made.json().get('id')}/set_state", json={"state": {"type": "CANCELLED"}}
            )
            found += [made.status_code, cancelled.status_code]
        return found


def test_no_client_is_turned_away_while_others_write(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://{HOST}:{port}/api"
    with stack_parts.server(tmp_path, port) as process, httpx.Client(base_url=api, timeout=60) as client:
        _wait_for_server(process, port, tmp_path)
        flow = client.post("/flows/", json={"name": "personalize"}).json()["id"]
        deployment = client.post("/deployments/", json={"name": "personalize", "flow_id": flow}).json()["id"]
        with ThreadPoolExecutor(CLIENTS) as clients:
            found = list(clients.map(lambda _: ask_in_turn(api, deployment), range(CLIENTS)))

    assert {status for each in found for status in each} == {201}


def test_a_state_after_a_pause_is_acted_on_though_another_server_saw_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect lets it wait a quarter of an hour for an event that will not come."""
    lost = {"type": "CRASHED", "message": "Its worker was lost, no heartbeat came for 90 s."}
    go_on = {
        "name": "acts on what an earlier server began",
        "trigger": {"type": "event", "posture": "Reactive", "expect": ["prefect.flow-run.Crashed"], "threshold": 1},
        "actions": [{"type": "change-flow-run-state", "state": "SCHEDULED", "name": "AwaitingRetry"}],
    }
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")
    with server(tmp_path) as client:
        assert client.post("/automations/", json=go_on).is_success
        flow = client.post("/flows/", json={"name": "personalize"}).json()["id"]
        deployment = client.post("/deployments/", json={"name": "personalize", "flow_id": flow}).json()["id"]
        created = client.post(f"/deployments/{deployment}/create_flow_run", json={"state": {"type": "RUNNING"}})
        run = created.json()["id"]
    with server(tmp_path) as client:
        assert client.post(f"/flow_runs/{run}/set_state", json={"state": lost, "force": True}).is_success
        until = time.monotonic() + 60
        while (found := client.get(f"/flow_runs/{run}").json()["state"]["name"]) == "Crashed":
            assert time.monotonic() < until
            time.sleep(0.2)

    assert found == "AwaitingRetry"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[httpx.Client]:
    """A server on the SQLite database that the environment names.

    The client is Prefect's, which tries again after a 503: SQLite answers so to a request that read before it wrote,
    if another transaction wrote in between, as those of the server's own services do.
    """
    port = free_port()
    command = ["server", "--host", HOST, "--port", str(port)]
    with (
        started(command, folder / "server.log") as process,
        PrefectHttpxSyncClient(base_url=f"http://{HOST}:{port}/api") as client,
    ):
        _wait_for_server(process, port, folder)
        yield client


@pytest.mark.filterwarnings("ignore:Type object:sqlalchemy.exc.SADeprecationWarning")  # of Prefect's own types
def test_a_database_without_tables_is_left_to_its_server(tmp_path: Path) -> None:
    address = f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}"
    with temporary_database_interface(), temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: address}):
        asyncio.run(count_recent_states_as_seen())


def test_its_name_tells_the_version_that_made_it() -> None:
    from prefect import __version__

    assert empty().name == f"prefect-{__version__}.db"
