from pathlib import Path

import httpx
import pytest

from flows.__main__ import LASTING
from flows.server.temporary import TemporaryServer


def test_a_server_that_cannot_start_is_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nothing://")
    server = TemporaryServer()

    with pytest.raises(RuntimeError, match="Prefect's server did not start; what it said stands above"):
        server.wait()
    server.end()
    assert "nothing" in capfd.readouterr().err


def test_it_says_of_events_what_a_lasting_server_of_the_same_database_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    server = TemporaryServer()
    server.wait()
    found = httpx.get(f"{server.api}/admin/settings").json()["server"]["events"]["retention_period"]
    server.end()

    assert found == LASTING["PREFECT_SERVER_EVENTS_RETENTION_PERIOD"]
