import asyncio
from typing import Any

import pytest

from flows.temporary import TemporaryServer, _asking_back_soon


def headers_of(status: int) -> list[tuple[bytes, bytes]]:
    """What a client gets beside this status."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(_asking_back_soon(app)({}, None, send))
    assert len(sent) == 2
    found: list[tuple[bytes, bytes]] = sent[0]["headers"]
    return found


def test_a_client_that_is_to_try_again_is_told_when() -> None:
    assert headers_of(503) == [(b"a", b"b"), (b"retry-after", b"0.1")]
    assert headers_of(200) == [(b"a", b"b")]


def test_a_server_that_cannot_start_is_no_endless_wait(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nothing://")
    server = TemporaryServer()

    with pytest.raises(RuntimeError, match="Prefect's server did not start; what it said stands above"):
        server.wait()
    server.end()
    assert "nothing" in capfd.readouterr().err
