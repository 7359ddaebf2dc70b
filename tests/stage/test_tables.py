"""The one CSV reader and the one CSV writer."""

import csv

import pytest

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
        (b"", "line 1: no column 'path' or 'id', only "),
        (b"name\nx\n", "line 1: no column 'path' or 'id', only name"),
        (b"path,b\nx,y\nx\0,y\n", "line 3: a NUL character; save the table as UTF-8 text"),
        (b"path,b\nx,y\nz\n", "line 3: 1 fields, the header has 2"),
        (b"path,b\nx,y,z\n", "line 2: 3 fields, the header has 2"),
        (b"path\n\xff\n", "after line 0: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, data, message):
    path = _write(tmp_path, data)
    with pytest.raises(InputError) as error:
        list(read_table(path, ["path", "id"]))
    assert str(error.value).startswith(f"{path}, {message}")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.csv: no such file"):
        list(read_table(tmp_path / "none.csv"))
    with pytest.raises(InputError, match=r"no such file"):
        list(read_table(tmp_path))


def test_written_bytes(tmp_path):
    """Line feeds alone, quotes only where they must be, UTF-8 without a byte order mark."""
    rows = ((name, number) for number, name in enumerate(["é", "a,b", 'say "x"', "=1+1", ""]))
    path = write_table(tmp_path / "new" / "some.csv", ("name", "number"), rows)
    expected = 'name,number\né,0\n"a,b",1\n"say ""x""",2\n=1+1,3\n,4\n'
    assert path.read_bytes() == expected.encode()


def test_read_back(tmp_path):
    rows = [["é", "line\nbreak"], ["", "a,b"], ['"', " x "]]
    path = write_table(tmp_path / "some.csv", ["a", "b"], rows)
    assert [values for _, values in read_table(path, ["a"], ["b"])] == rows
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], *rows]


def test_whole_or_not_at_all(tmp_path):
    path = write_table(tmp_path / "some.csv", ["a"], [["old"]])

    def rows():
        yield ["new"]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_table(path, ["a"], rows())
    assert path.read_text() == "a\nold\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.csv"]
