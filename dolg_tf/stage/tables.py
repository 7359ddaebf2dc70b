"""CSV tables: the project's one reader and one writer. UTF-8, comma-separated, with a header.

A spreadsheet runs a cell that begins with `=`, so a photo's name could be a program. `write_table`
puts an apostrophe before such a value, and `read_table` takes it away again.
"""

import csv
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# GLDv2 lists all photos of a landmark in one field: 0.2 MB at most.
_LONGEST_ROW, _MOST_COLUMNS = 1 << 24, 1000
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# Also in full width, which some spreadsheets take for the same.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_QUOTED = re.compile(r'[",\r\n]')


def _lines(file, length: list[int]) -> Iterator[str]:
    """Yields the lines of a file; `length` counts the letters since it was last set to [0].

    Raises:
      csv.Error: when a row of the table, which may have many lines, is too long.
    """
    while line := file.readline(_LONGEST_ROW + 1):
        length[0] += len(line)
        if length[0] > _LONGEST_ROW:
            raise csv.Error(f"a row of more than {_LONGEST_ROW} characters; is a quote not closed?")
        yield line


def read_table(path: files.Path, *columns: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yields ("FILE, line N", values of the columns) for each row that is not empty.

    Args:
      path: the file; a byte order mark is skipped.
      *columns: the names that each column may have; the first one in the header counts. With ""
        among them the column is optional, and its values are "".

    Raises:
      InputError: with file and line, when the file is missing, is not UTF-8 or not CSV, lacks a
        column, has a row that is longer or shorter than the header, or a NUL character.
    """
    path = pathlib.Path(path)
    csv.field_size_limit(_LONGEST_ROW)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        if file.read(2) in _UTF_16:
            raise InputError(f"{path}: this is UTF-16; save it as 'CSV UTF-8'")
    with path.open(encoding="utf-8-sig", newline="") as file:
        length, done = [0], 0
        reader = csv.reader(_lines(file, length))
        try:
            places = width = None
            for row in reader:
                length[0], done = 0, reader.line_num
                where = f"{path}, line {done}"
                if width is None:
                    places, width = _places(where, row, columns), len(row)
                elif row:
                    yield where, _values(where, row, width, places)
            if width is None:
                _places(f"{path}, line 1", [], columns)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, after line {done}: not UTF-8 (byte "
                f"{error.object[error.start]:#x}: {error.reason}); save it as 'CSV UTF-8'"
            ) from error
        except csv.Error as error:
            raise InputError(f"{path}, after line {done}: {error}") from error


def _values(where: str, row: list[str], width: int, places: list) -> list[str]:
    """Returns the values of a row in the columns asked for."""
    if len(row) != width:
        raise InputError(f"{where}: {len(row)} fields, the header has {width}")
    values = ["" if place is None else row[place] for place in places]
    text = "".join(values)
    if "\0" in text:
        raise InputError(f"{where}: a NUL character; save the table as UTF-8 text")
    if "'" not in text:
        return values
    return [value[1:] if value[:1] == "'" and _FORMULA.match(value) else value for value in values]


def _places(where: str, header: list[str], columns: Sequence[Sequence[str]]) -> list:
    """Returns where each column stands in a row; None for an optional one that is not there."""
    if len(header) > _MOST_COLUMNS:
        raise InputError(f"{where}: {len(header)} columns, of which {_MOST_COLUMNS} are too many")
    header, places = [name.strip() for name in header], []
    for names in columns:
        name = next((name for name in names if name in header or not name), None)
        if name is None:
            raise InputError(f"{where}: no column {' or '.join(map(repr, names))}{_only(header)}")
        if name and header.count(name) > 1:
            raise InputError(f"{where}: {header.count(name)} columns {name!r}; name one otherwise")
        places.append(header.index(name) if name else None)
    return places


def _only(header: list[str]) -> str:
    """Says what is there instead of a column."""
    text = ",".join(header)
    if not text:
        return ", it is empty"
    if "\0" in text:
        return ", but NUL characters; save the table as 'CSV UTF-8'"
    other = next((f"{mark!r}" for mark in ";\t|" if mark in text), None)
    remedy = f"; columns are separated by commas, not by {other}" if other else ""
    return f", only {text[:200]}{remedy}"


def _cell(value) -> str:
    """Returns a value as it is written."""
    text = str(value)
    if _FORMULA.match(text) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def write_table(path: files.Path, header: Sequence[str], rows: Iterable[Sequence]) -> pathlib.Path:
    """Writes a table, whole or not at all, row by row.

    Lines end in a single line feed, on every system: Kaggle's files are compared byte for byte.

    Args:
      path: of the file; its folder is made.
      header: names of the columns.
      rows: values by column, written with `str`; may be a generator. What a spreadsheet would take
        for a formula gets an apostrophe before it, unless it is a number.

    Returns:
      The path.

    Raises:
      InputError: when a value cannot be encoded as UTF-8.
    """
    path = pathlib.Path(path)
    with (
        files.atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        for row in itertools.chain([header], rows):
            try:
                file.write(",".join(map(_cell, row)) or '""')
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{path}: {error.object[:200]!r} cannot be encoded as UTF-8; rename the photo"
                ) from error
            file.write("\n")
    return path
