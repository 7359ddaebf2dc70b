"""The command refuses before it loads anything, and the page takes what visitors give it."""

import hashlib
import secrets
import socket
import sys

import demo_world
import pytest
from demo_world import encoded, scene

from dolg_tf.apps.demo import page as demo_page
from dolg_tf.apps.demo import serve
from dolg_tf.apps.demo.calls import SKIP
from dolg_tf.apps.demo.page import Page
from dolg_tf.apps.demo.search import Engine
from dolg_tf.apps.demo.serve import DemoConfig
from dolg_tf.apps.demo.uploads import Upload
from dolg_tf.apps.demo.visitors import Visitor
from dolg_tf.stage.config import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return demo_world.make(tmp_path_factory.mktemp("world"))


def _settings(world, **options):
    return DemoConfig(saved_model=str(world[0]), index=str(world[1]), **options)


def test_a_port_that_is_taken(world, monkeypatch):
    monkeypatch.setattr(Engine, "load", None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=rf"--port={port} cannot be used \(Address already"),
            serve.serving(_settings(world, port=port)),
        ):
            raise AssertionError


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_without_gradio(world, monkeypatch):
    monkeypatch.setattr(Engine, "load", None)
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(InputError, match=r"gradio is missing; pip install .*\[demo\]"),
        serve.serving(_settings(world, port=_free_port())),
    ):
        raise AssertionError


@pytest.mark.parametrize(
    "options", [{"port": 0}, {"port": 65536}, {"max_bytes": 0}, {"max_seconds": 0.0}]
)
def test_flags_that_cannot_be(world, options):
    with pytest.raises(InputError, match=f"--{next(iter(options))}="):
        _settings(world, **options)


@pytest.fixture(scope="module")
def page(world):
    pytest.importorskip("gradio")
    engine = Engine(*world, "", 0)
    engine.load()
    return Page(engine, 10**5, 10**5, 3)


CONTROLS = ("index", "none", 4)


def _upload(folder, name, data):
    file = folder / secrets.token_hex(8)
    file.write_bytes(data)
    return Upload(file, name, hashlib.sha256(data).hexdigest(), len(data), 0.0)


def test_a_photo_takes_the_place_of_the_one_before(page, tmp_path):
    visitor = Visitor()
    shown = list(page.take(visitor, _upload(tmp_path, "p.png", encoded(scene("red"))), *CONTROLS))
    stage, *box, file, said, attention = shown[0]
    assert shown[1][6].index(">red<") < shown[1][6].index(">green<") and len(shown) == 3
    assert (visitor.query.width, visitor.query.height) == (96, 64) and box == [0, 0, 96, 64]
    assert "96 x 64 pixels" in stage and file is None and "role" not in said and attention == ""
    lossless = encoded(scene("red"), "JPEG").replace(b"\xff\xc0", b"\xff\xc3")
    for data, told in (
        (b"no photo", "cannot be read as a photo"),
        (b"x" * 100001, "MiB, the limit is"),
        (encoded(scene("red", width=400, height=300)), "400 x 300 = 0.1 million pixels"),
        (lossless, "JPEG photo; a lossless JPEG"),
        (encoded(scene("red"))[:-30], "PNG photo; "),
    ):
        (shown,) = page.take(visitor, _upload(tmp_path, "x.png", data), *CONTROLS)
        stage, *box, file, said, attention = shown
        assert visitor.query is None and stage == "" and box == [0, 0, 0, 0]
        assert 'role="alert"' in said and told in said
    gone = Upload(tmp_path / "gone.png", "gone.png", "", 0, 0.0)
    assert "choose it again" in next(page.take(visitor, gone, *CONTROLS))[6]


