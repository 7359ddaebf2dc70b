"""What the page does not ask for never reaches Gradio."""

import asyncio
import json

import pytest

from dolg_tf.apps.demo import gate
from dolg_tf.apps.demo.gate import Gate

JOIN = "/gradio_api/queue/join"


class Behind:
    """An application that answers, and remembers what reached it."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": b"behind"})


def _ask(uploads, path, method="GET", body=b"", chunks=1, **headers):
    """Returns (status, headers, bodies that came through)."""
    behind, sent = Behind(), []
    headers = {"host": "127.0.0.1:7860"} | {k.replace("_", "-"): v for k, v in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in headers.items()
        ],
    }
    step = max(1, -(-len(body) // chunks))
    parts = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts
    ]

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(Gate(behind, uploads, 1000)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), behind.bodies


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/theme.css", "/assets/index-x.js", "/static/fonts/x", "/gradio_api/upload"],
)
def test_the_page_comes_through(tmp_path, path):
    status, headers, bodies = _ask(tmp_path, path)
    assert (status, bodies) == (200, [b""]) and headers[b"x"] == b"y"
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/stream/x",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/info",
        "/gradio_api/call/x",
        "/gradio_api/run/x",
        "/monitoring",
        "/assets/../../etc/passwd",
        "/static/..",
        "//etc/passwd",
        "/runs",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_routes_do_not(tmp_path, path, method):
    status, headers, bodies = _ask(tmp_path, path, method)
    assert (status, bodies) == (404, []) and b"content-security-policy" in headers


def test_other_names_and_other_pages_do_not(tmp_path):
    assert _ask(tmp_path, "/", host="localhost:1")[0] == 200
    assert _ask(tmp_path, "/", host="evil.example:7860")[0] == 403
    assert _ask(tmp_path, "/", host="")[0] == 403
    assert _ask(tmp_path, "/", origin="http://127.0.0.1:7860")[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1:9", "http://localhost:7860"):
        assert _ask(tmp_path, "/", origin=origin)[0] == 403


def test_uploads_have_a_length_and_a_limit(tmp_path):
    upload = "/gradio_api/upload"
    assert _ask(tmp_path, upload, "POST", content_length="1000")[0] == 200
    assert _ask(tmp_path, upload, "POST", content_length="1001")[0] == 413
    endless = {"content_length": "9", "transfer_encoding": "chunked"}
    for length in ({}, {"content_length": "-1"}, {"content_length": "x"}, endless):
        assert _ask(tmp_path, upload, "POST", **length)[0] == 411


def test_a_header_may_hold_any_bytes(tmp_path):
    assert _ask(tmp_path, "/", cookie=b"caf\xe9")[0] == 200
    assert _ask(tmp_path, "/", host=b"caf\xe9")[0] == 403


@pytest.mark.parametrize("chunks", [1, 7])
def test_a_file_that_was_uploaded_may_be_named(tmp_path, chunks):
    body = json.dumps({"data": [{"path": str(tmp_path / "x/photo.jpg")}, None, 1]}).encode()
    assert _ask(tmp_path, JOIN, "POST", body, chunks)[::2] == (200, [body])
    assert _ask(tmp_path, JOIN, "POST", b"")[::2] == (200, [b""])


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "http://example.com/x.jpg",
        "https://127.0.0.1/x",
        "{uploads}/../secret",
        "{uploads}/x/../../secret",
        "photo.jpg",
        "",
        None,
        7,
        ["/etc/passwd"],
        "a\0b",
    ],
)
def test_no_other_file_may(tmp_path, path):
    if isinstance(path, str):
        path = path.replace("{uploads}", str(tmp_path))
    for value in ({"path": path}, [[{"deep": {"meta": 1, "path": path}}]]):
        body = json.dumps({"data": [value]}).encode()
        status, _, bodies = _ask(tmp_path, JOIN, "POST", body)
        assert (status, bodies) == (403, [])


def test_a_link_in_the_uploads_leads_nowhere(tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads/link").symlink_to("/etc")
    body = json.dumps({"path": str(tmp_path / "uploads/link/passwd")}).encode()
    assert _ask(tmp_path / "uploads", JOIN, "POST", body)[0] == 403


def test_what_is_no_json_or_has_no_end(tmp_path, monkeypatch):
    assert _ask(tmp_path, JOIN, "POST", b"{")[0] == 400
    assert _ask(tmp_path, JOIN, "POST", b"[" * 100000)[0] == 400
    monkeypatch.setattr(gate, "_MAX_JSON", 100)
    body = json.dumps("x" * 98).encode()
    assert _ask(tmp_path, JOIN, "POST", body, 5)[0] == 200
    assert _ask(tmp_path, JOIN, "POST", body + b" ", 5)[0] == 413


def test_a_web_socket_is_closed(tmp_path):
    async def never(*_):
        raise AssertionError

    asyncio.run(Gate(never, tmp_path, 1)({"type": "websocket"}, never, never))


def test_a_request_that_breaks_off_goes_no_further(tmp_path):
    messages = [{"type": "http.request", "body": b"{}", "more_body": True}]
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    async def never(*_):
        raise AssertionError

    head = {"type": "http", "method": "POST", "path": JOIN, "headers": [(b"host", b"localhost")]}
    asyncio.run(Gate(never, tmp_path, 1)(head, receive, never))
    assert messages == []
