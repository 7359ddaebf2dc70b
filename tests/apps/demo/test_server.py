"""Nobody keeps the server waiting, or others from it: over real connections."""

import contextlib
import logging
import socket
import threading
import time
import types

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from waiting import wait_for

from dolg_tf.apps.demo import bodies, page, server
from dolg_tf.apps.demo.collection import Progress, Searchable
from dolg_tf.apps.demo.page import Page
from dolg_tf.apps.demo.search import Query
from dolg_tf.apps.demo.turns import Turns
from dolg_tf.stage.config import InputError

SOON = 0.4  # seconds
LARGE = 20_000_000  # bytes, more than the system keeps for a connection
PHOTO = b"a photo"
MOST = 10**6  # bytes of a photo


class _Slow(threading.Event):
    """An engine that answers with a picture once it is told to."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def read(self, name, data):
        if data != PHOTO:
            raise InputError(f"{name} is not a photo")
        return Query(name, data, 1, 1)

    def picture(self, query):
        self.asked += 1
        assert self.wait(20)
        return b"jpeg"

    def thumbnail(self, id_, side):
        return self.picture(id_)

    def now(self):
        return types.SimpleNamespace(photos=Searchable((), None))

    @property
    def collection(self):
        return types.SimpleNamespace(progress=lambda: Progress(0, 0))


class _Page(Page):
    """The page, with something large."""

    @property
    def routes(self):
        large = Route("/large-text", lambda _: PlainTextResponse("x" * LARGE))
        return [Route("/", lambda _: PlainTextResponse("page")), large, *super().routes]


@pytest.fixture
def slow():
    engine = _Slow()
    yield engine
    engine.set()


@contextlib.contextmanager
def _served(engine):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, turns = listening.getsockname()[1], Turns(60)
        engine.turns = turns
        app = server.application(_Page(engine, turns, MOST), turns, port)
        with server.serve(app, listening):
            yield port


@pytest.fixture
def port(slow, monkeypatch):
    for name in ("_HEAD_SECONDS", "_UNREAD_SECONDS"):
        monkeypatch.setattr(server, name, SOON)
    monkeypatch.setattr(bodies, "_GRACE", SOON)
    with _served(slow) as port:
        yield port


def _send(port, data):
    link = socket.create_connection(("127.0.0.1", port), timeout=10)
    link.sendall(data)
    return link


def _answer(port, data):
    """Returns all that the server sends until it closes the connection."""
    with _send(port, data) as link:
        return _rest(link)


def _rest(link):
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := link.recv(65536):
            parts.append(part)
    return b"".join(parts)


def _head(port, line="GET / HTTP/1.1", *more):
    lines = [line, f"host: localhost:{port}", *more, "", ""]
    return "\r\n".join(lines).encode()


def _status(port, line="GET / HTTP/1.1", *more):
    return int(_answer(port, _head(port, line, "connection: close", *more)).split()[1])


def test_the_page(port):
    assert _status(port) == 200
    # One connection, several requests, one after another and at once.
    with _send(port, 2 * _head(port) + _head(port, "GET /x HTTP/1.1", "connection: close")) as link:
        said = _rest(link)
    assert said.count(b"HTTP/1.1 200 OK") == 2 and said.count(b"404 Not Found") == 1
    assert b"server:" not in said


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50), 400),  # TLS
        (b"\0" * 100 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no host
        (b"GET / HTTP/1.1\r\nhost: localhost:PORT\r\nhost: localhost:PORT\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: localhost:PORT\r\nx: " + b"y" * 40000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 20000 + b" HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 404),
        (b"GET /\xff HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 404),
        (b"GET http://localhost:PORT/ HTTP/1.1\r\nhost: evil.example\r\n\r\n", 403),
        (b"CONNECT evil.example:80 HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 404),
        (b"OPTIONS * HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 404),
        (b"GET /../../etc/passwd HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 404),
        (
            b"GET / HTTP/1.1\r\nhost: localhost:PORT\r\nconnection: upgrade\r\n"
            b"upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
            200,
        ),
        (
            b"GET /queue HTTP/1.1\r\nhost: localhost:PORT\r\nconnection: upgrade\r\n"
            b"upgrade: websocket\r\nsec-websocket-key: x\r\n\r\n",
            404,
        ),
        (b"POST /sent HTTP/1.1\r\nhost: localhost:PORT\r\n"
         b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /sent HTTP/1.1\r\nhost: localhost:PORT\r\n"
         b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: localhost:PORT\r\ncontent-length: 0\r\n\r\n", 405),
        (b"GET /sent HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 405),
        (b"GET /answer HTTP/1.1\r\nhost: localhost:PORT\r\nx-visitor: ../x\r\n\r\n", 400),
        (b"GET /answer?box=1,2,3 HTTP/1.1\r\nhost: localhost:PORT\r\nx-visitor: x\r\n\r\n", 400),
        (b"GET /answer?box=1,2,3,nan HTTP/1.1\r\nhost: localhost:PORT\r\nx-visitor: x\r\n\r\n",
         400),
        (b"GET /answer?k=97 HTTP/1.1\r\nhost: localhost:PORT\r\nx-visitor: x\r\n\r\n", 400),
        (b"GET /places?most=1e3 HTTP/1.1\r\nhost: localhost:PORT\r\n\r\n", 400),
    ],
)  # fmt: skip
def test_garbage_is_answered_without_a_word_in_the_log(port, caplog, data, status):
    with caplog.at_level(logging.DEBUG):
        with _send(port, data.replace(b"PORT", str(port).encode())) as link:
            assert int(link.recv(65536).split()[1]) == status
        assert _status(port) == 200
    lines = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    assert lines == []


def test_a_head_that_never_ends(port):
    """Whatever has come of it, and though more comes all the time."""
    for begun in (b"", b"GET / HT", _head(port)[:-2]):
        start = time.monotonic()
        assert _answer(port, begun) == b""
        assert SOON * 0.9 < time.monotonic() - start < SOON + 5
    start = time.monotonic()
    with _send(port, b"GET / HTTP/1.1\r\n") as link, contextlib.suppress(OSError):
        while time.monotonic() - start < 10:
            link.sendall(b"a: b\r\n")
            time.sleep(0.05)
    assert time.monotonic() - start < SOON + 5
    assert _status(port) == 200


def test_a_second_head_that_never_ends(port):
    with _send(port, _head(port) + b"GET / HTTP/1.1\r\n") as link:
        start = time.monotonic()
        assert b"page" in _rest(link) and time.monotonic() - start < 6


def _sending(port, length=7, visitor="x", *more):
    """The head of a request that sends a photo."""
    lines = f"x-visitor: {visitor}", f"content-length: {length}", *more
    return _head(port, "POST /sent?name=a.jpg HTTP/1.1", *lines)


def test_a_photo_is_received(port, slow):
    slow.set()
    said = _answer(port, _sending(port, len(PHOTO), "x", "connection: close") + PHOTO)
    assert said.split()[1] == b"200" and b'{"sent":"' in said and b"a.jpg" in said
    said = _answer(port, _sending(port, 5, "x", "connection: close") + b"wrong")
    assert said.split()[1] == b"200" and said.endswith(b'{"error":"a.jpg is not a photo"}')
    said = _answer(port, _sending(port, MOST + 1, "x", "connection: close"))
    assert said.split()[1] == b"413" and b"a.jpg has 1.0 MiB; the limit is 0.9537 MiB." in said
    chunks = _head(port, "POST /sent HTTP/1.1", "transfer-encoding: chunked", "connection: close")
    said = _answer(port, chunks + b"%x\r\n" % (MOST + 1) + bytes(MOST + 1) + b"\r\n0\r\n\r\n")
    assert said.split()[1] == b"413"


def test_a_body_that_never_ends(port):
    said = _answer(port, _sending(port, 1000, "x", "connection: close") + b"begun")
    assert said.split()[1] == b"408" and b"too slowly" in said


def test_too_many_photos_at_once(port, slow, monkeypatch):
    monkeypatch.setattr(bodies, "_GRACE", 20)
    monkeypatch.setattr(page, "_RECEIVING", 8 * 99)
    with contextlib.ExitStack() as stack:
        for number in range(8):
            stack.enter_context(_send(port, _sending(port, 99, f"v{number}")))
        wait_for(lambda: _answer(port, _sending(port, 9) + b"x").split()[1] == b"503")
    slow.set()
    said = _sending(port, len(PHOTO), "x", "connection: close") + PHOTO
    wait_for(lambda: b'{"sent"' in _answer(port, said))


def test_an_answer_that_is_not_read(port):
    """Its connection is cut; an answer that is read slowly is not."""
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", port))
        link.settimeout(10)
        link.sendall(_head(port, "GET /large-text HTTP/1.1"))
        time.sleep(3 * SOON)
        assert len(_rest(link)) < LARGE
    assert len(_answer(port, _head(port, "GET /large-text HTTP/1.1", "connection: close"))) > LARGE


def test_who_waits_keeps_nobody_waiting(port, slow):
    """Slow heads, slow bodies, answers under way: the next visitor is answered at once."""
    with contextlib.ExitStack() as stack:
        for number in range(14):
            begun = (b"GET", _sending(port, 99))
            stack.enter_context(_send(port, begun[number % 2]))
        link = stack.enter_context(_send(port, _sending(port) + PHOTO))
        wait_for(lambda: slow.asked == 1)
        start = time.monotonic()
        assert _status(port) == 200
        assert time.monotonic() - start < 2
        slow.set()
        assert b'{"sent":"' in _until(link, b'"}')


def test_thumbnails_keep_no_page_waiting(port, slow):
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(_send(port, _head(port, "GET /thumbnail?photo=a HTTP/1.1")))
        wait_for(lambda: slow.asked == 2)
        start = time.monotonic()
        assert _status(port, "GET /places HTTP/1.1") == 200
        assert time.monotonic() - start < 2
        slow.set()


def _until(link, told):
    said = b""
    while told not in said and (part := link.recv(65536)):
        said += part
    return said


def test_who_leaves_loses_their_turn(port, slow):
    with contextlib.ExitStack() as stack:
        for number in range(2):
            stack.enter_context(_send(port, _sending(port, visitor=f"v{number}") + PHOTO))
        wait_for(lambda: slow.asked == 2)
        with _send(port, _sending(port) + PHOTO):
            wait_for(lambda: len(slow.turns._turns) == 3)
        wait_for(lambda: len(slow.turns._turns) == 2)
        slow.set()
        wait_for(lambda: slow.turns._turns == [])
    assert slow.asked == 2


def test_the_end_of_the_server(slow, caplog):
    """What is under way is cut off within seconds, without a traceback."""
    with contextlib.ExitStack() as stack, caplog.at_level(logging.WARNING):
        with _served(slow) as port:
            for number in range(3):
                stack.enter_context(_send(port, _sending(port, visitor=f"v{number}") + PHOTO))
            stack.enter_context(_send(port, _sending(port, 99) + b"begun"))
            wait_for(lambda: len(slow.turns._turns) == 3)
            start = time.monotonic()
        assert time.monotonic() - start < 5
    slow.set()
    assert not any(record.exc_info for record in caplog.records)
    assert not [record for record in caplog.records if record.name != "asyncio"]


def test_too_many_connections(port, monkeypatch):
    with contextlib.ExitStack() as stack:
        for _ in range(server._CONNECTIONS + 1):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert _status(port) == 503
    wait_for(lambda: _status(port) == 200)