def test_number_fields_that_are_empty_are_those_of_the_whole_photo(page, tmp_path):
    visitor = Visitor()
    assert list(page.search(visitor, 0, 0, 9, 9, *CONTROLS)) == [(SKIP, SKIP)]
    assert "choose a photo first" in next(page.press(visitor, 0, 0, 0, 0, *CONTROLS))[0]
    list(page.take(visitor, _upload(tmp_path, "x", encoded(scene("green", "blue"))), *CONTROLS))
    assert "found" in next(page.search(visitor, None, None, None, None, *CONTROLS))[0]
    said = list(page.press(visitor, 50, None, None, 64, *CONTROLS))
    assert len(said) == 2 and "attention map" in said[1][1]
    assert said[0][0].index(">blue<") < said[0][0].index(">green<")
    assert "contains no pixel" in next(page.search(visitor, 96, 0, 96, 64, *CONTROLS))[0]


def test_the_answer_to_a_photo_that_was_replaced_is_not_shown(page, tmp_path):
    visitor = Visitor()
    files = [_upload(tmp_path, "x", encoded(scene(name))) for name in ("green", "blue")]
    first = page.take(visitor, files[0], *CONTROLS)
    next(first)
    second = list(page.take(visitor, files[1], *CONTROLS))
    assert len(second) == 3 and list(first) == []


def test_photos_are_added_up_to_a_limit(page, tmp_path):
    names = ("red", "green", "blue", "yellow")
    files = {name: _upload(tmp_path, f"{name}.png", encoded(scene(name))) for name in names}
    wrong = _upload(tmp_path, "notes.txt", b"notes")
    visitor = Visitor()
    *working, (said,) = page.add(visitor, [files["red"], wrong, files["blue"]])
    assert len(working) == 2 and "2 of 3 files" in working[1][0]
    few = visitor.added
    assert sorted(file.partition("/")[2] for file in few.files) == ["blue.png", "red.png"]
    assert "2 photos of yours are searched too; you may add up to 3." in said
    assert "Left out: notes.txt: The file cannot be read" in said
    *_, (said,) = page.add(visitor, [files["red"], files["green"], files["yellow"]])
    more = visitor.added
    assert len(more.files) == len(more.rows) == len(more.thumbnails) == 3
    assert "Already added: 1." in said and "Left out, as there is no room for more: 1." in said
    assert len(few.files) == 2
    # Another photo of the same name is another photo.
    visitor.added = few
    list(page.add(visitor, [_upload(tmp_path, "red.png", encoded(scene("violet")))]))
    assert len(visitor.added.files) == 3
    assert list(page.forget(visitor)) == [("",)] and visitor.added is None
    assert list(page.add(visitor, [])) == [("",)]


def test_events_of_the_page(page, tmp_path):
    found = demo_page.events(page.build())
    kinds = {}
    for event in found.values():
        kinds.setdefault(event.answer.__name__, event)
    assert set(kinds) == {"take", "search", "press", "add", "forget"}
    upload = _upload(tmp_path, "x", b"x")

    def claim(path):
        assert path == "there"
        return upload

    file, scales, reranking, k = kinds["take"].inputs
    assert file({"path": "there"}, claim) is upload and file(None, claim) is None
    assert kinds["add"].inputs[0]([{"path": "there"}] * 2, claim) == [upload] * 2
    assert kinds["add"].inputs[0](None, claim) == []
    assert scales("one", claim) == "one" and reranking("none", claim) == "none" and k(4, claim) == 4
    left = kinds["search"].inputs[0]
    assert left(None, claim) is None and left(7, claim) == 7 and left(-2.5, claim) == -2.5
    for check, values in (
        (file, ["there", 7, [], [{"path": "there"}]]),
        (kinds["add"].inputs[0], [{"path": "there"}, "there", ["there"], 7]),
        (scales, ["seven", None, 1, ["one"], {}]),
        (reranking, ["alpha_dba", None, True]),
        (k, [3, 49, None, "4", True, float("nan"), float("inf"), 10**400]),
        (left, ["1", [], True, float("nan"), float("-inf"), 10**400]),
    ):
        for value in values:
            with pytest.raises(ValueError, match="is"):
                check(value, claim)
    places = {kind: (event.outputs, event.said) for kind, event in kinds.items()}
    shown = {"take": (8, 6), "search": (2, 0), "press": (2, 0), "add": (1, 0), "forget": (1, 0)}
    assert places == shown
