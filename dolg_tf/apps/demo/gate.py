"""The gate in front of the page: only its own requests come through.

The browser is told to ask no other server. What goes wrong behind the gate is one line in the log.
"""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

HEAD_BYTES = 32 * 2**10  # of a request; cookies of other pages on this machine come along
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
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
            await PlainTextResponse(*reversed(refusal))(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except (ClientDisconnect, asyncio.CancelledError):  # of the latter, when the server ends
            return
        except Exception as error:  # Starlette has answered
            words = " ".join(f"{type(error).__name__}: {error}".split())
            log.warning("%s %s failed (%.200s)", scope["method"], scope["path"], words)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Returns status and reason to refuse a request by its head; None: it passes."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        # Otherwise a web site whose name leads to this machine could read the photos.
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, self._told
        if origins and origins != [f"http://{hosts[0].lower()}"]:
            return 403, "This server answers its own page only."
        # A web site may link to the page, but not show its pictures or make it work.
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and scope["path"] != "/":
            return 403, "This server answers its own page only."
        if sum(len(name) + len(value) for name, value in scope["headers"]) > HEAD_BYTES:
            return 431, f"The head of a request may have at most {HEAD_BYTES} bytes."
        return None


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.append(name, value)
        await send(message)

    return send_more
