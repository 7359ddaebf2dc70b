"""Events of the page: checked, queued, answered within a time, and told to its visitor.

The page's own script asks and listens as it would with Gradio's queue. That one runs what it is
given, keeps answers that nobody fetches, and lets one visitor fill it; so it is not used.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from dolg_tf.apps.demo import bodies, html
from dolg_tf.apps.demo.uploads import NOT_THERE, Upload, Uploads
from dolg_tf.apps.demo.visitors import Visitor, Visitors

log = logging.getLogger(__name__)

AT_ONCE = 2  # answers that are computed at the same time; each uses all cores
WAITING = 64  # events under way, of all visitors
SHARE = 4  # of one visitor
BUSY = "This page is busy; try again in a moment."
_PATIENCE = 5  # times the limit of an answer: as long an event may wait for its turn
_MAX_JSON = 2**20  # bytes: enough to name a thousand uploaded files
_UNHEARD = 60  # seconds until answers that nobody fetches are dropped
_HEARTBEAT = 15  # seconds
_SESSION = re.compile(r"[\w-]{1,64}", re.ASCII)
SKIP = {"__type__": "update"}  # leaves an output as it is


@dataclasses.dataclass(frozen=True)
class Event:
    """What an event of the page does.

    Attributes:
      answer: takes the visitor and the values; yields the values of all outputs, once or more.
      inputs: for each value, a function that returns it for Python, from JSON and from a function
        that returns an uploaded file by its path. It raises ValueError for what the page never
        sends.
      outputs: their number.
      said: which of them shows messages.
      long: it may go on for minutes; only one such is answered at a time.
    """

    answer: Callable[..., Iterator[tuple]]
    inputs: Sequence[Callable[[Any, Callable[[object], Upload]], Any]]
    outputs: int
    said: int
    long: bool = False


class _Call:
    """An event under way."""

    def __init__(self, event: Event, session: "_Session", values: list, uploads: list[Upload]):
        self.id, self.born = secrets.token_hex(16), asyncio.get_running_loop().time()
        self.event, self.session, self.values, self.uploads = event, session, values, uploads
        self.running = self.over = False  # over: the visitor was told the last of it, or has left
        self.told, self.news = 0, 0.0  # number of values, and when the last of them came


class _Session:
    """What one tab of a browser waits for."""

    def __init__(self, visitor: Visitor, now: float):
        self.visitor, self.heard = visitor, now
        self.calls: dict[str, _Call] = {}
        self.messages: collections.deque[tuple[dict, _Call | None]] = collections.deque()
        self.changed, self.listener = asyncio.Event(), None

    def tell(self, call: _Call, message: dict, last: bool = False) -> None:
        call.over = last
        self.messages.append((message | {"event_id": call.id}, call if last else None))
        self.changed.set()


class Calls:
    """The events of a page, for all visitors.

    Args:
      events: by Gradio's number.
      uploads: the files that events may name.
      seconds: time until an answer that is computed shows something, and then more.
    """

    def __init__(self, events: dict[int, Event], uploads: Uploads, seconds: float):
        self._events, self._uploads, self._seconds = events, uploads, seconds
        self._visitors = Visitors()
        self._sessions: dict[str, _Session] = {}
        self._waiting: list[_Call] = []
        self._long = 0  # of those that are answered
        self._changed = asyncio.Condition()
        self._threads = concurrent.futures.ThreadPoolExecutor(AT_ONCE, thread_name_prefix="answer")

    @contextlib.asynccontextmanager
    async def running(self):
        """Answers while the block runs."""
        tasks = [asyncio.create_task(self._work()) for _ in range(AT_ONCE)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)

    def end(self) -> None:
        """Ends all that visitors wait for."""
        for name in list(self._sessions):
            self._drop(name)

    def tidy(self) -> None:
        """Drops what nobody has fetched in time."""
        now = asyncio.get_running_loop().time()
        for name, session in list(self._sessions.items()):
            if session.listener is None and now - session.heard > _UNHEARD:
                self._drop(name)
        for call in list(self._waiting):
            if now - call.born > _PATIENCE * self._seconds:
                self._waiting.remove(call)
                self._clear(call)
                self._finish(call, BUSY)
        self._visitors.tidy()

    # --- what the page asks for ----------------------------------------------------------

    async def join(self, request: Request) -> JSONResponse:
        """Queues an event; answers with its id."""
        body = await bodies.read(request, _MAX_JSON)
        name, event, data = await asyncio.to_thread(self._parse, body)
        under_way = sum(len(session.calls) for session in self._sessions.values())
        session = self._sessions.get(name)
        if session is not None and len(session.calls) >= SHARE:
            raise HTTPException(429, f"{SHARE} requests of yours wait already; try again later.")
        if under_way >= WAITING:
            raise HTTPException(503, BUSY)
        values, claimed = self._values(event, data)
        if session is None:
            now = asyncio.get_running_loop().time()
            session = self._sessions[name] = _Session(self._visitors.of(name), now)
        else:
            session.visitor = self._visitors.of(name)
        call = _Call(event, session, values, claimed)
        session.calls[call.id] = call
        place = {"msg": "estimation", "rank": len(self._waiting), "queue_size": under_way + 1}
        session.tell(call, place | {"rank_eta": None, "success": True})
        async with self._changed:
            self._waiting.append(call)
            self._changed.notify()
        return JSONResponse({"event_id": call.id})

    async def listen(self, request: Request) -> StreamingResponse:
        """Tells a visitor what their events come to, until none is left."""
        name = request.query_params.get("session_hash", "")
        session = self._sessions.get(name)
        if session is None:
            raise HTTPException(404, "Nothing is under way for this session.")
        return StreamingResponse(self._stream(name, session), media_type="text/event-stream")

    async def cancel(self, request: Request) -> JSONResponse:
        """Ends an event that its visitor no longer waits for."""
        body = await bodies.read(request, _MAX_JSON)
        with contextlib.suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
            asked = json.loads(body)
            call = self._sessions[asked["session_hash"]].calls[asked["event_id"]]
            self._finish(call, None)
        return JSONResponse({"success": True})

    # --- what a request holds ------------------------------------------------------------

    def _parse(self, body: bytes) -> tuple[str, Event, list]:
        """Returns (session, event, data) of a request to join."""
        try:
            asked = json.loads(body)
            there = all(self._uploads.has(path) for path in _paths(asked))
        except (ValueError, RecursionError):
            raise HTTPException(400, "The request is not JSON.") from None
        if not isinstance(asked, dict):
            raise HTTPException(400, "The request is not a JSON object.")
        if not there:
            raise HTTPException(403, NOT_THERE)
        session, number, data = (asked.get(key) for key in ("session_hash", "fn_index", "data"))
        if not isinstance(session, str) or not _SESSION.fullmatch(session):
            raise HTTPException(400, "session_hash must be 1 to 64 letters, digits, - or _.")
        if type(number) is not int or number not in self._events:
            raise HTTPException(400, "fn_index must be the number of an event of this page.")
        event = self._events[number]
        if not isinstance(data, list) or len(data) != len(event.inputs):
            raise HTTPException(400, f"data must be a list of {len(event.inputs)} values.")
        return session, event, data

    def _values(self, event: Event, data: list) -> tuple[list, list[Upload]]:
        """Returns the values of an event and the files among them, which are claimed."""
        claimed: list[Upload] = []

        def claim(path: object) -> Upload:
            claimed.append(self._uploads.claim(path))
            return claimed[-1]

        try:
            pairs = zip(event.inputs, data, strict=True)
            return [check(value, claim) for check, value in pairs], claimed
        except BaseException as error:
            for upload in claimed:
                self._uploads.discard(upload)
            if isinstance(error, ValueError):
                raise HTTPException(400, f"data: {error}.") from None
            raise

    # --- answers -------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(self._next)
                call = self._next()
                self._waiting.remove(call)
                call.running = True
                self._long += call.event.long
            try:
                await self._answer(call)
            finally:
                call.running = False
                self._long -= call.event.long
                self._clear(call)
            async with self._changed:  # another long one may wait for this
                self._changed.notify_all()

    def _next(self) -> _Call | None:
        """Returns the event that comes next: of who has least under way, then who came first."""
        ready = (call for call in self._waiting if not (call.event.long and self._long))
        return min(ready, key=_running, default=None)

    def _clear(self, call: _Call) -> None:
        for upload in call.uploads:
            self._uploads.discard(upload)

    async def _answer(self, call: _Call) -> None:
        if call.over:
            return
        call.session.tell(call, {"msg": "process_starts", "eta": None, "success": True})
        loop = asyncio.get_running_loop()
        call.news = loop.time()
        working = loop.run_in_executor(self._threads, self._run, loop, call)
        while not working.done() and (left := call.news + self._seconds - loop.time()) > 0:
            await asyncio.wait([working], timeout=left)
        if not working.done():
            self._finish(
                call,
                f"This took longer than {self._seconds:g} s and was given up; try a smaller photo "
                "or fewer scales, or again when the page is less busy.",
            )
            await asyncio.wait([working])  # it takes a thread until it has ended
        error = working.exception()
        if error is not None:
            log.warning("an answer failed (%.200s)", " ".join(f"{error!r}".split()))
        self._finish(call, None if error is None else "Something went wrong here; try again.")

    def _run(self, loop: asyncio.AbstractEventLoop, call: _Call) -> None:
        answers = call.event.answer(call.session.visitor, *call.values)
        with contextlib.closing(answers):
            for values in answers:
                if call.over:
                    return
                loop.call_soon_threadsafe(self._show, call, values)

    def _show(self, call: _Call, values: Sequence) -> None:
        if call.over:
            return
        # After the first, the page's script expects the changes of each value.
        data = [[["replace", [], value]] for value in values] if call.told else list(values)
        call.told, call.news = call.told + 1, asyncio.get_running_loop().time()
        output = {"data": data, "is_generating": True}
        call.session.tell(call, {"msg": "process_generating", "output": output, "success": True})

    def _finish(self, call: _Call, said: str | None) -> None:
        """Tells the visitor that an event is over, with a message or without."""
        if call.over:
            return
        data = [SKIP] * call.event.outputs
        if said is not None:
            data[call.event.said] = html.message(said)
        output = {"data": data, "is_generating": False}
        message = {"msg": "process_completed", "output": output, "success": True}
        call.session.tell(call, message, last=True)

    # --- what visitors hear --------------------------------------------------------------

    async def _stream(self, name: str, session: _Session) -> AsyncIterator[str]:
        listener = session.listener = object()
        closing = False
        session.changed.set()  # whoever listened before leaves
        try:
            while session.listener is listener:
                while session.messages:
                    message, ended = session.messages.popleft()
                    yield _line(message)
                    if ended is not None:
                        session.calls.pop(ended.id, None)
                if not session.calls:
                    closing = True
                    yield _line({"msg": "close_stream"})
                    return
                session.changed.clear()
                try:
                    await asyncio.wait_for(session.changed.wait(), _HEARTBEAT)
                except TimeoutError:
                    yield _line({"msg": "heartbeat"})
        finally:
            if session.listener is listener and self._sessions.get(name) is session:
                session.listener, session.heard = None, asyncio.get_running_loop().time()
                if not (closing and session.calls):  # they may ask again while the stream closes
                    self._drop(name)

    def _drop(self, name: str) -> None:
        """Ends all that a visitor waits for: they have left."""
        session = self._sessions.pop(name)
        for call in session.calls.values():
            call.over = True
            if call in self._waiting:
                self._waiting.remove(call)
                self._clear(call)
        session.listener = None
        session.changed.set()


def _paths(value) -> Iterator[object]:
    """Yields every value of a key `path` in a JSON value, at any depth."""
    if isinstance(value, dict):
        if "path" in value:
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _paths(item)


def _running(call: _Call) -> int:
    return sum(other.running for other in call.session.calls.values())


def _line(message: dict) -> str:
    return f"data: {json.dumps(message)}\n\n"
