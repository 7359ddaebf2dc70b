import base64
import io
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps.pictures.ranked_list import (
    RankedPhoto,
    RankedRow,
    maps_overlay,
    new_figure,
    ranked_list,
)
from dolg_tf.apps.report import page as report_page
from dolg_tf.apps.report.page import Heading, Note, Picture, Section, Table
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
EVIL = '<script src="http://x.example/a.js">alert(1)</script>" onload="x'


def _picture(name="a", **more):
    return Picture(name, new_figure(1, 0.5), f"alt {EVIL}", f"caption {EVIL}", **more)


def _sections():
    return [
        Section(EVIL, [f"words {EVIL}", Heading(EVIL), Note(f"{EVIL} give --index."), _picture()]),
        Section(EVIL, [Table([EVIL, "b"], [[EVIL, EVIL]], EVIL), _picture("b", wide=True)]),
        Section("Photos", [_picture("c", photographs=True)]),
    ]


def test_everything_is_escaped_and_nothing_fetched(tmp_path, check_self_contained):
    path = report_page.write_page(tmp_path / "out", EVIL, _sections(), EVIL)
    page = check_self_contained(path.read_text())
    assert page.all("img")[0]["alt"] == f"alt {EVIL}"
    assert "".join(page.text).count(EVIL) == 17
    assert len(page.all("section")) == 3
    kinds = [image["src"][:20] for image in page.all("img")]
    assert kinds == ["data:image/png;base6"] * 2 + ["data:image/jpeg;base"]
    # The only landmarks are banner, contents, main and its named sections.
    assert not [name for name, one in page.elements if one.get("role") == "region"]
    assert page.elements[page.elements.index(("body", {})) + 1][1]["href"] == "#content"
    assert [code for code in page.elements if code[0] == "code"]


def test_photos_have_a_dark_version_and_diagrams_turn_around(tmp_path, check_self_contained):
    figure = maps_overlay(np.full((40, 60, 3), 255, np.uint8), {"seen": np.eye(4)})
    sections = [Section("x", [Picture("a", figure, "a", photographs=True), _picture("b")])]
    text = report_page.write_page(tmp_path / "out", "t", sections).read_text()
    page = check_self_contained(text)
    assert [image.get("class") for image in page.all("img")] == [None, "diagram"]
    (source,) = page.all("source")
    assert source["media"] == "(prefers-color-scheme: dark)"
    light, dark = (_pixels(one) for one in (page.all("img")[0]["src"], source["srcset"]))
    assert light[0, 0].min() > 250 and dark[0, 0].max() < 30  # the paper
    assert dark.shape == light.shape
    photo = light.shape[0] // 2, 40
    np.testing.assert_allclose(light[photo], dark[photo], atol=6)  # photos stay
    assert 150 < dark[:, -60:].max() < 250  # the scale's letters are seen
    assert "img.diagram { filter: invert(1)" in text


def _pixels(source):
    data = io.BytesIO(base64.b64decode(source.split(",")[1]))
    return np.asarray(Image.open(data).convert("RGB"), np.int64)


def test_a_ranked_list_is_shown_photo_by_photo(tmp_path, check_self_contained):
    white = np.full((400, 800, 3), 255, np.uint8)
    found = [RankedPhoto(white, "positive", 0.75), RankedPhoto(white[:30, :20], "junk")]
    row = RankedRow(white, found, (100, 100, 300, 200), f"query {EVIL}")
    picture = Picture("list", ranked_list([row]), "a list", "caption", rows=[row])
    page = check_self_contained(
        report_page.write_page(tmp_path / "out", "t", [Section("x", [picture])]).read_text()
    )
    assert [one["class"] for one in page.all("li") if "class" in one] == [
        "query",
        "positive",
        "junk",
    ]
    alts = [image["alt"] for image in page.all("img")]
    assert alts == [
        f"query {EVIL}",
        "rank 1, same landmark, similarity 0.750",
        "rank 2, not counted",
    ]
    sizes = [(image["width"], image["height"]) for image in page.all("img")]
    assert sizes == [("320", "160"), ("320", "160"), ("20", "30")]
    query = _pixels(page.all("img")[0]["src"])
    assert query[40, 60, 2] < 120 and query[10, 10].min() > 250  # the box is drawn
    assert (tmp_path / "out" / "list.png").exists()


