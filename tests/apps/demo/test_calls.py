"""Events are checked, shared out among visitors, and answered in time."""

import contextlib
import json
import logging
import threading
import time

import pytest
from starlette.testclient import TestClient
from waiting import wait_for

from dolg_tf.apps.demo import calls, server
from dolg_tf.apps.demo.calls import SHARE, SKIP, WAITING, Calls, Event
from dolg_tf.apps.demo.search import Query
from dolg_tf.apps.demo.uploads import Uploads

PORT = 7860
SECONDS = 0.5


def _number(value, _):
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a number")
    return value


class World:
    """A page of events: they double, wait, fail, read a file, and go on step by step."""

    def __init__(self):
        self.go, self.running = threading.Event(), []
        self.most = 0

    def double(self, visitor, value):
        visitor.query = Query(b"x", value, 1)
        yield value, SKIP
        yield SKIP, f"twice: {2 * value}"

    def wait(self, visitor, value):
        self.running.append(value)
        self.most = max(self.most, len(self.running))
        try:
            yield "begun", SKIP
            assert self.go.wait(20)
            yield "done", SKIP
        finally:
            self.running.remove(value)

    def steps(self, visitor):
        for step in range(6):
            time.sleep(SECONDS / 3)
            yield step, SKIP

    def fail(self, visitor, value):
        yield "begun", SKIP
        raise ValueError("one\ntwo")

    def read(self, visitor, file):
        yield file.path.read_bytes().decode(), file.name

    def events(self):
        doers = (self.double, self.wait, self.fail)
        found = {number: Event(doer, [_number], 2, 1) for number, doer in enumerate(doers)}

        def file(value, claim):
            return claim(value["path"])

        found[4] = Event(self.steps, [], 2, 1, long=True)
        return found | {3: Event(self.read, [file], 2, 1)}


@pytest.fixture
def world():
    return World()


@pytest.fixture
def client(world, tmp_path):
    kept = Uploads(tmp_path / "uploads", 1000, 5000)
    (tmp_path / "uploads").mkdir()
    made = Calls(world.events(), kept, SECONDS)
    app = server.application(made, kept, _nothing, PORT)
    with TestClient(app, base_url=f"http://127.0.0.1:{PORT}") as client:
        client.calls, client.folder = made, tmp_path / "uploads"
        yield client
        world.go.set()


async def _nothing(scope, receive, send):
    raise AssertionError


def _join(client, event, *data, session="one", **more):
    body = {"fn_index": event, "data": list(data), "session_hash": session} | more
    return client.post("/gradio_api/queue/join", json=body)


