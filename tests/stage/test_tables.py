"""The one CSV reader and the one CSV writer."""

import csv
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_below

from dolg_tf.stage import tables
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table, write_table


def _write(tmp_path, data: bytes):
    path = tmp_path / "some.csv"
    path.write_bytes(data)
    return path


def test_columns_by_name_in_the_order_asked_for(tmp_path):
    path = _write(tmp_path, b'\xef\xbb\xbfa,b,c\n1,2,3\n\n4,"5,\n6",7\r\n')  # a byte order mark
    found = list(read_table(path, ["c"], ["a"], ["landmark", "b"], ["split", ""]))
    assert found == [
        (f"{path}, line 2", ["3", "1", "2", ""]),
        (f"{path}, line 5", ["7", "4", "5,\n6", ""]),  # line 5: the row ends there
    ]
    assert [values for _, values in read_table(path)] == [[], []]


def test_the_first_name_that_is_there_counts(tmp_path):
    path = _write(tmp_path, b"label,landmark\nx,y\n")
    assert [values for _, values in read_table(path, ["landmark", "label"])] == [["y"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ", line 1: no column 'path' or 'id', it is empty"),
        (b"name\nx\n", ", line 1: no column 'path' or 'id', only name"),
        (
            b"path;split\nx;y\n",
            ", line 1: no column 'path' or 'id', only path;split; columns are ",
        ),
        (b"path\tsplit\nx\ty\n", "separated by commas, not by '\\\\t'"),
        (b"path,b,path\nx,y,z\n", ", line 1: 2 columns 'path'; name one otherwise"),
        (b"path" + b"," * 10**6 + b"\n", ", line 1: 1000001 columns, of which 1000 are too many"),
        (b"path,b\nx,y\nx\0,y\n", ", line 3: a NUL character; save the table as UTF-8 text"),
        (
            "path\nx\n".encode("utf-16-le"),
            ", line 1: .*NUL characters; save the table as 'CSV UTF-8'",
        ),
        ("path\nx\n".encode("utf-16"), ": this is UTF-16; save it as 'CSV UTF-8'"),
        (b"path,b\nx,y\nz\n", ", line 3: 1 fields, the header has 2"),
        (b"path,b\nx,y,z\n", ", line 2: 3 fields, the header has 2"),
        (b"path\nx\n\xe9\n", ", after line 0: not UTF-8 .byte 0xe9: .*; save it as 'CSV UTF-8'"),
        (
            b'path\nx\n"' + b"x\n" * 100,
            ", after line 2: a row of more than 99 char.*a quote not clo",
        ),
        (b'path\n"' + b"x" * 100, ", after line 1: a row of more than 99 characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, monkeypatch, data, message):
    path = _write(tmp_path, data)
    if len(data) < 1000:
        monkeypatch.setattr(tables, "_LONGEST_ROW", 99)
    with pytest.raises(InputError) as error:
        list(read_table(path, ["path", "id"]))
    assert re.search(message, str(error.value)), error.value
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 400


def test_a_header_alone_has_no_rows(tmp_path):
    assert list(read_table(_write(tmp_path, b"path\n"), ["path"])) == []


def test_blanks_around_names_of_columns_do_not_count(tmp_path):
    path = _write(tmp_path, b"id, path ,b\n1, x ,2\n")
    assert [values for _, values in read_table(path, ["path"])] == [[" x "]]


@pytest.mark.parametrize("row", [b"x,\n", b'x","\n', b"x,"])
def test_a_quote_that_is_not_closed_takes_no_memory(tmp_path, monkeypatch, row):
    monkeypatch.setattr(tables, "_LONGEST_ROW", 1 << 12)
    path = _write(tmp_path, b'path\n"' + row * (1 << 20))
    with peak_below(1), pytest.raises(InputError, match="is a quote not closed"):
        list(read_table(path, ["path"]))


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        list(read_table(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"no such file"):
        list(read_table(tmp_path))


def test_written_bytes(tmp_path):
    """Line feeds alone, quotes only where they must be, UTF-8 without a byte order mark."""
    rows = ((name, number) for number, name in enumerate(["é", "a,b", 'say "x"', "a=1+1", ""]))
    path = write_table(tmp_path / "new" / "some.csv", ("name", "number"), rows)
    expected = 'name,number\né,0\n"a,b",1\n"say ""x""",2\na=1+1,3\n,4\n'
    assert path.read_bytes() == expected.encode()


def test_read_back(tmp_path):
    rows = [["é", "line\nbreak"], ["", "a,b"], ['"', " x "]]
    path = write_table(tmp_path / "some.csv", ["a", "b"], rows)
    assert [values for _, values in read_table(path, ["a"], ["b"])] == rows
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], *rows]


FORMULAS = ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "=", "'=x", "''-x", "\uff1dx", "-1-1", "- 1"]


def test_what_a_spreadsheet_would_run_gets_an_apostrophe(tmp_path):
    path = write_table(tmp_path / "some.csv", ["a"], [[value] for value in FORMULAS])
    with path.open(encoding="utf-8", newline="") as file:
        found = [row[0] for row in csv.reader(file)][1:]
    assert found == [f"'{value}" for value in FORMULAS]


def test_numbers_and_apostrophes_stay_as_they_are(tmp_path):
    values = ["-1", "+2.5", "-.5e-07", "-1.", "'tis", "'", "''", "x=1", " =1"]
    path = write_table(tmp_path / "some.csv", ["a"], [[value] for value in [*values, -3, -0.5]])
    assert path.read_text().split("\n") == ["a", *values, "-3", "-0.5", ""]
    # A table from elsewhere keeps what only looks like an escape.
    path = _write(tmp_path, b"path\n=x\n'tis\n")
    assert [values for _, values in read_table(path, ["path"])] == [["=x"], ["'tis"]]


@given(
    rows=st.lists(
        st.lists(
            st.text(st.sampled_from("'=+-@\t\r\n\",; aé\u2028\uff1d1")) | st.text(),
            min_size=2,
            max_size=2,
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_back(tmp_path_factory, rows):
    rows = [row for row in rows if "\0" not in "".join(row)]
    path = write_table(tmp_path_factory.getbasetemp() / "any.csv", ["a", "b"], rows)
    assert [values for _, values in read_table(path, ["a"], ["b"])] == rows
    write_table(path, ["a"], [row[:1] for row in rows])
    assert [values for _, values in read_table(path, ["a"])] == [row[:1] for row in rows]


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot be encoded as UTF-8; rename the photo"):
        write_table(tmp_path / "some.csv", ["a"], [["x"], ["\udcff"]])
    assert not list(tmp_path.iterdir())


def test_whole_or_not_at_all(tmp_path):
    path = write_table(tmp_path / "some.csv", ["a"], [["old"]])

    def rows():
        yield ["new"]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_table(path, ["a"], rows())
    assert path.read_text() == "a\nold\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.csv"]
