"""The page in a browser: a photo, a box, the answer; and what it refuses."""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys

import demo_world
import numpy as np
import pytest
from demo_world import COLOURS, encoded, scene
from PIL import Image
from waiting import wait_for

from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.directory import Index

pytestmark = pytest.mark.slow
MAX_BYTES, MAX_PIXELS = 300_000, 200_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
UPLOADS = {"photo": "#file input", "folder": "input[webkitdirectory]"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The command in a process of its own: (port, folder of its temporary files, process)."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("demo")
    model, built = demo_world.make(folder)
    calibration = {"threshold": 0.97, "precision": 0.95}
    directory.set_calibration(built, calibration, Index.open(built).meta)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"saved_model": model, "index": built, "port": port, "max_added": 3}
    flags |= {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS}
    temporary = folder / "temporary"
    temporary.mkdir()
    # What would open doors, if the page heeded it.
    more = {"TMPDIR": str(temporary), "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True"}
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "dolg_tf",
                "demo",
                *(f"--{k}={v}" for k, v in flags.items()),
            ],
            env=os.environ | more,
            stdout=output,
            stderr=output,
            # Tests that a shell runs in the background ignore it, and so would the server.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for(lambda: "ready at" in log.read_text() or process.poll() is not None, seconds=120)
        assert process.poll() is None, log.read_text()
        yield port, temporary, process
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, log.read_text()
        assert list(temporary.iterdir()) == []
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()


# --- in a browser --------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with api.sync_playwright() as playwright:
        # The sandbox needs rights that root in a container has not.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextlib.contextmanager
def _visit(browser, port, **options):
    """Opens the page as a new visitor; other servers are never asked."""
    address, asked = f"http://127.0.0.1:{port}", []
    context = browser.new_context(**options)

    def watch(route):
        asked.append(route.request.url)
        inside = route.request.url.startswith((f"{address}/", "data:", "blob:"))
        (route.continue_ if inside else route.abort)()

    context.route("**/*", watch)
    visit = context.new_page()
    visit.set_default_timeout(20_000)
    visit.goto(address)
    visit.wait_for_selector(UPLOADS["photo"], state="attached")
    try:
        yield visit
        assert len(asked) > 5
        assert [url for url in asked if not url.startswith((f"{address}/", "data:", "blob:"))] == []
    finally:
        context.close()


def _give(visit, image_or_bytes, name="photo.png"):
    data = image_or_bytes if isinstance(image_or_bytes, bytes) else encoded(image_or_bytes)
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    visit.set_input_files(UPLOADS["photo"], files=[file])


def _leads(visit, name):
    """Waits until a photo is the first that was found."""
    visit.locator(".found .photo").first.locator(f".id[title='{name}']").wait_for()


def _drag(visit, start, end):
    """Draws a box between two points, in shares of the photo."""
    frame = visit.locator(".stage .frame")
    frame.scroll_into_view_if_needed()
    area = frame.bounding_box()
    places = [
        (area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)
    ]
    visit.mouse.move(*places[0])
    visit.mouse.down()
    visit.mouse.move(*places[1], steps=4)
    visit.mouse.up()


def _box(visit):
    labels = ("Left", "Top", "Right", "Bottom")
    return [int(visit.get_by_label(label, exact=True).input_value()) for label in labels]


