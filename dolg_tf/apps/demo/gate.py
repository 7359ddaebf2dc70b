"""The gate in front of the page: only its own requests come through.

Gradio serves more than the page needs: files by their path, pages of other servers, recordings.
Everything that is not listed here is refused before Gradio sees it, and the browser is told to ask
no other server. What goes wrong behind the gate is one line in the log.
"""

import asyncio
import logging
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

API = "/gradio_api"
HEAD_BYTES = 32 * 2**10  # of a request; cookies of other pages on this machine come along
_READ, _SENT = ("GET",), ("POST",)
_METHODS = {
    "/": ("GET", "HEAD"),
    "/config": _READ,
    "/favicon.ico": _READ,
    "/manifest.json": _READ,
    "/theme.css": _READ,
    f"{API}/upload": _SENT,
    f"{API}/upload_progress": _READ,
    f"{API}/queue/join": _SENT,
    f"{API}/queue/data": _READ,
    f"{API}/cancel": _SENT,
    f"{API}/reset": _SENT,
}
_ASSETS = re.compile(r"/(assets|static)(/(?!\.)[\w@+~.-]{1,100}){1,5}", re.ASCII)
# Gradio's page compiles its templates, which takes unsafe-eval; pictures are in the page itself.
_HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' "
    "'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' "
    "data:; connect-src 'self'; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """ASGI middleware.

    Args:
      app: the application behind it.
      port: of the server on 127.0.0.1.
    """

    def __init__(self, app: ASGIApp, port: int):
        self._app = app
        names = ("127.0.0.1", "localhost")
        self._hosts = {*names, *(f"{name}:{port}" for name in names)}
        self._told = f"This server answers to 127.0.0.1:{port} and localhost:{port} only."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page opens no web socket; an unanswered one is closed
        send = _with_headers(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            status, reason, headers = refusal
            await PlainTextResponse(reason, status, headers)(scope, receive, send)
            return
        try:
            await self._app(_without_addresses(scope), receive, send)
        except (ClientDisconnect, asyncio.CancelledError):  # of the latter, when the server ends
            return
        except Exception as error:  # Starlette has answered
            words = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("%s %s failed (%.200s)", scope["method"], scope["path"], words)

    def _refusal(self, scope: Scope) -> tuple[int, str, dict] | None:
        """Returns status, reason and headers to refuse a request by its head; None: it passes."""
        path, headers = scope["path"], Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        # Otherwise a web site whose name leads to this machine could read the photos.
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, self._told, {}
        if origins and origins != [f"http://{hosts[0].lower()}"]:
            return 403, "This server answers its own page only.", {}
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return 431, f"The head of a request may have at most {HEAD_BYTES} bytes.", {}
        methods = _READ if _ASSETS.fullmatch(path) else _METHODS.get(path)
        if methods is None:
            return 404, "There is nothing here.", {}
        if scope["method"] not in methods:
            allowed = {"allow": ", ".join(methods)}
            return 405, f"Only {allowed['allow']} is answered here.", allowed
        return None


def _without_addresses(scope: Scope) -> Scope:
    """Returns a request that says nothing about other hosts or, to Gradio, about other pages."""
    headers = [
        (name, value)
        for name, value in scope["headers"]
        if name != b"forwarded" and not name.startswith(b"x-forwarded-")
    ]
    query = scope.get("query_string", b"") if scope["path"].startswith(API) else b""
    return {**scope, "headers": headers, "query_string": query}


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.append(name, value)
        await send(message)

    return send_more
