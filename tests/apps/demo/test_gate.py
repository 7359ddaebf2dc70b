"""What the page does not ask for never reaches Gradio."""

import logging

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from dolg_tf.apps.demo.gate import Gate

PORT = 7860


async def _behind(request: Request) -> PlainTextResponse:
    names = ",".join(sorted(request.headers))
    told = f"{request.url.path} {request.url.query} {request.headers['host']} {names}"
    return PlainTextResponse(told, headers={"x": "y"})


async def _break(request: Request):
    raise ValueError("one\ntwo")


async def _break_late(request: Request) -> StreamingResponse:
    async def parts():
        yield "begun"
        raise RuntimeError("in mid-stream")

    return StreamingResponse(parts())


ROUTES = [
    Route("/config", _break),
    Route("/theme.css", _break_late),
    Route("/{path:path}", _behind, methods=["GET", "POST", "PUT", "OPTIONS", "DELETE"]),
]


@pytest.fixture
def client():
    app = Gate(Starlette(routes=ROUTES), PORT)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}")


@pytest.mark.parametrize(
    "path", ["/", "/favicon.ico", "/assets/index-x.js", "/static/fonts/x", "/gradio_api/queue/data"]
)
def test_the_page_comes_through(client, path):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["x"] == "y"
    assert "default-src 'self'" in answer.headers["content-security-policy"]


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
        "/gradio_api/heartbeat/x",
        "/gradio_api/queue/join/",
        "/monitoring",
        "/assets/%2e%2e/%2e%2e/etc/passwd",
        "/assets/.hidden",
        "/assets/a%00b",
        "/assets/a%0ab",
        f"/assets/{'x' * 300}",
        "/assets/",
        "/static/..%2f",
        "/%2fetc/passwd",
        "/runs",
        "/docs",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_routes_do_not(client, path, method):
    answer = client.request(method, path)
    assert answer.status_code == 404 and "x" not in answer.headers
    assert "content-security-policy" in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/", "GET, HEAD"),
        ("OPTIONS", "/", "GET, HEAD"),
        ("DELETE", "/assets/x.js", "GET"),
        ("GET", "/gradio_api/queue/join", "POST"),
        ("HEAD", "/gradio_api/upload", "POST"),
        ("POST", "/gradio_api/queue/data", "GET"),
        ("PROPFIND", "/config", "GET"),
    ],
)
def test_other_methods_do_not(client, method, path, allowed):
    answer = client.request(method, path)
    assert answer.status_code == 405 and answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:7860", "localhost:7860", "LOCALHOST:7860", "127.0.0.1", "localhost"],
)
def test_its_own_names(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200
    own = {"host": host, "origin": f"http://{host.lower()}"}
    assert client.get("/", headers=own).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "evil.example",
        "",
        "localhost:7861",
        "localhost:",
        "localhost:@evil.example",
        "127.0.0.1:7860@evil.example",
        "user@localhost:7860",
        "localhost.:7860",
        "localhost.evil.example:7860",
        "127.0.0.1.evil.example:7860",
        "[::1]:7860",
        "::1",
        "127.1:7860",
        "0x7f000001:7860",
        "localhost:07860",
        "localhost:7860, evil.example",
        b"caf\xe9",
    ],
)
def test_other_names_do_not(client, host):
    answer = client.get("/", headers={"host": host, "x-forwarded-host": "localhost:7860"})
    assert answer.status_code == 403
    assert "127.0.0.1:7860 and localhost:7860 only" in answer.text


def test_two_hosts_are_none(client):
    hosts = [("host", "localhost:7860"), ("host", "localhost:7860")]
    assert client.get("/", headers=hosts).status_code == 403


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "https://127.0.0.1:7860",
        "null",
        "",
        "http://127.0.0.1:9",
        "http://localhost:7860",
        "http://127.0.0.1:7860/",
        "x://127.0.0.1:7860",
        "http://127.0.0.1:7860@evil.example",
    ],
)
def test_other_pages_do_not(client, origin):
    assert client.get("/", headers={"origin": origin}).status_code == 403


def test_gradio_hears_of_no_other_host(client):
    spoofed = {
        "x-forwarded-host": "evil.example",
        "x-forwarded-proto": "https",
        "forwarded": "host=evil.example",
    }
    told = client.get("/?page=none&deep_link=x", headers=spoofed).text
    assert "forwarded" not in told and told.startswith("/  127.0.0.1:7860 ")
    # Its own part of the server is asked with parameters.
    assert "session_hash=x" in client.get("/gradio_api/queue/data?session_hash=x").text


def test_a_header_may_hold_any_bytes(client):
    assert client.get("/", headers={"cookie": b"caf\xe9"}).status_code == 200


def test_a_head_has_a_limit(client):
    assert client.get("/", headers={"cookie": "x" * 30_000}).status_code == 200
    assert client.get("/", headers={"cookie": "x" * 33_000}).status_code == 431


def test_what_fails_is_one_line(client, caplog):
    with caplog.at_level(logging.INFO, "dolg_tf.apps.demo.gate"):
        answer = client.get("/config")
        assert answer.status_code == 500 and answer.text == "Internal Server Error"
        assert "content-security-policy" in answer.headers
        client.get("/theme.css")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("dolg")]
    assert lines == [
        "GET /config failed (ValueError: one two)",
        "GET /theme.css failed (RuntimeError: in mid-stream)",
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_a_web_socket_is_closed(client):
    import asyncio

    async def never(*_):
        raise AssertionError

    asyncio.run(Gate(never, PORT)({"type": "websocket"}, never, never))
