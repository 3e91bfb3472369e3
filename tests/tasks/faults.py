"""A server that speaks S3 over HTTP and fails as networks, disks and clocks do. Run as a program, it serves for ever.

moto answers; this stands in front of it and breaks what passes. A second port leads past the faults, to check by.
python -m tests.tasks.faults SHARE SEED     prints {"faulty": PORT, "clean": PORT}
"""

import base64
import hashlib
import io
import json
import logging
import os
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode

LAG_S = 0.2  # of a listing behind what was written
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of no time: the peer sees a reset
BEFORE = ("500", "503 SlowDown", "clock skew", "reset before", "reset in mid-upload", "bits flipped in upload")
AFTER = ("answer lost", "500 though done", "reset in mid-download", "bits flipped in download", "listing lags")

Start = Callable[..., Any]
Environ = dict[str, Any]
Application = Callable[[Environ, Start], Iterable[bytes]]


class Faults:
    """A WSGI application in front of another."""

    def __init__(self, inner: Application, share: float, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._inner, self._share = inner, share
        self._random = random.Random(seed)
        self._one = threading.Lock()  # conditional requests have to be decided one by one
        self._written: dict[str, float] = {}

    def clean(self, environ: Environ, start: Start) -> Iterable[bytes]:
        """Answer truly; at /faults with what was broken so far."""
        if environ["PATH_INFO"] == "/faults":
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps({"requests": self.requests, **self.counts}).encode()]
        return self._answered(environ, _body(environ), start)

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        """Answer, or fail in one way or the other."""
        with self._one:
            self.requests += 1
            fault = self._random.choice(BEFORE + AFTER) if self._random.random() < self._share else ""
        if fault in BEFORE:
            return self._before(fault, environ, start)
        return self._after(fault, environ, start)

    def _before(self, fault: str, environ: Environ, start: Start) -> Iterable[bytes]:
        """Fail without having done anything."""
        body = _body(environ)
        if fault in {"reset in mid-upload", "bits flipped in upload"} and environ["REQUEST_METHOD"] != "PUT":
            return self._answered(environ, body, start)
        self.counts[fault] += 1
        match fault:
            case "500":
                return _error(environ, start, "500 Internal Server Error", "InternalError")
            case "503 SlowDown":
                return _error(environ, start, "503 Slow Down", "SlowDown")
            case "clock skew":
                return _error(environ, start, "403 Forbidden", "RequestTimeTooSkewed")
            case "bits flipped in upload":
                return self._answered(environ, _flipped(body), start)
            case _:
                return _reset(environ)

    def _after(self, fault: str, environ: Environ, start: Start) -> Iterable[bytes]:
        """Do what was asked, and fail to tell it right."""
        said: list[Any] = []
        content = b"".join(self._answered(environ, _body(environ), lambda *what: said.extend(what)))
        status, headers = said[0], said[1]
        listing = environ["REQUEST_METHOD"] == "GET" and re.search(r"list-type=|versions|uploads", _query(environ))
        fits = {
            "answer lost": True,
            "500 though done": status[0] == "2",
            "reset in mid-download": len(content) > 1,
            "bits flipped in download": status[0] == "2"
            and _has_checksum(headers)
            and environ["REQUEST_METHOD"] == "GET",
            "listing lags": bool(listing),
        }
        if not fits.get(fault):
            start(status, headers)
            return [content]
        self.counts[fault] += 1
        match fault:
            case "answer lost":
                return _reset(environ)
            case "500 though done":
                return _error(environ, start, "500 Internal Server Error", "InternalError")
            case "reset in mid-download":
                start(status, headers)
                return _half(content, environ)
            case "bits flipped in download":
                start(status, headers)
                return [_flipped(content)]
            case _:
                lagging = self._lagging(content)
                start(status, [(k, str(len(lagging)) if k.lower() == "content-length" else v) for k, v in headers])
                return [lagging]

    def _answered(self, environ: Environ, body: bytes, start: Start) -> Iterable[bytes]:
        """Answer as S3 does, which checks what arrives against its checksum."""
        claimed = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        is_upload = environ["REQUEST_METHOD"] == "PUT"
        if is_upload and claimed and claimed != base64.b64encode(hashlib.sha256(body).digest()).decode():
            return _error(environ, start, "400 Bad Request", "BadDigest")
        passed = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        with self._one:
            answer = list(self._inner(passed, start))
            if environ["REQUEST_METHOD"] in {"PUT", "POST"}:
                self._written[environ["PATH_INFO"].split("/", 2)[-1]] = time.monotonic()
        return answer

    def _lagging(self, content: bytes) -> bytes:
        """Leave out of a listing what was written a moment ago."""
        since = time.monotonic() - LAG_S
        new = {key for key, when in list(self._written.items()) if when > since}

        def kept(match: re.Match[bytes]) -> bytes:
            key = re.search(rb"<Key>(.*?)</Key>", match[0])
            return b"" if key and key[1].decode() in new else match[0]

        return re.sub(rb"<(Contents|Version|Upload)>.*?</\1>", kept, content, flags=re.DOTALL)


