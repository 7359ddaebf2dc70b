"""Uploads are bounded in size, time and number, and leave nothing behind."""

import asyncio
import contextlib
import hashlib
import json

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Route
from starlette.testclient import TestClient

from dolg_tf.apps.demo import bodies, uploads
from dolg_tf.apps.demo.uploads import Uploads

MOST = 1000


@pytest.fixture
def kept(tmp_path):
    made = Uploads(tmp_path, MOST, 3 * MOST)
    yield made
    made.close()


@pytest.fixture
def client(kept):
    routes = [Route("/upload", kept.receive, methods=["POST"])]
    return TestClient(Starlette(routes=routes))


def _files(*contents):
    return [("files", (f"{number}.png", data)) for number, data in enumerate(contents)]


def test_a_file_is_kept_until_it_was_read(client, kept, tmp_path):
    answer = client.post("/upload", files=_files(b"\r\n--one", b"", b"x" * MOST))
    paths = answer.json()
    assert answer.status_code == 200 and len(set(paths)) == 3
    sent = (b"\r\n--one", b"", b"x" * MOST)
    for number, (path, data) in enumerate(zip(paths, sent, strict=True)):
        upload = kept.claim(path)
        assert upload.path.read_bytes() == data and upload.size == len(data)
        assert upload.name == f"{number}.png"
        assert upload.digest == hashlib.sha256(data).hexdigest()
        with pytest.raises(uploads.HTTPException, match="not uploaded, or was read"):
            kept.claim(path)
        kept.discard(upload)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "", None, 7, ["x"], {"path": 1}, "a\0b"])
def test_no_other_file_can_be_claimed(kept, path):
    with pytest.raises(uploads.HTTPException, match="not uploaded"):
        kept.claim(path)


@pytest.mark.parametrize(
    ("sent", "told"), [("../../x.png", "x.png"), ("C:\\photos\\x.png", "x.png"), ("..", "..")]
)
def test_a_name_leads_nowhere(client, kept, tmp_path, sent, told):
    (path,) = client.post("/upload", files=[("files", (sent, b"x"))]).json()
    upload = kept.claim(path)
    assert upload.name == told and upload.path.parent == tmp_path


PART = b'--x\r\ncontent-disposition: form-data; name="files"; filename="a"\r\n\r\n'
END = b"\r\n--x--\r\n"
KIND = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (PART + b"x" * (MOST + 1) + b"\r\n--x--\r\n", KIND, 413),
        (PART + b"x", KIND, 400),  # no end
        (b"no part", KIND, 400),
        (b"", KIND, 400),
        (PART.replace(b'; filename="a"', b"") + b"x\r\n--x--\r\n", KIND, 400),
        (b"--x\r\n" + b"a: b\r\n" * 100 + b"\r\nx\r\n--x--\r\n", KIND, 400),
        (b"--x\r\na: " + b"b" * 10000 + b"\r\n\r\nx\r\n--x--\r\n", KIND, 400),
        (b"{}", {"content-type": "application/json"}, 400),
        (b"x", {"content-type": "multipart/form-data"}, 400),
        (b"x", {"content-type": "multipart/form-data; boundary=" + "x" * 300}, 400),
        (b"x", {}, 400),
        ((PART + b"x\r\n") * 1001 + b"--x--\r\n", KIND, 413),
        (PART, KIND | {"content-length": "9" * 30}, 413),
        (PART, KIND | {"content-length": str(2**40)}, 413),
        (PART, KIND | {"content-length": "-1"}, 411),
        (PART, KIND | {"content-length": "x"}, 411),
        (PART, KIND | {"content-length": "\u0663".encode()}, 411),
        (PART, KIND | {"content-length": "3", "transfer-encoding": "chunked"}, 411),
        (PART + b"x\r\n--x--\r\n", KIND | {"content-length": "20"}, 413),  # it has more
    ],
)
def test_what_is_refused_leaves_nothing(client, kept, tmp_path, body, headers, status):
    answer = client.post("/upload", content=body, headers=headers)
    assert answer.status_code == status and "Traceback" not in answer.text
    assert list(tmp_path.iterdir()) == []
    assert (kept._coming, kept._received, kept._kept) == (0, 0, {})


def test_without_a_length(client, tmp_path):
    answer = client.post("/upload", content=iter([PART]), headers=KIND)
    assert answer.status_code == 411 and list(tmp_path.iterdir()) == []


# --- in pieces -----------------------------------------------------------------------


def _request(messages, length=100):
    """A request whose body comes as `messages`; None: nothing more comes."""

    async def receive():
        message = messages.pop(0)
        if message is None:
            await asyncio.sleep(60)
        return message

    headers = [
        (b"content-length", str(length).encode()),
        (b"content-type", KIND["content-type"].encode()),
    ]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"upload_id=u"}
    return Request(scope | {"headers": headers}, receive)


def _piece(data):
    return {"type": "http.request", "body": data, "more_body": True}