def test_photo_box_and_answer(server, browser, tmp_path):
    size = {"width": 1280, "height": 900}
    with _visit(browser, server[0], viewport=size) as visit:
        _give(visit, scene("yellow"))
        _leads(visit, "yellow")
        first = visit.locator(".found .photo").first
        assert first.locator(".score").inner_text() == "1.000"
        assert first.locator(".badge").inner_text() == "match"
        assert visit.locator(".verdict strong").inner_text() == "Match"
        assert visit.locator(".found .photo").count() == len(COLOURS)
        visit.locator(".map img").wait_for()
        # A photo of three scenes: what is drawn is what is searched for.
        _give(visit, scene("green", "violet", "a/cyan", width=480, height=320))
        visit.get_by_text("480 x 320 pixels").wait_for()
        visit.locator(".verdict.no-match").wait_for()
        for column, name in enumerate(("green", "violet", "a/cyan")):
            _drag(visit, ((column + 0.1) / 3, 0.1), ((column + 0.9) / 3, 0.9))
            _leads(visit, name)
            visit.locator(".verdict.match").wait_for()
            expected = [480 * (column + 0.1) / 3, 32, 480 * (column + 0.9) / 3, 288]
            np.testing.assert_allclose(_box(visit), expected, atol=3)
            assert visit.locator(".stage .box").is_visible()
        visit.screenshot(path=tmp_path / "page.png", full_page=True)
        picture = Image.open(tmp_path / "page.png")
        assert picture.width == 1280 and picture.convert("RGB").getcolors(10**7)[500:]
        visit.get_by_role("button", name="Whole photo").click()
        visit.locator(".verdict.no-match").wait_for()
        assert _box(visit) == [0, 0, 480, 320] and not visit.locator(".stage .box").is_visible()
        # The keyboard's way.
        visit.get_by_label("Right", exact=True).fill("150")
        visit.locator(".stage .box").wait_for()
        visit.get_by_label("Right", exact=True).press("Enter")
        _leads(visit, "green")


def test_controls(server, browser):
    with _visit(browser, server[0]) as visit:
        visit.get_by_role("button", name="Search", exact=True).click()
        visit.get_by_text("Drop or choose a photo first.").wait_for()
        _give(visit, scene("blue"))
        _leads(visit, "blue")
        for choice, told in (
            ("SuperGlobal", "Ordered by SuperGlobal"),
            ("k-reciprocal", "Ordered by k-reciprocal"),
            ("One (1)", "described at other scales (0.5, 1)"),
        ):
            visit.get_by_label(choice).click()
            visit.get_by_text(told).wait_for()
        _leads(visit, "blue")


def test_on_a_phone(server, browser):
    """A finger draws, and nothing is wider than the screen."""
    size = {"width": 390, "height": 844}
    with _visit(browser, server[0], viewport=size, has_touch=True, is_mobile=True) as visit:
        _give(visit, scene("green", "red"))
        visit.locator(".map img").wait_for()
        assert visit.evaluate("document.documentElement.scrollWidth") <= 390
        frame = visit.locator(".stage .frame")
        frame.scroll_into_view_if_needed()
        area = frame.bounding_box()
        finger = visit.context.new_cdp_session(visit)

        def touch(kind, *shares):
            points = [
                {"x": area["x"] + x * area["width"], "y": area["y"] + y * area["height"]}
                for x, y in shares
            ]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", (0.6, 0.1))
        touch("touchMove", (0.8, 0.5))
        touch("touchMove", (0.95, 0.9))
        touch("touchEnd")
        _leads(visit, "red")
        np.testing.assert_allclose(_box(visit), [57.6, 6.4, 91.2, 57.6], atol=2)


def test_what_is_no_photo_gets_a_message(server, browser):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    with _visit(browser, server[0]) as visit:
        _give(visit, scene("red"))
        _leads(visit, "red")
        _give(visit, encoded(noise))
        visit.get_by_text("exceed the maximum allowed size").wait_for()
        assert len(encoded(noise)) > MAX_BYTES
        for data, told in (
            (encoded(scene("red", width=480, height=480)), "480 x 480 = 0.2 million pixels"),
            (b"no photo", "cannot be read as a photo"),
            (encoded(noise[:100, :100], "JPEG")[:3000], "cannot be read as a photo"),
        ):
            _give(visit, data)
            visit.locator(".verdict.wrong").get_by_text(told).wait_for()
            # What was there before would seem to be its answer.
            assert visit.locator(".found").count() == visit.locator(".stage").count() == 0
        _give(visit, scene("green"))
        _leads(visit, "green")


