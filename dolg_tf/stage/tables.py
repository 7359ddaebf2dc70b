"""CSV tables: the project's one reader and one writer. UTF-8, comma-separated, with a header."""

import csv
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError


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
    csv.field_size_limit(1 << 30)  # GLDv2 lists all photos of a landmark in one field
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: no such file")
    with pathlib.Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
            places = _places(path, header, columns)
            for row in reader:
                if row and len(row) != len(header):
                    where = f"{path}, line {reader.line_num}"
                    raise InputError(f"{where}: {len(row)} fields, the header has {len(header)}")
                if row:
                    values = ["" if place is None else row[place] for place in places]
                    if "\0" in "".join(values):
                        where = f"{path}, line {reader.line_num}"
                        raise InputError(f"{where}: a NUL character; save the table as UTF-8 text")
                    yield f"{path}, line {reader.line_num}", values
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, after line {reader.line_num}: {error}") from error


def _places(path: files.Path, header: list[str], columns: Sequence[Sequence[str]]) -> list:
    """Returns where each column stands in a row; None for an optional one that is not there."""
    places = []
    for names in columns:
        name = next((name for name in names if name in header or not name), None)
        if name is None:
            what = " or ".join(map(repr, names))
            raise InputError(f"{path}, line 1: no column {what}, only {','.join(header)}")
        places.append(header.index(name) if name else None)
    return places


def write_table(path: files.Path, header: Sequence[str], rows: Iterable[Sequence]) -> pathlib.Path:
    """Writes a table, whole or not at all, row by row.

    Lines end in a single line feed, on every system: Kaggle's files are compared byte for byte.

    Args:
      path: of the file; its folder is made.
      header: names of the columns.
      rows: values by column, written with `str`; may be a generator.

    Returns:
      The path.
    """
    path = pathlib.Path(path)
    with (
        files.atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