def _hear(client, session="one"):
    answer = client.get("/gradio_api/queue/data", params={"session_hash": session})
    return [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data:")]


def _kinds(messages):
    return [message["msg"] for message in messages]


def test_an_event_is_answered_as_by_gradio(client):
    id_ = _join(client, 0, 7).json()["event_id"]
    heard = _hear(client)
    expected = ["estimation", "process_starts", *["process_generating"] * 2, "process_completed"]
    assert _kinds(heard) == [*expected, "close_stream"]
    assert {message.get("event_id") for message in heard[:-1]} == {id_}
    assert heard[2]["output"]["data"] == [7, SKIP]
    # Later values come as changes of those before.
    changes = [[["replace", [], SKIP]], [["replace", [], "twice: 14"]]]
    assert heard[3]["output"]["data"] == changes
    assert heard[4]["output"]["data"] == [SKIP, SKIP] and heard[4]["success"]
    # Nothing is left but what the visitor asked about.
    assert client.calls._sessions == {} and client.calls._visitors.of("one").query.width == 7
    assert client.calls._visitors.of("two").query is None


def test_a_file_is_read_once(client):
    files = [("files", ("a.png", b"hello"))]
    (path,) = client.post("/gradio_api/upload", files=files).json()
    assert _join(client, 3, {"path": path}).status_code == 200
    assert _hear(client)[2]["output"]["data"] == ["hello", "a.png"]
    assert list(client.folder.iterdir()) == []
    assert _join(client, 3, {"path": path}).status_code == 403


BAD = {
    "not JSON": (b"{", 400),
    "empty": (b"", 400),
    "deep": (b"[" * 100_000, 400),
    "deep objects": (b'{"data":' * 900 + b"1" + b"}" * 900, 400),
    "not UTF-8": (b'{"data": "\xff"}', 400),
    "a number of 5000 digits": (b"1" * 5000, 400),
    "a list": (b"[1]", 400),
    "nothing": (b"null", 400),
    "too long": (b'"' + b"x" * 2**20 + b'"', 413),
}


@pytest.mark.parametrize("name", BAD)
def test_bodies_that_are_none(client, caplog, name):
    body, status = BAD[name]
    answer = client.post("/gradio_api/queue/join", content=body)
    assert answer.status_code == status and isinstance(answer.json()["detail"], str)
    assert not caplog.records or all(record.name == "httpx2" for record in caplog.records)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fn_index": 9},
        {"fn_index": -1},
        {"fn_index": "0"},
        {"fn_index": True},
        {"fn_index": None},
        {"fn_index": 1e300},
        {"fn_index": [0]},
        {"session_hash": None},
        {"session_hash": ""},
        {"session_hash": "x" * 65},
        {"session_hash": "../x"},
        {"session_hash": "a\n"},
        {"session_hash": 7},
        {"session_hash": {"a": 1}},
        {"data": None},
        {"data": []},
        {"data": [1, 2]},
        {"data": {"0": 1}},
        {"data": ["x"]},
        {"data": [None]},
        {"data": [float("nan")]},
    ],
)
def test_calls_that_the_page_never_makes(client, wrong):
    body = {"fn_index": 0, "data": [1], "session_hash": "one"} | wrong
    answer = client.post("/gradio_api/queue/join", content=json.dumps(body))
    assert answer.status_code == 400 and answer.json()["detail"]
    assert client.calls._sessions == {}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "http://a/x", "{folder}/../x", "x", None, 7, [], "a\0"]
)
def test_no_other_file_may_be_named(client, path):
    if isinstance(path, str):
        path = path.replace("{folder}", str(client.folder))
    for data in ([{"path": path}], [[[{"deep": {"meta": 1, "path": path}}]]], [1]):
        answer = _join(client, 3, *data, extra={"path": path})
        assert answer.status_code == 403 and "not uploaded" in answer.json()["detail"]


def test_a_claimed_file_is_deleted_when_the_rest_is_wrong(client):
    def two(value, claim):
        claim(value["path"])
        raise ValueError("wrong")

    client.calls._events[5] = Event(None, [two], 1, 0)
    (path,) = client.post("/gradio_api/upload", files=[("files", ("a", b"x"))]).json()
    assert _join(client, 5, {"path": path}).status_code == 400
    assert list(client.folder.iterdir()) == []


# --- shares --------------------------------------------------------------------------


def test_one_visitor_cannot_fill_the_queue(client, world):
    answers = [_join(client, 1, number) for number in range(SHARE + 3)]
    assert [answer.status_code for answer in answers] == [200] * SHARE + [429] * 3
    assert "requests of yours" in answers[-1].json()["detail"]
    # Another one need not wait until all of them are answered.
    assert _join(client, 0, 1, session="two").status_code == 200
    wait_for(lambda: len(client.calls._waiting) == SHARE + 1 - calls.AT_ONCE)
    world.go.set()
    assert _kinds(_hear(client, "two"))[-2:] == ["process_completed", "close_stream"]
    assert _kinds(_hear(client)).count("process_completed") == SHARE
    assert world.most <= calls.AT_ONCE
    assert _join(client, 0, 1).status_code == 200


def test_who_has_least_under_way_comes_first(client, world):
    """Though the first visitor asked for more before the second came."""
    for number in range(calls.AT_ONCE + 1):
        _join(client, 1, number)
    _join(client, 1, 100, session="two")
    waiting = client.calls._waiting
    wait_for(lambda: len(waiting) == 2)
    assert [call.values for call in waiting] == [[calls.AT_ONCE], [100]]
    taken = []
    client.calls._waiting = _Watched(waiting, taken)
    world.go.set()
    _hear(client)
    _hear(client, "two")
    assert taken == [[100], [calls.AT_ONCE]]


class _Watched(list):
    """A line that remembers who leaves it."""

    def __init__(self, waiting, taken):
        super().__init__(waiting)
        self._taken = taken

    def remove(self, call):
        self._taken.append(call.values)
        super().remove(call)


