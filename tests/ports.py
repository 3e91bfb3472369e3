"""Ports for servers that are started later."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port that is free, as is the next one.

    Neither is one of those that connections get: such a port can be in use for a minute after its connection has ended.
    """
    for port in random.Random().sample(range(20000, 32000, 2), 100):
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", port))
            next_one.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports are free beside each other")
