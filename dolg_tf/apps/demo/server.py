"""The page's server: what is answered by whom, and how long anybody may keep it waiting."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from dolg_tf.apps.demo.gate import HEAD_BYTES, Gate
from dolg_tf.apps.demo.page import Page
from dolg_tf.apps.demo.turns import Turns

_CONNECTIONS = 256
_HEAD_SECONDS = 15  # until the head of a request is complete
_UNREAD_SECONDS = 30  # until a visitor goes on reading an answer
_TIDY_SECONDS = 5
_END_SECONDS = 1  # for answers under way when the server ends


def application(page: Page, turns: Turns, port: int) -> Gate:
    """Returns the whole application, as ASGI.

    Args:
      page: what is answered.
      turns: when.
      port: of the server.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_):
        tidying = asyncio.create_task(_tidy(page))
        try:
            yield
        finally:
            tidying.cancel()
            turns.close()
            page.close()

    handlers = {HTTPException: _refuse}
    app = Starlette(routes=page.routes, lifespan=lifespan, exception_handlers=handlers)
    return Gate(app, port)


async def _tidy(page: Page) -> None:
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        page.tidy()


async def _refuse(_: Request, error: HTTPException) -> PlainTextResponse:
    """Says why, in a sentence that the page shows."""
    said = "There is nothing here." if error.detail == "Not Found" else error.detail
    return PlainTextResponse(said, error.status_code, error.headers)


@contextlib.contextmanager
def serve(app: ASGIApp, listening: socket.socket) -> Iterator[None]:
    """Serves an application in a thread while the block runs."""
    # Nothing for what strangers send that is not HTTP; the gate logs what fails behind it.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
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
    server = uvicorn.Server(config)
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