def test_a_folder_is_added_for_its_visitor_alone(server, browser, tmp_path):
    folder = tmp_path / "mine"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(scene("red", "blue")).save(folder / "one <b>.png")
    Image.fromarray(scene("green", "violet")).save(folder / "below/two.png")
    (folder / "notes.txt").write_text("notes")
    with _visit(browser, server[0]) as visit, _visit(browser, server[0]) as other:
        _give(visit, scene("red", "blue"))
        visit.locator(".map img").wait_for()
        assert visit.locator(".badge.added").count() == 0
        visit.get_by_text("Search your own photos too").click()
        visit.set_input_files(UPLOADS["folder"], folder)
        visit.get_by_text("2 photos of yours are searched too; you may add up to 3.").wait_for()
        visit.get_by_text("Left out: notes.txt").wait_for()
        first = visit.locator(".found .photo").first
        first.locator(".badge.added").wait_for()
        assert first.locator(".score").inner_text() == "1.000"
        assert first.locator(".id").inner_text().startswith("one")
        _give(other, scene("red", "blue"))
        other.locator(".map img").wait_for()
        assert other.locator(".badge.added").count() == 0
        visit.get_by_role("button", name="Remove them").click()
        visit.get_by_text("2 photos of yours").wait_for(state="detached")
        visit.locator(".badge.added").first.wait_for(state="detached")


# --- without one ---------------------------------------------------------------------


