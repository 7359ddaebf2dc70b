"""Only requests of the page itself come through."""

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


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/answer?photo=x"])
def test_the_page_comes_through(client, path):
    answer = client.get(path)
    assert answer.status_code == 200 and answer.headers["x"] == "y"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("site", "path", "status"),
    [
        ("same-origin", "/thumbnail?photo=a", 200),
        ("none", "/thumbnail?photo=a", 200),
        ("cross-site", "/", 200),  # a link to the page
        ("cross-site", "/thumbnail?photo=a", 403),
        ("same-site", "/answer?photo=a", 403),
        ("cross-site", "/file?photo=a", 403),
    ],
)
def test_other_sites_show_no_pictures_of_it(client, site, path, status):
    assert client.get(path, headers={"sec-fetch-site": site}).status_code == status


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
