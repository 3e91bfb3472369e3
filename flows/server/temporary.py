"""A Prefect server for one run, started where none is configured; it listens locally and ends with the run's process.

`python -m flows.server.temporary FD PID` serves on a socket that listens already, until its parent PID ends. It is
started before Prefect is imported by who wants it, so that the two, of some seconds each, load side by side.
"""

import atexit
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from types import FrameType
from typing import ClassVar

from flows.server.database import provide_sqlite
from tasks.settings import PROJECT, inherited
from zimage.core.process import collect_rarely, die_with_parent

HOST = "127.0.0.1"
STARTS_WITHIN_S = 120.0
ENDS_WITHIN_S = 5.0
LOOK_EVERY_S = 0.05
# As Prefect starts its own: no UI, and only the services that a single run needs; a run uses no blocks, whose kinds
# Prefect would write down first. Nobody reads its events later, which tell pseudonyms and cannot be deleted: it keeps
# none. No telemetry.
ALONE = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "0",
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
}
# Of every server of ours, also of one that keeps none itself: events tell pseudonyms, and nobody can delete them.
EVENTS_KEPT = {"PREFECT_SERVER_EVENTS_RETENTION_PERIOD": "P1D"}


class TemporaryServer:
    """The server's process, from its start on.

    Args:
        api: The address for `PREFECT_API_URL`; it answers once `wait` has returned.
    """

    _of_process: ClassVar["TemporaryServer | None"] = None

    @classmethod
    def of_process(cls) -> "TemporaryServer":
        """Return the one of this process: started now, unless it runs already."""
        if cls._of_process is None or cls._of_process._process.poll() is not None:
            cls._of_process = cls()
        return cls._of_process

    @classmethod
    def is_at(cls, api: str | None) -> bool:
        """Return whether an address is that of this process's server."""
        return cls._of_process is not None and cls._of_process.api == api

    def __init__(self) -> None:
        with socket.create_server((HOST, 0)) as listening:
            self._port = listening.getsockname()[1]
            self.api = f"http://{HOST}:{self._port}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.server.temporary", str(listening.fileno()), str(os.getpid())],
                cwd=PROJECT,
                env=EVENTS_KEPT | inherited() | ALONE,
                stdin=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
                start_new_session=True,  # a terminal sends Ctrl-C to all, and the server has to go last
            )
        # Registered before Prefect registers its own, so that it is called after those: the last log lines are sent.
        atexit.register(self.end)

    def wait(self) -> None:
        """Return once it answers.

        Raises:
            RuntimeError: it ended, or did not answer for long; what it said stands above.
        """
        until = time.monotonic() + STARTS_WITHIN_S
        while time.monotonic() < until and self._process.poll() is None:
            asking = HTTPConnection(HOST, self._port, timeout=STARTS_WITHIN_S)
            with contextlib.suppress(HTTPException, OSError), contextlib.closing(asking):
                asking.request("GET", "/api/health")
                if asking.getresponse().status == HTTPStatus.OK:
                    return
            time.sleep(LOOK_EVERY_S)
        raise RuntimeError("Prefect's server did not start; what it said stands above.")

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve(descriptor: int, parent: int) -> None:
    """Serve on the socket of this descriptor until SIGTERM, or until the parent ends."""
    die_with_parent(parent)
    collect_rarely()
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        """Logs nothing about requests that it aborts once it was asked to end."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            logging.disable()
            super().handle_exit(sig, frame)

    provide_sqlite()
    config = uvicorn.Config(create_app(), log_level="error", lifespan="on")
    Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
