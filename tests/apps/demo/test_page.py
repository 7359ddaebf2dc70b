"""The page in a browser: a photo, a box, the answer; and what it refuses."""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import demo_world
import numpy as np
import pytest
from demo_world import COLOURS, encoded, scene
from waiting import wait_for

from dolg_tf.apps.demo import serve
from dolg_tf.apps.demo.collection import Progress, Searchable, Threshold, places
from dolg_tf.apps.demo.serve import PageConfig
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.index import directory
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.local.features import LocalFeatures

pytestmark = pytest.mark.slow
MAX_BYTES, MAX_PIXELS = 300_000, 200_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The command in a process of its own: (port, its log)."""
    pytest.importorskip("uvicorn", reason="it is not installed: pip install -e '.[demo]'")
    folder = tmp_path_factory.mktemp("demo")
    model, built = demo_world.make(folder)
    calibration = {"threshold": 0.97, "precision": 0.95}
    directory.set_calibration(built, calibration, Index.open(built).meta)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = {"saved_model": model, "index": built, "port": port}
    flags |= {"max_bytes": MAX_BYTES, "max_pixels": MAX_PIXELS}
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
            stdout=output,
            stderr=output,
            # Tests that a shell runs in the background ignore it, and so would the server.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        wait_for(lambda: "ready at" in log.read_text() or process.poll() is not None, seconds=120)
        assert process.poll() is None, log.read_text()
        yield port, log
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, log.read_text()
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
def _visit(browser, port, path="/", **options):
    """Opens the page as a new visitor: other servers are never asked, and nothing goes wrong."""
    address, asked, wrong = f"http://127.0.0.1:{port}", [], []
    context = browser.new_context(**options)

    def watch(route):
        asked.append(route.request.url)
        inside = route.request.url.startswith((f"{address}/", "data:"))
        (route.continue_ if inside else route.abort)()

    context.route("**/*", watch)
    visit = context.new_page()
    visit.set_default_timeout(15_000)
    visit.on("console", lambda message: wrong.append(message.text))
    visit.on("pageerror", lambda error: wrong.append(str(error)))
    visit.goto(f"{address}{path}")
    try:
        yield visit
        assert len(asked) > 5
        assert [url for url in asked if not url.startswith((f"{address}/", "data:"))] == []
        assert wrong == []
        assert visit.evaluate("document.documentElement.scrollWidth <= innerWidth")
    finally:
        context.close()


def _give(visit, image_or_bytes, name="photo.png"):
    data = image_or_bytes if isinstance(image_or_bytes, bytes) else encoded(image_or_bytes)
    file = {"name": name, "mimeType": "image/png", "buffer": data}
    visit.set_input_files("#file", files=[file])


def _leads(visit, name):
    """Waits until a photo is the first that was found."""
    first = visit.locator("#main:not([aria-busy=true]) .found .photo").first
    first.get_by_text(f"{name}.png", exact=True).first.wait_for()
    return first


def _until(visit, expression):
    """Waits for an expression; Playwright's own wait asks for what the page's policy refuses."""
    wait_for(lambda: visit.evaluate(expression), seconds=15)


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
    visit.locator("#more").evaluate("more => more.open = true")
    labels = ("Left", "Top", "Right", "Bottom")
    return [int(visit.get_by_label(label, exact=True).input_value()) for label in labels]


DESKTOP = {"viewport": {"width": 1280, "height": 900}}


def test_photo_box_and_answer(server, browser):
    with _visit(browser, server[0], **DESKTOP) as visit:
        _give(visit, scene("yellow"))
        first = _leads(visit, "yellow")
        assert first.locator(".score").inner_text() == "1.000"
        assert first.locator(".badge").inner_text() == "this photo"
        assert first.bounding_box()["width"] >= 220
        assert visit.locator("h2").inner_text() == "No photo of the same place"
        assert visit.locator("#said").inner_text() == "No photo of the same place"
        assert visit.locator(".found .photo").count() == len(COLOURS)
        # A photo of three scenes: what is drawn is what is searched for.
        _give(visit, scene("green", "violet", "a/cyan", width=480, height=320))
        visit.locator(".stage img[width='480']").wait_for()
        visit.locator("#main:not([aria-busy=true]) .verdict.no-match").wait_for()
        for column, name in enumerate(("green", "violet", "a/cyan")):
            _drag(visit, ((column + 0.1) / 3, 0.1), ((column + 0.9) / 3, 0.9))
            _leads(visit, name.rpartition("/")[2])
            visit.locator(".verdict.match").wait_for()
            expected = [480 * (column + 0.1) / 3, 32, 480 * (column + 0.9) / 3, 288]
            np.testing.assert_allclose(_box(visit), expected, atol=3)
            assert visit.locator(".stage .box").is_visible()
        visit.get_by_role("button", name="Whole photo").click()
        visit.locator(".verdict.no-match").wait_for()
        assert _box(visit) == [0, 0, 480, 320] and not visit.locator(".stage .box").is_visible()
        # The keyboard's way.
        visit.get_by_label("Right", exact=True).fill("150")
        visit.get_by_label("Right", exact=True).press("Enter")
        visit.locator(".stage .box").wait_for()
        _leads(visit, "green")
        # Back to the photo before, which is remembered, and on again.
        visit.go_back()
        _leads(visit, "yellow")
        visit.locator(".stage").get_by_text("photo.png").wait_for()
        visit.get_by_role("link", name="All places").click()
        visit.get_by_text("No places were found").wait_for()
        assert not visit.locator(".stage").is_visible()


def test_controls(server, browser):
    with _visit(browser, server[0], "/?photo=blue") as visit:
        visit.locator(".found .photo").first.wait_for()
        visit.get_by_text("More", exact=True).click()
        for label, choice, told in (
            ("Second look", "SuperGlobal", "Ordered by SuperGlobal"),
            ("Second look", "k-reciprocal", "Ordered by k-reciprocal"),
            ("Sizes", "One (1)", "described at other sizes (0.5, 1)"),
        ):
            visit.get_by_label(label).select_option(choice)
            visit.get_by_text(told).wait_for()
        look = visit.get_by_role("button", name="Show where the network looked")
        look.click()
        visit.locator(".map img").wait_for()
        for right, told in (("20", "contains no pixel of the photo"), ("96", "the same place")):
            visit.get_by_label("Left", exact=True).fill("60")
            visit.get_by_label("Right", exact=True).fill(right)
            visit.get_by_label("Right", exact=True).press("Enter")
            visit.locator(".verdict").get_by_text(told).first.wait_for()
            assert _box(visit) == [60, 0, int(right), 64]
        late = []
        visit.route("**/attention?*", lambda route: late.append(route))
        look.click()
        visit.locator(".again").first.click()
        visit.locator(".stage img[alt^='blue']").wait_for(state="detached")
        visit.locator(".stage img").wait_for()
        with visit.expect_response("**/attention?*"):
            late[0].continue_()
        visit.wait_for_timeout(100)
        assert visit.locator(".map").count() == 0


def test_enlarged_photos_and_a_search_with_one_of_them(server, browser):
    """By keyboard alone: what is enlarged can be left, and leads on."""
    with _visit(browser, server[0], permissions=["clipboard-read", "clipboard-write"]) as visit:
        _give(visit, scene("red"))
        names = [
            photo.inner_text() for photo in _leads(visit, "red").locator("..").locator(".id").all()
        ]
        visit.locator(".enlarge").first.press("Enter")
        large, photo = visit.locator("#large"), visit.locator("#large-photo")
        assert large.is_visible()

        def shown(place):
            visit.get_by_text(f"{place + 1} of {len(names)}: {names[place]}").wait_for()
            _until(visit, "document.querySelector('#large-photo').naturalWidth > 0")
            assert photo.get_attribute("alt") == names[place]

        shown(0)
        visit.keyboard.press("ArrowRight")
        shown(1)
        visit.keyboard.press("ArrowLeft")
        visit.keyboard.press("ArrowLeft")
        shown(len(names) - 1)
        visit.get_by_role("button", name="Next photo").click()
        shown(0)
        visit.keyboard.press("ArrowRight")
        shown(1)
        visit.get_by_role("button", name="Copy its path").click()
        visit.get_by_role("button", name="Copied").wait_for()
        path = visit.evaluate("navigator.clipboard.readText()")
        assert pathlib.Path(path).name == names[1] and pathlib.Path(path).is_file()
        with visit.context.expect_page() as opened:
            visit.get_by_role("link", name="Open the photo").click()
        assert "/file?photo=" in opened.value.url
        opened.value.close()
        visit.keyboard.press("Escape")
        assert not large.is_visible()
        # Where it was left is where the keyboard goes on.
        assert visit.evaluate("document.activeElement.ariaLabel") == f"Enlarge {names[1]}"
        visit.locator(".enlarge").nth(1).click()
        visit.get_by_role("link", name="Search with this one", exact=True).click()
        visit.locator(".stage").get_by_text(names[1]).wait_for()
        visit.locator("#main:not([aria-busy=true]) .found .photo").first.wait_for()
        assert names[1] not in [one.inner_text() for one in visit.locator(".photo .id").all()]
        assert visit.url.endswith(f"/?photo={pathlib.Path(names[1]).stem}")


def test_on_a_phone(server, browser):
    """A finger draws, nothing is wider than the screen, and the answer comes in sight."""
    size = {"width": 360, "height": 740}
    with _visit(browser, server[0], viewport=size, has_touch=True, is_mobile=True) as visit:
        _give(visit, scene("green", "red"))
        visit.locator(".found .photo").first.wait_for()
        _until(visit, "Math.abs(document.querySelector('main').getBoundingClientRect().top) < 40")
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
        visit.locator(".enlarge").first.click()
        visit.get_by_role("button", name="Close").click()


def test_what_is_no_photo_gets_a_message(server, browser):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0heic" + bytes(99)
    with _visit(browser, server[0]) as visit:
        _give(visit, scene("red"))
        _leads(visit, "red")
        assert len(encoded(noise)) > MAX_BYTES
        for name, data, told in (
            ("noise.png", encoded(noise), "noise.png has 0.5 MiB; the limit is 0.3 MiB."),
            (
                "a.png",
                encoded(scene("red", width=480, height=480)),
                "480 x 480 = 0.2 million pixels",
            ),
            ("notes.txt", b"no photo", "notes.txt is not a photo"),
            ("cut.jpg", encoded(noise[:100, :100], "JPEG")[:3000], "cut.jpg is a JPEG photo that"),
            ("IMG_1.HEIC", heic, "IMG_1.HEIC is a HEIC photo that cannot be read"),
        ):
            _give(visit, data, name)
            visit.get_by_role("alert").get_by_text(told).wait_for()
            # What was there before would seem to be its answer.
            assert visit.locator(".found").count() == visit.locator(".stage").count() == 0
            assert visit.locator("#drop").is_visible()
        _give(visit, scene("green"))
        _leads(visit, "green")


def test_a_photo_is_dropped_anywhere(server, browser):
    with _visit(browser, server[0]) as visit:
        data = list(encoded(scene("violet")))
        visit.evaluate(
            """data => {
              const files = new DataTransfer();
              files.items.add(new File([new Uint8Array(data)], "mine.png", {type: "image/png"}));
              for (const type of ["dragover", "drop"]) {
                document.body.dispatchEvent(
                  new DragEvent(type, {dataTransfer: files, bubbles: true, cancelable: true}));
              }
            }""",
            data,
        )
        _leads(visit, "violet")
        visit.locator(".stage").get_by_text("mine.png").wait_for()


# --- photos that are still being described ---------------------------------------------


class Folder:
    """Photos of three places in plain colours, described when the test says so."""

    title, scales, how = "holiday", (1.0,), Preparation(64)
    has_maps, has_local = False, True

    def __init__(self, folder):
        self.files, rows = {}, []
        for number, name in enumerate(("red", "green", "blue")):
            for one in range(6 - number):
                file = folder / f"{name} {one}.png"
                data = encoded(scene(name, "yellow", width=160 + 10 * one, height=120))
                file.write_bytes(data)
                self.files[file.stem] = file
                rows.append(np.eye(4)[number] + 0.4 * np.eye(4)[3] * (one % 3))
        rows = np.float32(rows)
        self.rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        self.describe_up_to(2)

    def describe_up_to(self, done, **more):
        self.now = Searchable(tuple(self.files)[:done], self.rows[:done], **more)

    def searchable(self):
        return self.now

    def progress(self):
        done, total = len(self.now.ids), len(self.files)
        return Progress(done, total, 0.5, "Describing your photos" if done < total else "")

    def describe(self, image, scales):
        row = np.float32([[*(image.mean((0, 1)) / 255), 0]])
        return row / np.linalg.norm(row)

    def local(self, image):
        """The same places in all photos, in shares of their sides."""
        rng, size = np.random.default_rng(0), image.shape[:2]
        positions = np.float32(rng.random((30, 2)) * size)
        strengths = np.linspace(1, 0.5, 30, dtype=np.float32)
        return LocalFeatures(positions, strengths, strengths, np.eye(30, dtype=np.float32), size)

    def file(self, id_):
        return self.files.get(id_)


@pytest.fixture
def live(tmp_path):
    """A page in this process: (its port, its photos)."""
    folder = Folder(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with serve.showing(folder, PageConfig(port=port)):
        yield port, folder


def test_what_is_described_is_searched_and_the_page_keeps_up(live, browser):
    port, folder = live
    with _visit(browser, port, **DESKTOP) as visit, _visit(browser, port) as home:
        visit.get_by_text("2 of 15 photos can be searched; 0.5 photos/s, 26s left").wait_for()
        visit.get_by_text("15 photos in holiday").wait_for()
        home.get_by_text("Places will be shown here").wait_for()
        _give(visit, scene("red"))
        first = _leads(visit, "red 0")
        assert visit.locator(".found .photo").count() == 2
        groups = np.repeat(np.arange(3), (6, 5, 4))
        few = Threshold(0.9, True, 0.9, 0.8, 0.95, 14, "It rests on few pairs.")
        found = places(folder.rows, groups)
        folder.describe_up_to(15, places=found, threshold=few, alike=0.999, note="By groups.")
        # Without a click, and without a scroll.
        visit.get_by_text("can be searched").wait_for(state="detached")
        first.locator(".badge").wait_for()
        visit.get_by_text("0.900 is an estimate from your photos").wait_for()
        visit.locator(".warning").get_by_text("It rests on few pairs.").wait_for()
        visit.get_by_role("link", name="All 6 photos of this place").wait_for()
        # Equal rows share a tile, which opens them.
        tiles = visit.locator(".found .photo:visible")
        assert tiles.count() == 9
        alike = first.get_by_role("button", name="+ 1 nearly the same")
        alike.click()
        assert tiles.count() == 10 and alike.get_attribute("aria-expanded") == "true"
        alike.click()
        assert tiles.count() == 9

        # Places, largest first, and all photos of one.
        home.get_by_role("heading", name="Places found in your photos").wait_for()
        sizes = [one.inner_text() for one in home.locator(".size").all()]
        assert sizes == ["6 photos", "5 photos", "4 photos"]
        assert home.locator(".place").first.bounding_box()["width"] >= 220
        home.get_by_text("How the search was adapted").click()
        home.get_by_text("By groups.").wait_for()
        home.locator(".place").nth(1).click()
        home.get_by_role("heading", name="A place in 5 photos").wait_for()
        names = [one.inner_text() for one in home.locator(".photo .id").all()]
        assert sorted(names) == [f"green {number}.png" for number in range(5)]
        home.get_by_role("link", name=f"Search with this one: {names[2]}").click()
        home.locator(".stage").get_by_text(names[2]).wait_for()
        home.locator(".found .photo").first.wait_for()
        assert home.locator(".verdict h2").inner_text() == "2 photos probably show the same place"
        home.go_back()
        home.get_by_role("heading", name="A place in 5 photos").wait_for()


def _remembered(visit):
    """Waits until the place on the page is kept, and returns it."""
    _until(visit, "history.state?.top === scrollY")
    return visit.evaluate("scrollY")


def test_back_leads_to_the_box_and_to_the_place_on_the_page(live, browser):
    port, folder = live
    found = places(folder.rows, np.repeat(np.arange(3), (6, 5, 4)))
    folder.describe_up_to(15, places=found, alike=None)
    with _visit(browser, port, viewport={"width": 700, "height": 400}) as visit:
        title = visit.title()
        visit.evaluate("scrollTo(0, 230)")
        assert _remembered(visit) == 230
        visit.locator(".place").nth(2).evaluate("place => place.click()")  # without a scroll
        visit.get_by_role("heading", name="A place in 4 photos").wait_for()
        _until(visit, "scrollY === 0")
        assert visit.title() == "A place in 4 photos"
        visit.go_back()
        visit.get_by_role("heading", name="Places found").wait_for()
        _until(visit, "scrollY === 230")
        assert visit.title() == title
        _give(visit, scene("red", "blue"))
        _leads(visit, "red 0")
        _drag(visit, (0.1, 0.1), (0.4, 0.9))
        visit.locator("#main:not([aria-busy=true]) .found").wait_for()
        drawn = _box(visit)
        assert drawn != [0, 0, 96, 64]
        visit.get_by_role("link", name="Search with this one: red 1.png").click()
        visit.locator(".stage").get_by_text("red 1.png").wait_for()
        assert not visit.locator(".stage .box").is_visible()
        with visit.expect_request("**/answer*") as asked:
            visit.go_back()
        assert f"box={'%2C'.join(map(str, drawn))}" in asked.value.url
        visit.locator(".stage").get_by_text("photo.png").wait_for()
        assert visit.locator(".stage .box").is_visible() and _box(visit) == drawn
        visit.reload()
        visit.locator(".stage .box").wait_for()
        assert _box(visit) == drawn


def test_what_comes_too_late_is_not_shown(live, browser):
    """The picture of a photo that was left, and the answer to one that was being sent."""
    port, folder = live
    folder.describe_up_to(15, alike=None)
    with _visit(browser, port, "/?photo=red%200") as visit:
        visit.locator(".found .photo").first.wait_for()
        late = []
        visit.route("**/stage?photo=red+1", lambda route: late.append(route))
        visit.get_by_role("link", name="Search with this one: red 1.png").click()
        visit.get_by_role("link", name="Search with this one: red 2.png").click()
        visit.locator(".stage").get_by_text("red 2.png").wait_for()
        with visit.expect_response("**/stage?photo=red+1"):
            late[0].continue_()
        visit.wait_for_timeout(100)
        assert visit.locator(".stage .id").inner_text() == "red 2.png"
        visit.route("**/sent?*", lambda route: late.append(route))
        _give(visit, scene("green"))
        # What takes a while is said to.
        _until(visit, "getComputedStyle(document.body, '::before').visibility === 'visible'")
        visit.get_by_role("link", name="All places").click()
        visit.get_by_text("No places were found").wait_for()
        late[1].continue_()
        visit.wait_for_timeout(100)
        assert not visit.locator(".stage").is_visible() and visit.url.endswith("/")


def test_what_cannot_be_sent_is_told(live, browser):
    with _visit(browser, live[0]) as visit:
        visit.locator("#main").wait_for()
        for files, told in (
            ("[new File(['a'], 'a.jpg'), new File(['b'], 'b.jpg')]", "these are 2"),
            (
                "[{name: 'holiday', size: 4096, slice: () => ({arrayBuffer: () => "
                "Promise.reject(new Error())})}]",
                "holiday cannot be read: is it a folder?",
            ),
        ):
            visit.evaluate(f"send({files})")
            visit.get_by_role("alert").get_by_text(told).wait_for()


def test_in_the_dark_text_can_be_read(live, browser):
    """At least 4.5 to 1, and 3 to 1 around what is pressed or filled in, light or dark."""
    port, folder = live
    folder.describe_up_to(15, threshold=Threshold(0.9, True, 0.9, warning="Few pairs."))

    def light(colour):
        levels = [int(level) / 255 for level in re.findall(r"\d+", colour)[:3]]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for scheme in ("light", "dark"):
        with _visit(browser, port, color_scheme=scheme) as visit:
            _give(visit, scene("red"))
            _leads(visit, "red 0")
            told = visit.evaluate(
                """() => [".verdict h2", ".verdict p", ".warning", ".badge", ".photo .id", ".again",
                           ".score", "header .notes", "figcaption", "#other"].map(name => {
                  const found = document.querySelector(name);
                  let behind = found, colour;
                  do {
                    colour = getComputedStyle(behind).backgroundColor;
                    behind = behind.parentElement;
                  } while (colour === "rgba(0, 0, 0, 0)");
                  return [name, getComputedStyle(found).color, colour];
                })"""
            )
            edges = visit.evaluate(
                """() => ["#other", "#k"].map(name => {
                  const style = getComputedStyle(document.querySelector(name));
                  return [name, style.borderTopColor, style.backgroundColor];
                })"""
            )
            least = [*((4.5, one) for one in told), *((3, one) for one in edges)]
            for ratio, (name, drawn, ground) in least:
                low, high = sorted((light(drawn), light(ground)))
                assert (high + 0.05) / (low + 0.05) >= ratio, (scheme, name, drawn, ground)


# --- without one ---------------------------------------------------------------------


def _ask(port, method, path, body=None, **headers):
    """Returns (status, body); the path goes as it is, dots and all."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as link:
        link.request(method, path, body, headers)
        answer = link.getresponse()
        return answer.status, answer.read()


