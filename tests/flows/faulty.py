"""A relay in front of a server, which can be made to fail as networks and servers do."""

import contextlib
import socket
import threading
import time
from typing import Literal
from urllib.parse import urlsplit

from tests.ports import free_port

Fault = Literal["none", "refuse", "error", "cut", "slow"]
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
CUT_AFTER = 100  # bytes of an answer
SLOW_S = 0.3
CHUNK = 65536


class Relay:
    """Passes bytes on between clients and `target`, or does what `fault` says; counts the connections it spoilt.

    Refused ones never reach it, so nobody can count them: nothing listens on the port while `fault` is `refuse`.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.port = free_port()  # nobody takes it while nothing listens there
        self._listener = self._listening(self.port)
        self.address = f"http://127.0.0.1:{self.port}"
        self.spoilt: dict[str, int] = {}
        self.fault: Fault = "none"

    def fail(self, fault: Fault) -> None:
        """Behave like this from the next connection on."""
        if fault == "refuse" and self.fault != "refuse":
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes up who waits for a client
            self._listener.close()
        if fault != "refuse" and self.fault == "refuse":
            self._listener = self._listening(self.port)
        self.fault = fault

    def close(self) -> None:
        self._listener.close()

    def _listening(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, self.fault), daemon=True).start()

    def _serve(self, client: socket.socket, fault: Fault) -> None:
        self.spoilt[fault] = self.spoilt.get(fault, 0) + (fault != "none")
        with contextlib.suppress(OSError), client:
            if fault == "error":
                client.recv(CHUNK)
                client.sendall(ERROR)
                return
            with socket.create_connection(self._target) as server:
                up = threading.Thread(target=_pass, args=(client, server, 0.0, 0), daemon=True)
                up.start()
                _pass(server, client, SLOW_S if fault == "slow" else 0.0, CUT_AFTER if fault == "cut" else 0)


def _pass(source: socket.socket, target: socket.socket, pause_s: float, most: int) -> None:
    """Pass all bytes on, or the first `most`; then close for writing, or, cut short, both ways."""
    with contextlib.suppress(OSError):
        while content := source.recv(CHUNK):
            time.sleep(pause_s)
            target.sendall(content[:most] if most else content)
            if most:
                target.shutdown(socket.SHUT_RDWR)
                source.shutdown(socket.SHUT_RDWR)
                return
        target.shutdown(socket.SHUT_WR)