def test_the_pngs_are_those_of_the_page(tmp_path, check_self_contained):
    path = report_page.write_page(tmp_path / "out", "t", _sections())
    assert {p.name for p in path.parent.iterdir()} == {"a.png", "b.png", "c.png", "report.html"}
    page = check_self_contained(path.read_text())
    data = [base64.b64decode(image["src"].split(",")[1]) for image in page.all("img")]
    assert data[0] == (path.parent / "a.png").read_bytes()
    with Image.open(path.parent / "c.png") as image:
        assert Image.open(io.BytesIO(data[2])).size == image.size


def test_a_phone_scrolls_down_only_and_the_dark_is_dark(tmp_path):
    if not CHROMIUM:
        pytest.skip("there is no chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    wide = [f"column {number} mAP %" for number in range(9)]
    cells = ["a descriptor of landmarks", *["100.0 (100.0-100.0)"] * 8]
    photo = np.zeros((40, 60, 3), np.uint8)
    maps = maps_overlay(photo, {name: np.eye(4) for name in "abc"})
    picture = Picture("maps", maps, "maps", wide=True, photographs=True)
    sections = [Section("x", [Table(wide, [cells]), picture, _picture("diagram")])]
    path = report_page.write_page(tmp_path / "out", "t", sections)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 640}, color_scheme="dark")
        page.goto(path.as_uri())
        widths = "[document.documentElement.scrollWidth, ...[...document.querySelectorAll('*')]"
        widths += ".map(one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth > 1"
        widths += " && getComputedStyle(one).overflowX != 'visible' ? 9999 : 0)]"
        assert max(page.evaluate(widths)) == 360
        assert page.get_by_role("cell", name="100.0 (100.0-100.0)").count() == 8
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("L")
        browser.close()
    assert np.mean(np.asarray(shot) > 200) < 0.1  # no bright plate


def test_a_failure_leaves_what_stood_there(tmp_path):
    output = tmp_path / "out"
    report_page.write_page(output, "first", [])

    class Broken:
        def savefig(self, file, format):
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report_page.write_page(output, "second", [Section("x", [Picture("x", Broken(), "x")])])
    assert [p.name for p in output.iterdir()] == ["report.html"]
    assert "first" in (output / "report.html").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.lock"}
    report_page.write_page(output, "third", [Section("x", [_picture()])])
    report_page.write_page(output, "fourth", [])
    assert [p.name for p in output.iterdir()] == ["report.html"]  # no picture of another page


def test_two_at_once_do_not_mix(tmp_path):
    with (
        files.lock(tmp_path / ".out.lock", ""),
        pytest.raises(InputError, match="another process is writing this report"),
    ):
        report_page.write_page(tmp_path / "out", "t", [])
    assert not (tmp_path / "out").exists()


def test_other_folders_stay(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds thesis\.txt, so it is not a report"):
        report_page.write_page(tmp_path, "t", [])
    with pytest.raises(InputError, match="is a file; name a folder"):
        report_page.write_page(tmp_path / "thesis.txt", "t", [])
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"has no report\.html, so it is not a report"):
        report_page.write_page(photos, "t", [])


def test_a_second_picture_of_one_name_gets_a_number(tmp_path):
    """Data named `Köln` and `Kiln` may have one slug."""
    page = report_page.write_page(
        tmp_path / "out", "t", [Section("x", [_picture(), _picture(), _picture()])]
    )
    names = sorted(path.name for path in page.parent.glob("*.png"))
    assert names == ["a.png", "a_2.png", "a_3.png"]
    assert page.read_text().count("<img") == 3


def test_names_that_are_no_text_are_shown(tmp_path):
    page = report_page.write_page(tmp_path / "out", "a \udcff", [Section("x", ["\ud800 <b>"])])
    assert "<title>a ?</title>" in page.read_text() and "? &lt;b&gt;" in page.read_text()


def test_what_is_empty():
    assert Section("x", [Heading("a"), Note("b")]).is_empty
    assert Section("x", [Note("b")]).notes == ["b"]
    assert not Section("x", [Note("b"), "words"]).is_empty


def test_a_report_that_someone_put_a_file_into_stays(tmp_path):
    path = report_page.write_page(tmp_path / "out", "t", [])
    (path.parent / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes\.txt, so it is not a report"):
        report_page.write_page(tmp_path / "out", "t", [])
    assert (path.parent / "notes.txt").read_text() == "mine"


def test_without_jinja(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"the page: jinja2 is missing; pip install .*\[report\]"):
        report_page.template()