@pytest.mark.parametrize(
    "path",
    [
        "/file?photo=/etc/passwd",
        "/file?photo=../../../../etc/passwd",
        "/thumbnail?photo=%2e%2e/%2e%2e/etc/passwd",
        "/large?photo=..%2fmodel%2fsaved_model.pb",
        "/file?photo=a%00b",
        "/page.css/../../../../etc/passwd",
        "/../serve.py",
        "/parts.html.j2",
    ],
)
def test_no_path_leads_to_a_file(server, path):
    status, body = _ask(server[0], "GET", path)
    assert (status == 404 or b"cannot be shown" in body) and b"root:" not in body


def test_a_photo_that_is_not_there(server):
    for path in ("/stage?photo=none", "/answer?sent=none", "/attention?photo=..%2fx"):
        status, said = _ask(server[0], "GET", path, x_visitor="a")
        assert status == 200 and b'role="alert"' in said
    status, said = _ask(server[0], "GET", "/place?photo=none")
    assert status == 200 and b"not there any more" in said


def test_malformed_requests_leave_no_line_in_the_log(server):
    port, before = server[0], server[1].read_text()
    for method, path, status in (
        ("GET", "/?page=none&photo=%ff", 200),
        ("HEAD", "/", 200),
        ("PUT", "/", 405),
        ("POST", "/answer", 405),
        ("GET", "/sent", 405),
        ("POST", "/sent", 400),
        ("GET", "/answer?photo=red", 400),
        ("GET", "/answer?photo=red&box=1", 400),
        ("GET", "/places?most=-1", 400),
        ("GET", "/x" * 2000, 404),
    ):
        assert _ask(port, method, path)[0] == status, path
    assert server[1].read_text() == before