def test_an_upload_that_breaks_off(kept, tmp_path):
    with pytest.raises(ClientDisconnect):
        asyncio.run(kept.receive(_request([_piece(PART + b"x"), {"type": "http.disconnect"}])))
    assert list(tmp_path.iterdir()) == [] and kept._progress == {} and kept._coming == 0


def test_an_upload_that_is_too_slow(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(bodies, "_GRACE", 0.05)
    with pytest.raises(uploads.HTTPException, match="408: The request comes too slowly"):
        asyncio.run(kept.receive(_request([_piece(PART + b"x"), None])))
    # Not even a fast one may fall silent, or last for hours.
    for limits, pieces in (({}, [PART + b"x" * 500, None]), ({"_LONGEST": 0}, [PART])):
        with monkeypatch.context() as limited:
            limited.setattr(bodies, "_RATE", 1)
            for name, value in limits.items():
                limited.setattr(bodies, name, value)
            messages = [None if piece is None else _piece(piece) for piece in pieces]
            with pytest.raises(uploads.HTTPException, match="408"):
                asyncio.run(kept.receive(_request(messages, 900)))
    # Drop by drop is as slow.
    drops = [_piece(b"x") for _ in range(1000)]

    async def drip():
        async def receive():
            await asyncio.sleep(0.02)
            return drops.pop()

        return await bodies.read(Request({"type": "http", "headers": []}, receive), 10**6)

    with pytest.raises(uploads.HTTPException, match="408"):
        asyncio.run(drip())
    assert len(drops) > 950 and list(tmp_path.iterdir()) == []


def test_progress(kept):
    async def both():
        go = asyncio.Event()
        messages = [_piece(PART + b"x" * 50)]

        async def receive():
            if not messages:
                await go.wait()
                return {"type": "http.request", "body": END, "more_body": False}
            return messages.pop()

        request = _request([], len(PART) + 50 + len(END))
        request._receive = receive
        receiving = asyncio.create_task(kept.receive(request))
        told = await kept.progress(_request([]))
        lines = aiter(told.body_iterator)
        first = json.loads((await anext(lines))[6:])
        go.set()
        rest = [json.loads(line[6:]) async for line in lines]
        await receiving
        return [first, *rest]

    assert asyncio.run(both()) == [
        {"msg": "update", "orig_name": "a", "chunk_size": 50},
        {"msg": "done"},
    ]


# --- limits of all together ----------------------------------------------------------


def test_the_oldest_make_way_and_those_in_use_do_not(client, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "_OVERHEAD", 300)
    paths = [client.post("/upload", files=_files(b"x" * MOST)).json()[0] for _ in range(3)]
    in_use = kept.claim(paths[1])
    for _ in range(4):
        paths += client.post("/upload", files=_files(b"x" * MOST)).json()
    there = [kept.has(path) for path in paths]
    assert there[-1] and not there[0] and in_use.path.exists()
    assert len(list(tmp_path.iterdir())) == 1 + sum(there) <= 6
    # When all are in use, the next is refused.
    for path in filter(kept.has, paths):
        kept.claim(path)
    while (answer := client.post("/upload", files=_files(b"x" * MOST))).status_code == 200:
        kept.claim(answer.json()[0])
    assert answer.status_code == 503 and "busy" in answer.text
    assert len(list(tmp_path.iterdir())) <= 6


def test_what_is_only_stated_takes_no_room(client, kept):
    """Whoever states much and sends nothing keeps nobody out."""

    async def both():
        async def nothing():
            await asyncio.sleep(60)

        idle = _request([], 3 * MOST)
        idle._receive = nothing
        waiting = [asyncio.create_task(kept.receive(idle)) for _ in range(5)]
        await asyncio.sleep(0.05)
        body = PART + b"x" * MOST + END
        answer = await kept.receive(_request([_piece(body) | {"more_body": False}], len(body)))
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        return answer

    assert asyncio.run(both()).status_code == 200
    assert kept._received == kept._coming == 0


def test_too_many_at_once(client, kept):
    with contextlib.ExitStack() as stack:
        for _ in range(uploads._AT_ONCE):
            stack.enter_context(kept._place())
        assert client.post("/upload", files=_files(b"x")).status_code == 503
    assert client.post("/upload", files=_files(b"x")).status_code == 200


def test_files_that_nobody_reads_are_deleted(client, kept, tmp_path, monkeypatch):
    client.post("/upload", files=_files(b"x"))
    kept.tidy()
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(uploads, "_AGE", -1)
    kept.tidy()
    assert list(tmp_path.iterdir()) == [] and kept._kept == {} and kept._claimed == 0


def test_a_full_disk_is_told(client, kept, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads._Parts, "_part_data", full)
    answer = client.post("/upload", files=_files(b"x"))
    assert answer.status_code == 503 and "No space left on device" in answer.text
    assert list(tmp_path.iterdir()) == []