@contextmanager
def unwell(status: str, code: str, *, times: int, method: str = "") -> Iterator[str]:
    """The address of a server, with the buckets of `s3_server`, that answers its first requests with an error.

    Args:
        status: Of the answer, such as `403 Forbidden`.
        code: What S3 calls the error.
        times: How many requests, one after the other, are answered so.
        method: The only one that is; all with "".
    """
    inner, left = moto(), times

    def answered(environ: Environ, start: Start) -> Iterable[bytes]:
        nonlocal left
        body = _body(environ)
        if left and method in {"", environ["REQUEST_METHOD"]}:
            left -= 1
            return _error(environ, start, status, code)
        passed = {**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        answer: Iterable[bytes] = inner(passed, start)
        return answer

    with _served(answered) as address:
        yield address


@contextmanager
def lacking(*, ignored: Collection[str] = (), refused: Collection[str] = ()) -> Iterator[str]:
    """The address of a server, with the buckets of `s3_server`, that lacks some of what S3 can.

    Args:
        ignored: Headers and parameters of a query that it takes no notice of, such as `If-Match` and `versions`.
        refused: Those of which it says that they are not implemented.
    """
    inner = moto()

    def answered(environ: Environ, start: Start) -> Iterable[bytes]:
        body, query = _body(environ), parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        if any(_header(name) in environ or name in query for name in refused):
            return _error(environ, start, "501 Not Implemented", "NotImplemented")
        unnoticed = {_header(name) for name in ignored}
        passed = {key: value for key, value in environ.items() if key not in unnoticed}
        passed["QUERY_STRING"] = urlencode(
            {name: value for name, value in query.items() if name not in ignored}, doseq=True
        )
        answer: Iterable[bytes] = inner({**passed, "wsgi.input": io.BytesIO(body)}, start)
        return answer

    with _served(answered) as address:
        yield address


def serving_s3() -> AbstractContextManager[str]:
    """The address of a server that decides conditional requests one by one, as S3 does and moto alone does not.

    All servers of a process have the same buckets.
    """
    return _served(Faults(moto(), share=0.0, seed=0).clean)


@contextmanager
def _served(application: Application) -> Iterator[str]:
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def moto() -> Application:
    """Return a server of S3 whose buckets are those of all such servers of this process."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    application: Application = DomainDispatcherApplication(create_backend_app)
    return application


def _body(environ: Environ) -> bytes:
    length = int(environ.get("CONTENT_LENGTH") or 0)
    content: bytes = environ["wsgi.input"].read(length)
    return content


def _query(environ: Environ) -> str:
    return " ".join(f"{key}=" for key in parse_qs(environ["QUERY_STRING"], keep_blank_values=True))


def _header(name: str) -> str:
    return f"HTTP_{name.upper().replace('-', '_')}"


def _has_checksum(headers: list[tuple[str, str]]) -> bool:
    return any(name.lower().startswith("x-amz-checksum") for name, _ in headers)


def _flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def _error(environ: Environ, start: Start, status: str, code: str) -> Iterable[bytes]:
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(content)))])
    return [content] if environ["REQUEST_METHOD"] != "HEAD" else []


def _reset(environ: Environ) -> Iterable[bytes]:
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def _half(content: bytes, environ: Environ) -> Iterable[bytes]:
    yield content[: len(content) // 2]
    _reset(environ)


def serve(share: float, seed: int) -> None:
    """Serve on two ports until killed."""
    from werkzeug.serving import make_server

    from zimage.core.process import die_with_parent

    die_with_parent()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    faults = Faults(moto(), share, seed)
    servers = {
        "faulty": make_server("127.0.0.1", 0, faults, threaded=True),
        "clean": make_server("127.0.0.1", 0, faults.clean, threaded=True),
    }
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({name: server.server_port for name, server in servers.items()}), flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "key")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")
    serve(float(sys.argv[1]), int(sys.argv[2]))
