"""Requests are shared out among visitors, and answered in time."""

import asyncio
import logging
import threading
import time

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dolg_tf.apps.demo import turns
from dolg_tf.apps.demo.turns import AT_ONCE, SHARE, WAITING, Turns

SECONDS = 0.4


class Asking:
    """A request, as far as turns look at it: it is open until its visitor leaves."""

    def __init__(self):
        self.left = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}


class World:
    """Work that goes on until it is told to end, and remembers its order."""

    def __init__(self, seconds=SECONDS):
        self.turns, self.go = Turns(seconds), threading.Event()
        self.order, self.running, self.most = [], 0, 0

    def work(self, name):
        def run():
            self.order.append(name)
            self.running += 1
            self.most = max(self.most, self.running)
            assert self.go.wait(20)
            self.running -= 1
            return name

        return run

    def ask(self, visitor, name, request=None):
        work = self.turns.answer(request or Asking(), visitor, self.work(name))
        return asyncio.create_task(work)


async def _until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def _run(play, **options):
    """Runs a play, and lets its threads end."""

    async def run():
        world = World(**options)
        try:
            await play(world)
        finally:
            world.go.set()
            world.turns.close()

    asyncio.run(run())


def test_one_visitor_cannot_fill_the_queue():
    async def play(world):
        mine = [world.ask("one", number) for number in range(SHARE)]
        await _until(lambda: len(world.order) == AT_ONCE)
        with pytest.raises(HTTPException, match="requests of yours wait") as refused:
            await world.ask("one", "more")
        assert refused.value.status_code == 429
        other = world.ask("two", "other")
        await asyncio.sleep(0)
        world.go.set()
        assert await asyncio.gather(*mine) == list(range(SHARE)) and await other == "other"
        assert world.most == AT_ONCE
        assert await world.ask("one", "again") == "again"

    _run(play, seconds=20)


def test_who_has_least_under_way_comes_first():
    """Though the first visitor asked for more before the second came."""

    async def play(world):
        asked = [world.ask("one", number) for number in range(AT_ONCE + 1)]
        await _until(lambda: len(world.order) == AT_ONCE)
        first = world.turns._turns[0]
        asked.append(world.ask("two", "other"))
        await asyncio.sleep(0)
        first.running = False  # as if one of them had ended
        world.turns._next()
        assert [turn.visitor for turn in world.turns._turns if turn.running] == ["one", "two"]
        first.running = True
        world.go.set()
        await asyncio.gather(*asked)

    _run(play, seconds=20)


def test_all_together_cannot_fill_it_either():
    async def play(world):
        asked = [world.ask(f"v{number}", number) for number in range(WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(HTTPException, match="busy") as refused:
            await world.ask("late", "late")
        assert refused.value.status_code == 503
        world.go.set()
        assert await asyncio.gather(*asked) == list(range(WAITING))

    _run(play, seconds=20)


def test_who_leaves_makes_room():
    async def play(world):
        asked = [world.ask("one", number) for number in range(AT_ONCE)]
        request = Asking()
        leaving = world.ask("two", "never", request)
        await _until(lambda: len(world.order) == AT_ONCE)
        request.left.set()
        with pytest.raises(ClientDisconnect):
            await leaving
        assert len(world.turns._turns) == AT_ONCE
        world.go.set()
        await asyncio.gather(*asked)
        assert "never" not in world.order and world.turns._turns == []

    _run(play, seconds=20)


def test_an_answer_that_takes_too_long(caplog):
    async def play(world):
        start = time.monotonic()
        with pytest.raises(HTTPException, match=r"took longer than 0\.4 s") as given_up:
            await world.ask("one", "slow")
        assert given_up.value.status_code == 503
        assert SECONDS <= time.monotonic() - start < SECONDS + 5
        # Its work keeps its place until it ends.
        assert [turn.running for turn in world.turns._turns] == [True]
        world.go.set()
        await _until(lambda: world.turns._turns == [])
        assert await world.ask("one", "again") == "again"

    with caplog.at_level(logging.INFO):
        _run(play)
    assert not [record for record in caplog.records if record.name.startswith("dolg")]


def test_a_request_that_waits_too_long(monkeypatch):
    monkeypatch.setattr(turns, "_PATIENCE", 0.01)

    async def play(world):
        asked = [world.ask("one", number) for number in range(AT_ONCE)]
        await _until(lambda: len(world.order) == AT_ONCE)
        with pytest.raises(HTTPException, match="busy"):
            await world.ask("two", "never")
        world.go.set()
        await asyncio.gather(*asked)

    _run(play, seconds=20)


def test_what_fails():
    async def play(world):
        def fail():
            raise ValueError("wrong")

        with pytest.raises(ValueError, match="wrong"):
            await world.turns.answer(Asking(), "one", fail)
        assert world.turns._turns == []

    _run(play)