def test_only_this_machine_is_answered(server):
    with socket.socket() as elsewhere:
        elsewhere.settimeout(5)
        assert elsewhere.connect_ex(("127.0.0.2", server[0])) != 0
    assert _ask(server[0], "GET", "/", host="evil.example")[0] == 403
    assert _ask(server[0], "GET", "/", origin="https://evil.example")[0] == 403
    assert _ask(server[0], "GET", "/thumbnail?photo=red", sec_fetch_site="cross-site")[0] == 403


def test_several_visitors_at_once(server):
    """Each gets the answer to their photo."""

    def visit(number):
        name, visitor = list(COLOURS)[number % len(COLOURS)], {"x_visitor": f"v{number}"}
        status, said = _ask(server[0], "POST", "/sent?name=a", encoded(scene(name)), **visitor)
        assert status == 200, said
        word = json.loads(said)["sent"]
        status, said = _ask(server[0], "GET", f"/answer?sent={word}&box=0,0,96,64", **visitor)
        assert status == 200, said
        first = said.index(b"data-photo=")
        return name, said[first : first + 40].decode()

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for name, told in pool.map(visit, range(18)):
            assert f'data-photo="{name}"' in told


@pytest.mark.parametrize("screen", ["wide", "tall"])
def test_why_a_photo_was_found(live, browser, screen):
    """By keyboard: both photos, and the places that agree; and with geometry, how many."""
    port, folder = live
    local = [folder.local(np.zeros((120, 160, 3)))] * 15
    folder.describe_up_to(15, alike=None, local=local.__getitem__)
    size = {"width": 390, "height": 780} if screen == "tall" else DESKTOP["viewport"]
    with _visit(browser, port, viewport=size, has_touch=True) as visit:
        _give(visit, scene("red", "yellow", width=200, height=100))
        first = _leads(visit, "red 0")
        visit.get_by_text("More", exact=True).click()
        visit.get_by_label("Second look").select_option("Geometric verification")
        visit.get_by_text("30 places agree").first.wait_for()
        first.get_by_role("button", name="Why was").press("Enter")
        dialog = visit.get_by_role("dialog", name="Why was red 0.png found?")
        shown = dialog.locator(f"svg.{screen}")
        shown.wait_for()
        other = "wide" if screen == "tall" else "tall"
        assert not dialog.locator(f"svg.{other}").is_visible()
        assert shown.get_attribute("role") == "img"
        assert "30 of them agree on one view" in shown.get_attribute("aria-label")
        assert "30 of them agree" in dialog.locator("figcaption").inner_text()
        asked, found = (shown.locator(f"image.{name}") for name in ("asked", "found"))
        assert asked.get_attribute("href").startswith("data:image/jpeg")
        boxes = [one.bounding_box() for one in (asked, found)]
        for box, aspect in zip(boxes, (2, 4 / 3), strict=True):
            assert box["width"] / box["height"] == pytest.approx(aspect, rel=0.02)
        apart = "y" if screen == "tall" else "x"
        assert boxes[1][apart] > boxes[0][apart] + 100
        assert visit.evaluate("document.querySelector('#why').scrollWidth <= innerWidth")
        visit.keyboard.press("Escape")
        assert not dialog.is_visible()
        assert visit.evaluate("document.activeElement.ariaLabel") == "Why was red 0.png found?"
