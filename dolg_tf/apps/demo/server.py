"""The demo's server: what is answered by whom, and how long anybody may keep it waiting."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dolg_tf.apps.demo.calls import Calls
from dolg_tf.apps.demo.gate import API, HEAD_BYTES, Gate
from dolg_tf.apps.demo.uploads import Uploads

_CONNECTIONS = 256
_HEAD_SECONDS = 15  # until the head of a request is complete
_UNREAD_SECONDS = 30  # until a visitor goes on reading an answer
_TIDY_SECONDS = 5
_END_SECONDS = 1  # for answers under way when the server ends


def application(calls: Calls, uploads: Uploads, page: ASGIApp, port: int) -> Gate:
    """Returns the whole application, as ASGI.

    Args:
      calls: answers the page's events.
      uploads: takes their files.
      page: answers with the page itself and its files.
      port: of the server.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_):
        async with calls.running():
            tidying = asyncio.create_task(_tidy(calls, uploads))
            try:
                yield
            finally:
                tidying.cancel()

    routes = [
        Route(f"{API}/upload", uploads.receive, methods=["POST"]),
        Route(f"{API}/upload_progress", uploads.progress),
        Route(f"{API}/queue/join", calls.join, methods=["POST"]),
        Route(f"{API}/queue/data", calls.listen),
        Route(f"{API}/cancel", calls.cancel, methods=["POST"]),
        Route(f"{API}/reset", calls.cancel, methods=["POST"]),
        Mount("/", page),
    ]
    handlers = {HTTPException: _refuse}
    return Gate(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), port)


async def _tidy(calls: Calls, uploads: Uploads) -> None:
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        calls.tidy()
        uploads.tidy()


def _refuse(request: Request, error: HTTPException) -> Response:
    """Says why: events are answered in JSON, from which the page's script takes the sentence."""
    if request.url.path == f"{API}/queue/join":
        return JSONResponse({"detail": error.detail}, error.status_code)
    return PlainTextResponse(error.detail, error.status_code)


class _Server(uvicorn.Server):
    """uvicorn's, which calls `ending` before it waits for the answers under way."""

    ending: Callable[[], None]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.ending()
        await super().shutdown(sockets)


@contextlib.contextmanager
def serve(app: ASGIApp, calls: Calls, listening: socket.socket) -> Iterator[None]:
    """Serves an application, and the calls in it, in a thread while the block runs."""
    # One line for what fails; nothing for what strangers send that is not HTTP.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=_END_SECONDS,
    )
    server = _Server(config)
    server.ending = calls.end
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            if not thread.is_alive():
                raise RuntimeError("the server ended before it began")
        yield
    finally:
        server.should_exit = True
        thread.join()


class _Protocol(H11Protocol):
    """HTTP that gives up on those who send a head byte by byte, or do not read their answer."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._await_head()

    def _await_head(self) -> None:
        waits = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
        if waits and self._head is None:
            self._head = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)
        elif not waits:
            self._head = _stop(self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._unread = _stop(self._head), _stop(self._unread)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._unread = _stop(self._unread)
        super().resume_writing()


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
