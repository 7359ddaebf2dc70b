"""The command refuses before it loads anything, and the page takes what visitors give it."""

import socket
import sys

import demo_world
import pytest
from demo_world import encoded, scene

from dolg_tf.apps.demo import serve
from dolg_tf.apps.demo.page import Page
from dolg_tf.apps.demo.search import Engine
from dolg_tf.apps.demo.serve import DemoConfig
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


def test_without_gradio(world, monkeypatch):
    monkeypatch.setattr(Engine, "load", None)
    monkeypatch.setattr(serve, "_check_port", lambda port: None)
    monkeypatch.setenv("GRADIO_ALLOWED_PATHS", "/")
    monkeypatch.setitem(sys.modules, "gradio", None)
    with (
        pytest.raises(InputError, match=r"gradio is missing; pip install .*\[demo\]"),
        serve.serving(_settings(world)),
    ):
        raise AssertionError


@pytest.mark.parametrize("options", [{"port": 0}, {"port": 65536}, {"max_bytes": 0}])
def test_flags_that_cannot_be(world, options):
    with pytest.raises(InputError, match=f"--{next(iter(options))}="):
        _settings(world, **options)


@pytest.fixture(scope="module")
def page(world):
    pytest.importorskip("gradio")
    engine = Engine(*world, "", 0)
    engine.load()
    return Page(engine, 10**5, 10**5, 3)


CONTROLS = ("index", "none", 4, None)


def _upload(folder, name, data):
    """Lays a file where Gradio would: in a folder named by its contents."""
    file = folder / f"{abs(hash(data))}" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return str(file)


def test_a_photo_takes_the_place_of_the_one_before(page, tmp_path):
    shown = list(page.take(_upload(tmp_path, "photo.png", encoded(scene("red"))), *CONTROLS))
    query, stage, *box, file, said, attention = shown[0]
    assert shown[1][7].index(">red<") < shown[1][7].index(">green<") and len(shown) == 3
    assert (query.width, query.height) == (96, 64) and box == [0, 0, 96, 64]
    assert "96 x 64 pixels" in stage and file is None and "role" not in said and attention == ""
    for data, told in (
        (b"no photo", "cannot be read as a photo"),
        (b"x" * 100001, "MiB, the limit is"),
        (encoded(scene("red", width=400, height=300)), "400 x 300 = 0.1 million pixels"),
    ):
        shown = page.take(_upload(tmp_path, "x.png", data), *CONTROLS)
        query, stage, *box, file, said, attention = next(shown)
        assert query is None and stage == "" and box == [0, 0, 0, 0]
        assert 'role="alert"' in said and told in said
    assert "choose it again" in next(page.take(str(tmp_path / "gone.png"), *CONTROLS))[7]


def _first(page, *arguments):
    return next(page.search(*arguments))[0]


def test_number_fields_that_are_empty_are_those_of_the_whole_photo(page, tmp_path):
    file = _upload(tmp_path, "photo.png", encoded(scene("green", "blue")))
    query = next(page.take(file, *CONTROLS))[0]
    assert "found" in _first(page, query, None, None, None, None, *CONTROLS)
    said = list(page.press(query, 50, None, None, 64, *CONTROLS))
    assert len(said) == 2 and "attention map" in said[1][1]
    assert said[0][0].index(">blue<") < said[0][0].index(">green<")
    assert "contains no pixel" in _first(page, query, 96, 0, 96, 64, *CONTROLS)
    assert "Unknown scales" in _first(page, query, 0, 0, 9, 9, "x", "none", 4, None)
    assert "choose a photo first" in next(page.press(None, 0, 0, 0, 0, *CONTROLS))[0]


def test_photos_are_added_up_to_a_limit(page, tmp_path):
    names = ("red", "green", "blue", "yellow")
    files = {name: _upload(tmp_path, f"{name}.png", encoded(scene(name))) for name in names}
    wrong = _upload(tmp_path, "notes.txt", b"notes")
    *working, (added, said) = page.add([files["red"], wrong, files["blue"]], None)
    assert len(working) == 2 and "2 of 3 files" in working[1][1]
    assert sorted(file.partition("/")[2] for file in added.files) == ["blue.png", "red.png"]
    assert "2 photos of yours are searched too; you may add up to 3." in said
    assert "Left out: notes.txt: The file cannot be read" in said
    *_, (more, said) = page.add([files["red"], files["green"], files["yellow"]], added)
    assert len(more.files) == len(more.rows) == len(more.thumbnails) == 3
    assert "Already added: 1." in said and "Left out, as there is no room for more: 1." in said
    assert len(added.files) == 2
    # Another photo of the same name is another photo.
    twin = _upload(tmp_path, "red.png", encoded(scene("violet")))
    *_, (both, _) = page.add([twin], added)
    assert len(both.files) == 3
    *_, (none, said) = page.add(None, None)
    assert none is None and said == ""