def _ask(port, method, path, body=None, **headers):
    """Returns (status, body); the path goes as it is, dots and all."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as link:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, answer.read()


def _upload(port, data):
    parts = (
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="photo.png"\r\n'
        b"content-type: image/png\r\n\r\n" + data + b"\r\n--x--\r\n"
    )
    kind = "multipart/form-data; boundary=x"
    return _ask(port, "POST", "/gradio_api/upload", parts, content_type=kind)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
        "/file=/etc/passwd",
        "/assets/../../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc/passwd",
        "/static//etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    status, body = _ask(server[0], "GET", path)
    assert status in (403, 404) and b"root:" not in body


def test_an_upload_cannot_be_fetched_and_may_not_be_large(server):
    status, body = _upload(server[0], encoded(scene("red")))
    (path,) = json.loads(body)
    assert status == 200 and pathlib.Path(path).is_relative_to(server[1])
    assert _ask(server[0], "GET", f"/gradio_api/file={path}")[0] == 404
    assert [str(file) for file in server[1].rglob("*") if file.is_file()] == [path]
    status, body = _upload(server[0], bytes(MAX_BYTES + 1))
    assert status == 413 and b"maximum allowed size" in body


def _events(port):
    """Returns (number, count of inputs) of the events that take a file first."""
    config = json.loads(_ask(port, "GET", "/config")[1])
    kinds = {part["id"]: part["type"] for part in config["components"]}
    found = [
        (event["id"], len(event["inputs"]))
        for event in config["dependencies"]
        if event["inputs"] and kinds[event["inputs"][0]] in ("file", "uploadbutton")
    ]
    assert len(found) == 3
    return found


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "http://127.0.0.1:{port}/config", "{uploads}/../../log", "log"]
)
def test_a_crafted_file_is_refused(server, path):
    path = path.format(port=server[0], uploads=next(server[1].iterdir()))
    before = sorted(server[1].rglob("*"))
    for event, count in _events(server[0]):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "x.png"}
        request = {"data": [file] + [None] * (count - 1), "fn_index": event, "session_hash": "x"}
        for wrapped in (request, request | {"data": [[file]] + [None] * (count - 1)}):
            status, body = _ask(
                server[0],
                "POST",
                "/gradio_api/queue/join",
                json.dumps(wrapped),
                content_type="application/json",
            )
            assert status == 403 and b"not uploaded" in body
    assert sorted(server[1].rglob("*")) == before


def test_malformed_requests_leave_no_line_in_the_log(server):
    port, log = server[0], server[1].parent / "log"
    before = log.read_text()
    join = "/gradio_api/queue/join"
    call = {"data": [], "fn_index": 0, "session_hash": "x"}
    bodies = [b"", b"{", b"[" * 10**5, b"[]", b"\xff", b"1" * 10**4, b'{"data": null}']
    bodies += [
        json.dumps(call | wrong).encode()
        for wrong in (
            {},
            {"fn_index": 999},
            {"fn_index": "a"},
            {"session_hash": "../../x"},
            {"session_hash": None},
            {"data": [None] * 7},
            {"data": {"path": {}}},
            {"event_data": 7, "trigger_id": "x"},
        )
    ]
    for body in bodies:
        status, said = _ask(port, "POST", join, body)
        assert status in (400, 403) and b"detail" in said
    for method, path, status in (
        ("GET", "/?page=none", 200),
        ("GET", "/?deep_link=../../x&__theme=dark", 200),
        ("GET", "/config?page=none&deep_link=a", 200),
        ("HEAD", "/", 200),
        ("PUT", "/", 405),
        ("OPTIONS", "/config", 405),
        ("POST", "/gradio_api/upload", 400),
        ("GET", "/gradio_api/queue/data", 404),
        ("GET", "/gradio_api/queue/data?session_hash=%00%ff&session_hash=x", 404),
        ("GET", "/gradio_api/heartbeat/x", 404),
        ("GET", "/gradio_api/startup-events", 404),
        ("POST", "/gradio_api/cancel", 200),
        ("GET", "/assets/%00", 404),
        ("GET", "/assets/none.js", 404),
        ("GET", "/assets", 404),
        ("GET", "/static/" + "x" * 100, 404),
        ("GET", "/static/fonts", 403),
    ):
        assert _ask(port, method, path)[0] == status, path
    assert log.read_text() == before


def test_only_this_machine_is_answered(server):
    with socket.socket() as elsewhere:
        elsewhere.settimeout(5)
        assert elsewhere.connect_ex(("127.0.0.2", server[0])) != 0
    assert _ask(server[0], "GET", "/", host="evil.example")[0] == 403
    assert _ask(server[0], "GET", "/", origin="https://evil.example")[0] == 403


def test_several_visitors_at_once(server):
    """Each, through Gradio's own queue, gets the answer to their photo."""

    def answers(port, session, event, data):
        body = {"data": data, "fn_index": event, "session_hash": session}
        kind = {"content_type": "application/json"}
        status, said = _ask(port, "POST", "/gradio_api/queue/join", json.dumps(body), **kind)
        assert status == 200, said
        _, stream = _ask(port, "GET", f"/gradio_api/queue/data?session_hash={session}")
        lines = [
            json.loads(line[6:]) for line in stream.decode().splitlines() if line[:5] == "data:"
        ]
        done = [x for x in lines if x["msg"] == "process_completed"]
        assert done and done[-1]["success"], lines
        return [x for x in lines if x["msg"] in ("process_generating", "process_completed")]

    port = server[0]
    config = json.loads(_ask(port, "GET", "/config")[1])
    take = next(e for e in config["dependencies"] if len(e["outputs"]) == 8)
    search = next(e for e in config["dependencies"] if len(e["inputs"]) == 7)

    def visit(number):
        name, session = list(COLOURS)[number % len(COLOURS)], f"visitor{number}"
        (path,) = json.loads(_upload(port, encoded(scene(name)))[1])
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        controls = ["index", "none", 12]
        answers(port, session, take["id"], [file, *controls])
        controls = [0, 0, 96, 64, *controls]
        told = json.dumps(answers(port, session, search["id"], controls))
        first = told.index("title=")
        return name, told[first : first + 40]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for name, told in pool.map(visit, range(18)):
            assert f'title=\\"{name}\\"' in told
