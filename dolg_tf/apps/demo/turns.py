"""Who is answered when: answers are computed a few at a time, in turn, and within a time."""

import asyncio
import concurrent.futures
import contextlib
import logging
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

log = logging.getLogger(__name__)

AT_ONCE = 2  # answers that are computed at the same time; each uses all cores
WAITING = 64  # requests that wait or are answered, of all visitors
SHARE = 4  # of one visitor
BUSY = "This page is busy; try again in a moment."
_PATIENCE = 5  # times the limit of an answer: as long a request may wait for its turn


class _Turn:
    """A request that waits, or is answered."""

    def __init__(self, visitor: str):
        self.visitor, self.running = visitor, False
        self.come = asyncio.get_running_loop().create_future()


class Turns:
    """The turns of all visitors.

    Args:
      seconds: longest time that an answer may take once it is its turn.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._turns: list[_Turn] = []
        self._threads = concurrent.futures.ThreadPoolExecutor(AT_ONCE, thread_name_prefix="answer")

    def close(self) -> None:
        """Begins no further answer."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request, visitor: str, work: Callable):
        """Returns what `work` does, in a thread, once it is its turn.

        Args:
          request: whose body was read; who leaves loses their turn.
          visitor: who asks.
          work: takes nothing.

        Raises:
          HTTPException: when too much waits already, or the answer takes too long.
          ClientDisconnect: when the visitor has left before their turn.
        """
        if sum(turn.visitor == visitor for turn in self._turns) >= SHARE:
            raise HTTPException(429, f"{SHARE} requests of yours wait already; try again later.")
        if len(self._turns) >= WAITING:
            raise HTTPException(503, BUSY)
        turn = _Turn(visitor)
        self._turns.append(turn)
        try:
            self._next()
            await self._wait(request, turn)
            working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except BaseException:
            self._over(turn)
            raise
        # It takes a thread until it has ended, however that is.
        working.add_done_callback(lambda _: self._over(turn))
        await asyncio.wait([working], timeout=self._seconds)
        if not working.done():
            working.add_done_callback(_forget)
            raise HTTPException(
                503,
                f"This took longer than {self._seconds:g} s and was given up; try a smaller photo "
                "or fewer sizes, or again when the page is less busy.",
            )
        return working.result()

    async def _wait(self, request: Request, turn: _Turn) -> None:
        """Returns when it is a request's turn."""
        if turn.come.done():
            return
        left = asyncio.create_task(_gone(request))
        try:
            patience = _PATIENCE * self._seconds
            await asyncio.wait(
                {turn.come, left}, timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError, ClientDisconnect):
                await left
        if not turn.come.done():
            if left.cancelled():
                raise HTTPException(503, BUSY)
            raise ClientDisconnect

    def _next(self) -> None:
        """Gives free threads to the next: of who has least under way, then who came first."""
        while sum(turn.running for turn in self._turns) < AT_ONCE:
            ready = [turn for turn in self._turns if not turn.running]
            if not ready:
                return
            turn = min(ready, key=self._running)
            turn.running = True
            turn.come.set_result(None)

    def _running(self, turn: _Turn) -> int:
        return sum(other.running for other in self._turns if other.visitor == turn.visitor)

    def _over(self, turn: _Turn) -> None:
        self._turns.remove(turn)
        self._next()


async def _gone(request: Request) -> None:
    """Returns when the visitor has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _forget(working: asyncio.Future) -> None:
    """Logs how an answer failed that nobody waits for."""
    if not working.cancelled() and working.exception() is not None:
        log.warning("an answer failed (%.200s)", " ".join(f"{working.exception()!r}".split()))
