"""Nobody keeps the server waiting, or others from it: over real connections."""

import contextlib
import logging
import socket
import threading
import time

import pytest
from starlette.responses import PlainTextResponse
from waiting import wait_for

from dolg_tf.apps.demo import bodies, server
from dolg_tf.apps.demo.calls import Calls, Event
from dolg_tf.apps.demo.uploads import Uploads

SOON = 0.4  # seconds
LARGE = 20_000_000  # bytes, more than the system keeps for a connection


class _Slow(threading.Event):
    """An event that takes until it is told to end."""

    def answer(self, visitor):
        yield ("begun",)
        assert self.wait(20)


async def _page(scope, receive, send):
    await PlainTextResponse("x" * LARGE if scope["path"] == "/config" else "page")(
        scope, receive, send
    )


@pytest.fixture
def slow():
    event = _Slow()
    yield event
    event.set()


@pytest.fixture
def port(tmp_path, slow, monkeypatch):
    for name in ("_HEAD_SECONDS", "_UNREAD_SECONDS"):
        monkeypatch.setattr(server, name, SOON)
    monkeypatch.setattr(bodies, "_GRACE", SOON)
    kept = Uploads(tmp_path, 10**6, 10**7)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        made = Calls({0: Event(slow.answer, [], 1, 0)}, kept, 60)
        with server.serve(server.application(made, kept, _page, port), made, listening):
            slow.calls = made
            yield port
    kept.close()


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
        (b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: localhost:PORT\r\n"
         b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: localhost:PORT\r\n"
         b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"POST /gradio_api/upload HTTP/1.1\r\nhost: localhost:PORT\r\n"
         b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
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


def test_a_body_that_never_ends(port, tmp_path):
    kind = "content-type: multipart/form-data; boundary=x"
    head = _head(
        port, "POST /gradio_api/upload HTTP/1.1", kind, "content-length: 1000", "connection: close"
    )
    part = b'--x\r\ncontent-disposition: form-data; name="a"; filename="a"\r\n\r\n'
    said = _answer(port, head + part)
    assert said.split()[1] == b"408" and b"too slowly" in said
    line = "POST /gradio_api/queue/join HTTP/1.1"
    said = _answer(port, _head(port, line, "content-length: 9", "connection: close"))
    assert said.split()[1] == b"408"
    assert list(tmp_path.iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(port, tmp_path):
    kind = "content-type: multipart/form-data; boundary=x"
    head = _head(port, "POST /gradio_api/upload HTTP/1.1", kind, "content-length: 900000")
    part = b'--x\r\ncontent-disposition: form-data; name="a"; filename="a"\r\n\r\n'
    with _send(port, head + part + b"x" * 500_000):
        wait_for(lambda: [file.stat().st_size for file in tmp_path.iterdir()] not in ([], [0]))
    wait_for(lambda: list(tmp_path.iterdir()) == [])


def test_an_answer_that_is_not_read(port):
    """Its connection is cut; an answer that is read slowly is not."""
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect(("127.0.0.1", port))
        link.settimeout(10)
        link.sendall(_head(port, "GET /config HTTP/1.1"))
        time.sleep(3 * SOON)
        assert len(_rest(link)) < LARGE
    assert len(_answer(port, _head(port, "GET /config HTTP/1.1", "connection: close"))) > LARGE


def test_who_waits_keeps_nobody_waiting(port, slow):
    """Slow heads, slow bodies, answers under way: the next visitor is answered at once."""
    with contextlib.ExitStack() as stack:
        for number in range(30):
            begun = (b"GET", _head(port, "POST /gradio_api/upload HTTP/1.1", "content-length: 99"))
            stack.enter_context(_send(port, begun[number % 2]))
        body = b'{"fn_index": 0, "data": [], "session_hash": "a"}'
        length = f"content-length: {len(body)}"
        join = _head(port, "POST /gradio_api/queue/join HTTP/1.1", length, "connection: close")
        assert b"event_id" in _answer(port, join + body)
        stream = "GET /gradio_api/queue/data?session_hash=a HTTP/1.1"
        link = stack.enter_context(_send(port, _head(port, stream)))
        assert b"begun" in _until(link, b"begun")
        start = time.monotonic()
        assert _status(port) == 200
        assert time.monotonic() - start < 2
        slow.set()
        assert b"close_stream" in _until(link, b"close_stream")


def _until(link, told):
    said = b""
    while told not in said and (part := link.recv(65536)):
        said += part
    return said


def test_who_leaves_takes_their_events_along(port, slow):
    body = b'{"fn_index": 0, "data": [], "session_hash": "a"}'
    length = f"content-length: {len(body)}"
    join = _head(port, "POST /gradio_api/queue/join HTTP/1.1", length, "connection: close")
    assert b"event_id" in _answer(port, join + body)
    stream = "GET /gradio_api/queue/data?session_hash=a HTTP/1.1"
    with _send(port, _head(port, stream)) as link:
        _until(link, b"begun")
    wait_for(lambda: slow.calls._sessions == {})
    assert _status(port, stream) == 404


def test_the_end_of_the_server(tmp_path, slow, caplog):
    """Streams end; what does not is cut off within seconds, without a traceback."""
    kept = Uploads(tmp_path, 10**6, 10**7)
    made = Calls({0: Event(slow.answer, [], 1, 0)}, kept, 60)
    body = b'{"fn_index": 0, "data": [], "session_hash": "a"}'
    with contextlib.ExitStack() as stack, caplog.at_level(logging.WARNING):
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listening.getsockname()[1]
        with server.serve(server.application(made, kept, _page, port), made, listening):
            join = "POST /gradio_api/queue/join HTTP/1.1", f"content-length: {len(body)}"
            assert b"event_id" in _answer(port, _head(port, *join, "connection: close") + body)
            stream = _head(port, "GET /gradio_api/queue/data?session_hash=a HTTP/1.1")
            link = stack.enter_context(_send(port, stream))
            _until(link, b"begun")
            kind = "content-type: multipart/form-data; boundary=x"
            upload = _head(port, "POST /gradio_api/upload HTTP/1.1", kind, "content-length: 99")
            stack.enter_context(_send(port, upload + b"--x\r\n"))
            time.sleep(0.2)
            start = time.monotonic()
        assert time.monotonic() - start < 5 and _rest(link).endswith(b"0\r\n\r\n")
    slow.set()
    kept.close()
    assert not any(record.exc_info for record in caplog.records)
    assert list(tmp_path.iterdir()) == []


def test_too_many_connections(port, monkeypatch):
    with contextlib.ExitStack() as stack:
        for _ in range(server._CONNECTIONS + 1):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert _status(port) == 503
    wait_for(lambda: _status(port) == 200)