def test_all_together_cannot_either(client, world):
    for number in range(WAITING):
        assert _join(client, 1, 1, session=f"v{number}").status_code == 200
    answer = _join(client, 1, 1, session="late")
    assert answer.status_code == 503 and "busy" in answer.json()["detail"]
    assert len(client.calls._sessions) == WAITING


def test_who_leaves_makes_room(client, world):
    _join(client, 1, 1)
    _join(client, 1, 2)
    _join(client, 1, 3)
    wait_for(lambda: len(client.calls._waiting) == 1)
    client.portal.call(_async(client.calls._drop), "one")
    assert client.calls._waiting == [] and client.calls._sessions == {}
    assert client.get("/gradio_api/queue/data?session_hash=one").status_code == 404
    world.go.set()
    _join(client, 0, 2, session="two")
    assert _kinds(_hear(client, "two"))[-1] == "close_stream"


def _async(function):
    async def run(*values):
        return function(*values)

    return run


def test_answers_that_nobody_fetches_are_dropped(client, monkeypatch):
    _join(client, 0, 1)
    client.portal.call(_async(client.calls.tidy))
    assert list(client.calls._sessions) == ["one"]
    monkeypatch.setattr(calls, "_UNHEARD", -1)
    client.portal.call(_async(client.calls.tidy))
    assert client.calls._sessions == {}


# --- time ----------------------------------------------------------------------------


def test_an_answer_that_takes_too_long(client, world):
    _join(client, 1, 1)
    start = time.monotonic()
    heard = _hear(client)
    assert SECONDS <= time.monotonic() - start < SECONDS + 5
    assert heard[-2]["msg"] == "process_completed"
    skipped, said = heard[-2]["output"]["data"]
    assert skipped == SKIP and "took longer than 0.5 s" in said and 'role="alert"' in said
    # Its work keeps its thread until it ends; what it says then, nobody hears.
    assert world.running == [1]
    world.go.set()
    wait_for(lambda: world.running == [])
    _join(client, 0, 1)
    assert _kinds(_hear(client)).count("process_completed") == 1
    assert world.running == []


def test_what_shows_progress_may_go_on_and_is_alone_of_its_kind(client, world):
    for name in ("one", "two"):
        assert _join(client, 4, session=name).status_code == 200
    _join(client, 0, 1, session="three")
    start = time.monotonic()
    assert _kinds(_hear(client, "three"))[-2:] == ["process_completed", "close_stream"]
    assert time.monotonic() - start < SECONDS  # it waits for neither
    first = _hear(client)
    assert time.monotonic() - start > SECONDS
    second = _hear(client, "two")
    assert time.monotonic() - start > 4 * SECONDS - 0.1
    for heard in (first, second):
        assert _kinds(heard).count("process_generating") == 6
        assert heard[-2]["output"]["data"] == [SKIP, SKIP]


def test_an_event_that_waits_too_long(client, world, monkeypatch):
    for number in range(calls.AT_ONCE):
        _join(client, 1, number, session=f"v{number}")
    _join(client, 0, 1)
    monkeypatch.setattr(calls, "_PATIENCE", -1)
    client.portal.call(_async(client.calls.tidy))
    heard = _hear(client)
    assert _kinds(heard) == ["estimation", "process_completed", "close_stream"]
    assert "busy" in heard[1]["output"]["data"][1]


def test_an_answer_that_fails_is_one_line(client, caplog):
    with caplog.at_level(logging.INFO, "dolg_tf"):
        _join(client, 2, 1)
        heard = _hear(client)
    assert "Something went wrong" in heard[-2]["output"]["data"][1]
    (line,) = [record.getMessage() for record in caplog.records if "dolg_tf" in record.name]
    assert line == "an answer failed (ValueError('one\\ntwo'))"


def test_an_event_is_cancelled(client, world):
    id_ = _join(client, 1, 1).json()["event_id"]
    for wrong in ({}, [], "x", {"session_hash": "one", "event_id": []}):
        assert client.post("/gradio_api/cancel", json=wrong).status_code == 200
    body = {"session_hash": "one", "event_id": id_, "fn_index": 1}
    assert client.post("/gradio_api/cancel", json=body).json() == {"success": True}
    assert _kinds(_hear(client))[-2:] == ["process_completed", "close_stream"]
    with contextlib.suppress(ValueError):
        assert client.post("/gradio_api/reset", content=b"{").status_code == 200
