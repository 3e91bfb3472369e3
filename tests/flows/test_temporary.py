import pytest

from flows.temporary import TemporaryServer


def test_a_server_that_cannot_start_is_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nothing://")
    server = TemporaryServer()

    with pytest.raises(RuntimeError, match="Prefect's server did not start; what it said stands above"):
        server.wait()
    server.end()
    assert "nothing" in capfd.readouterr().err
