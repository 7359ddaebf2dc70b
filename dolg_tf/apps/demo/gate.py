"""The gate in front of Gradio's server: only the page's own requests come through.

Gradio serves more than the page needs: files by their path, pages of other servers, recordings. It
also fetches an address that a request names in place of an uploaded file. Everything that is not
listed here is refused before Gradio sees it, and the browser is told to ask no other server.
"""

import json
import pathlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HOSTS = ("127.0.0.1", "localhost")
_PATHS = (
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/theme.css",
    "/gradio_api/startup-events",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
)
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_UPLOAD = "/gradio_api/upload"
_MAX_JSON = 4 * 2**20  # bytes: enough to name a thousand uploaded files
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
      uploads: folder that uploads go to; no other path may be named by a request.
      max_upload: largest upload, of one or several files, in bytes.
    """

    def __init__(self, app: ASGIApp, uploads: pathlib.Path, max_upload: int):
        self._app, self._max_upload = app, max_upload
        self._uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page opens no web socket; an unanswered one is closed
        app, request = self._app, Request(scope, receive)
        refusal = self._refusal(scope, request.headers)
        if refusal is None and request.method == "POST" and scope["path"] != _UPLOAD:
            try:
                body = await _read(request)
            except ClientDisconnect:
                return
            refusal = self._refusal_of(body)
            receive = _again(body, receive)
        if refusal is not None:
            status, reason = refusal
            app = PlainTextResponse(reason, status)
        await app(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        """Returns the status and the reason to refuse a request by its head; None: it passes."""
        path, host = scope["path"], headers.get("host", "")
        # Otherwise a web site whose name leads to this machine could read the photos.
        if host.rsplit(":", 1)[0] not in _HOSTS:
            return 403, "This server answers to 127.0.0.1 and localhost only."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return 403, "This server answers its own page only."
        if path not in _PATHS and (not path.startswith(_FOLDERS) or ".." in path):
            return 404, "There is nothing here."
        if path == _UPLOAD and scope["method"] == "POST":
            size = headers.get("content-length", "")
            # In chunks it could be longer than it states.
            if not size.isdecimal() or "transfer-encoding" in headers:
                return 411, "An upload must state its length."
            if int(size) > self._max_upload:
                return 413, f"An upload may have at most {self._max_upload / 2**20:.4g} MiB."
        return None

    def _refusal_of(self, body: bytes | None) -> tuple[int, str] | None:
        """As `_refusal`, by the body of a request, which is None when it is too large."""
        if body is None:
            return 413, f"A request may have at most {_MAX_JSON} bytes."
        try:
            outside = body and not all(map(self._is_upload, _paths(json.loads(body))))
        except (ValueError, RecursionError):
            return 400, "The request is not JSON."
        return (403, "The request names a file that was not uploaded.") if outside else None

    def _is_upload(self, path) -> bool:
        try:
            return pathlib.Path(path).resolve().is_relative_to(self._uploads)
        except (TypeError, ValueError, OSError):
            return False


def _paths(value) -> list:
    """Returns every value of a key `path` in a JSON value, at any depth."""
    if isinstance(value, dict):
        found = [value["path"]] if "path" in value else []
        return found + [path for item in value.values() for path in _paths(item)]
    if isinstance(value, list):
        return [path for item in value for path in _paths(item)]
    return []


async def _read(request: Request) -> bytes | None:
    """Returns the body of a request; None when it is too large."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_JSON:
            return None
    return body


def _again(body: bytes | None, receive: Receive) -> Receive:
    """Returns a `receive` that repeats a body that was read, and then continues."""
    first = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def again() -> Message:
        return next(first, None) or await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.append(name, value)
        await send(message)

    return send_more
