"""Serve the HTML pages of a store in a folder to a browser on this machine, through signed links.

As with the presigned links of S3, who has a link may read this one page until the link expires. Nothing else is served.
"""

import hmac
import http.server
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from zimage.core.errors import InputError
from zimage.core.folder import make_private

HOST = "127.0.0.1"
SECRET = ".pages"  # in the store's folder; whoever can read it can read the pages themselves
SECRET_BYTES = 32
LINK_MAX_S = 7 * 24 * 3600
PAGE = re.compile(
    r"subjects/[a-z0-9][a-z0-9_-]{1,40}/pages/([0-9a-f]{16}/[a-z][a-z_]{0,40}\.html|thumbnails/[0-9a-f]{32}\.jpg)"
)
GIVEN_UP_AFTER_S = 10.0  # a client that says nothing
KINDS = {".html": "text/html; charset=utf-8", ".jpg": "image/jpeg"}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
UNKNOWN = "There is no such page: the link is not whole, or the person was forgotten."
EXPIRED = (
    "This link has expired. Start `personalize`, or `publish`, for this person again: nothing that is up to date is \
made again, and the links are new."
)


def secret_of(root: Path) -> bytes | None:
    """Return what links into the store at `root` are signed with; None where nobody has served it yet."""
    try:
        return (root / SECRET).read_bytes()
    except FileNotFoundError:
        return None


def signed(address: str, key: str, secret: bytes, *, expires: int) -> str:
    """Return the link to a page.

    Args:
        address: Of the server.
        key: Of the page in the store.
        secret: See `secret_of`.
        expires: When it does, in seconds since 1970.
    """
    return f"{address}/{key}?expires={expires}&signature={_signature(secret, key, expires)}"


@contextmanager
def served(root: Path, port: int) -> Iterator[str]:
    """Serve the pages of the store at `root` to this machine for the length of the block; yield the address.

    Raises:
        InputError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"root": root, "secret": _make_secret(root)})
    try:
        server = http.server.ThreadingHTTPServer((HOST, port), handler)
    except OSError:
        raise InputError(
            f"Port {port}, for pages, is taken; stop what uses it, or choose a --port with a free one after it."
        ) from None
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; it reveals as little of this server as possible."""

    root: Path
    secret: bytes
    timeout = GIVEN_UP_AFTER_S
    server_version, sys_version = "zimage", ""

    def do_GET(self) -> None:
        """Send the page that was asked for, or a sentence on why not."""
        status, content = _answer(self.root, self.secret, self.path)
        self.send_response(status)
        picture = status == HTTPStatus.OK and urlsplit(self.path).path.endswith(".jpg")
        self.send_header("Content-Type", KINDS[".jpg" if picture else ".html"])
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing: a line would tell the pseudonym and open the page."""


def _answer(root: Path, secret: bytes, target: str) -> tuple[HTTPStatus, bytes]:
    parts = urlsplit(target)
    key, asked = parts.path.removeprefix("/"), parse_qs(parts.query)
    expires, signature = (asked.get(name, [""])[0] for name in ("expires", "signature"))
    sound = PAGE.fullmatch(key) and re.fullmatch("[0-9]{1,12}", expires)
    if not sound or not hmac.compare_digest(signature.encode(), _signature(secret, key, int(expires)).encode()):
        return HTTPStatus.NOT_FOUND, UNKNOWN.encode()
    if time.time() > int(expires):
        return HTTPStatus.GONE, EXPIRED.encode()
    path = root / key
    if path.resolve() != root.resolve() / key or not path.is_file():
        return HTTPStatus.NOT_FOUND, UNKNOWN.encode()
    return HTTPStatus.OK, path.read_bytes()


def _signature(secret: bytes, key: str, expires: int) -> str:
    return hmac.new(secret, f"{key}\n{expires}".encode(), "sha256").hexdigest()


def _make_secret(root: Path) -> bytes:
    """Return the store's secret; the first who asks makes it, whole or not at all, for its owner only."""
    if not root.is_dir():
        make_private(root)
    aside = root / f"{SECRET}.{uuid4().hex}"
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(os.urandom(SECRET_BYTES))
    try:
        with suppress(FileExistsError):
            os.link(aside, root / SECRET)
    finally:
        aside.unlink()
    return (root / SECRET).read_bytes()
