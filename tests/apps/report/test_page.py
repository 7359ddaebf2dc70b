import base64
import io
import sys

import pytest
from PIL import Image

from dolg_tf.apps.pictures.ranked_list import new_figure
from dolg_tf.apps.report import page as report_page
from dolg_tf.apps.report.page import Heading, Note, Picture, Section, Table
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

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
    # Wide tables and pictures are scrolled inside their own containers.
    assert sum(div.get("class") == "scroll" for div in page.all("div")) == 2
    assert all(div["tabindex"] == "0" for div in page.all("div") if div["class"] == "scroll")
    assert [code for code in page.elements if code[0] == "code"]


def test_the_pngs_are_those_of_the_page(tmp_path, check_self_contained):
    path = report_page.write_page(tmp_path / "out", "t", _sections())
    assert {p.name for p in path.parent.iterdir()} == {"a.png", "b.png", "c.png", "report.html"}
    page = check_self_contained(path.read_text())
    data = [base64.b64decode(image["src"].split(",")[1]) for image in page.all("img")]
    assert data[0] == (path.parent / "a.png").read_bytes()
    with Image.open(path.parent / "c.png") as image:
        assert Image.open(io.BytesIO(data[2])).size == image.size


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
