"""Refuse requests to Prefect's server that come from web pages of other origins or for foreign host names."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

ANY = "*"  # as PREFECT_SERVER_CORS_ALLOWED_ORIGINS has it where nobody set it


class AllowedOrigins:
    """ASGI middleware that answers 403 to a foreign `Host` or `Origin`, and closes web sockets that have one.

    CORS only hides answers from a foreign page: its requests are carried out, and web sockets are not covered. The
    host is checked because the name of a foreign page can be made to resolve to this machine. Programs send no origin.

    Args:
        app: What it protects.
        origins: Those of the server's own pages, such as http://127.0.0.1:4200.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app, self._origins = app, set(origins)
        self._hosts = {urlsplit(origin).netloc for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(Headers(scope=scope))):
            refuse = WebSocketClose(1008, refusal) if scope["type"] == "websocket" else PlainTextResponse(refusal, 403)
            await refuse(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str:
        if headers.get("host") not in self._hosts:
            return f"This server is only reached as {' or '.join(sorted(self._hosts))}."
        if "origin" in headers and headers["origin"] not in self._origins:
            return "Pages of other origins may not use this server."
        return ""


def protected(app: ASGIApp) -> ASGIApp:
    """Return Prefect's server behind `AllowedOrigins`, if its own origins are configured, and as it is if not.

    They are in PREFECT_SERVER_CORS_ALLOWED_ORIGINS. Prefect has no setting for hosts. Its server's requests to itself,
    such as those of automations, go to `app` and not through here.
    """
    from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS

    origins = PREFECT_SERVER_CORS_ALLOWED_ORIGINS.value().split(",")
    return app if ANY in origins else AllowedOrigins(app, origins)
