"""MATLAB files of versions 5 to 7.2, as far as ground truths need them: in bounded memory.

SciPy's reader is C that trusts the file: a flipped bit can end the process. Here are cells,
structs, characters and real numbers; a variable with anything else is refused.

Reference: MathWorks, "MAT-File Format" (level 5).
"""

import dataclasses
import math
import pathlib
import struct
import zlib
from collections.abc import Collection

import numpy as np

from dolg_tf.stage import files

_HEADER = 128
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_NUMBERS |= {12: "i8", 13: "u8"}
_TEXTS = {1: "latin-1", 2: "utf-8", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_CELL, _STRUCT, _CHAR, _NUMERIC, _OPAQUE = 1, 2, 4, range(6, 16), 17
_COMPLEX = 0x0800
_DEEPEST = 4  # cells in cells in structs


class NotRead(Exception):
    """Why a file is not read. Callers add its name."""


@dataclasses.dataclass
class _Budget:
    """What may still be made of a file."""

    bytes: int
    values: int

    def take_value(self) -> None:
        self.values -= 1
        if self.values < 0:
            raise NotRead("it has too many values")


class _Elements:
    """The data elements in some bytes, one after the other."""

    def __init__(self, data, order: str):
        self._data, self.order, self._at = memoryview(data), order, 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def __len__(self) -> int:
        return len(self._data) - self._at

    def take(self) -> tuple[int, memoryview]:
        """Returns type and bytes of the next element."""
        if len(self) < 8:
            raise NotRead("it is cut short")
        kind, size = struct.unpack_from(f"{self.order}II", self._data, self._at)
        if kind >> 16:  # a small element: its size, type and up to four bytes in one
            kind, size, start = kind & 0xFFFF, kind >> 16, self._at + 4
            padded = 4
        else:
            start, padded = self._at + 8, size if kind == _COMPRESSED else -(-size // 8) * 8
        if size > padded or start + size > len(self._data):
            raise NotRead("it is cut short or damaged")
        self._at = min(start + padded, len(self._data))
        return kind, self._data[start : start + size]

    def take_numbers(self) -> np.ndarray:
        """Returns the numbers of the next element."""
        kind, data = self.take()
        if kind not in _NUMBERS:
            raise NotRead(f"it has data of type {kind} where numbers should be")
        dtype = np.dtype(self.order + _NUMBERS[kind])
        if len(data) % dtype.itemsize:
            raise NotRead("it is damaged: half a number")
        return np.frombuffer(data, dtype)

    def take_bytes(self) -> bytes:
        return bytes(self.take()[1])


class _Matrix:
    """The head of a variable, and the elements that follow."""

    def __init__(self, data: memoryview, order: str):
        self.rest = _Elements(data, order)
        flags = self.rest.take_numbers()
        if len(flags) != 2:
            raise NotRead("it is damaged: a variable without flags")
        self.kind, self.complex = int(flags[0]) & 0xFF, int(flags[0]) & _COMPLEX
        self.shape = [1, 1] if self.kind == _OPAQUE else self._take_shape()
        self.count = math.prod(self.shape)
        self.name = self.rest.take_bytes().decode("latin-1")

    def _take_shape(self) -> list[int]:
        shape = self.rest.take_numbers()
        if len(shape) < 2 or shape.dtype.kind != "i" or (shape < 0).any():
            raise NotRead("it is damaged: a variable without a shape")
        return shape.tolist()

    def check_count(self, count: int) -> None:
        if count * 8 > len(self.rest):  # an element has 8 bytes at least
            raise NotRead(f"it is damaged: {count} values in {len(self.rest)} bytes")


def _value(data: memoryview, order: str, budget: _Budget, depth: int = 0):
    """Returns a list of values or of dicts, a string or strings by row, or numbers by column."""
    budget.take_value()
    if not len(data):
        return np.zeros(0)
    matrix = _Matrix(data, order)
    if depth > _DEEPEST:
        raise NotRead("its cells lie too deep in one another")
    if matrix.kind == _CELL:
        matrix.check_count(matrix.count)
        return [_inner(matrix.rest, budget, depth) for _ in range(matrix.count)]
    if matrix.kind == _STRUCT:
        return _structs(matrix, budget, depth)
    if matrix.kind == _CHAR:
        return _text(matrix)
    if matrix.kind not in _NUMERIC or matrix.complex:
        raise NotRead("it has a value that is no cell, struct, text or real number")
    found = matrix.rest.take_numbers()
    if len(found) != matrix.count:
        raise NotRead(f"it is damaged: {len(found)} numbers for {matrix.count}")
    return found


def _inner(elements: _Elements, budget: _Budget, depth: int):
    kind, data = elements.take()
    if kind != _MATRIX:
        raise NotRead(f"it has data of type {kind} where a value should be")
    return _value(data, elements.order, budget, depth + 1)


def _structs(matrix: _Matrix, budget: _Budget, depth: int) -> list[dict]:
    longest, names = matrix.rest.take_numbers(), matrix.rest.take_bytes()
    size = int(longest[0]) if len(longest) == 1 else 0
    if not 0 < size <= 1024 or len(names) % size:
        raise NotRead("it is damaged: a struct without names")
    fields = [names[at : at + size] for at in range(0, len(names), size)]
    fields = [field.partition(b"\0")[0].decode("latin-1") for field in fields]
    if not fields and matrix.count:
        raise NotRead("it has a struct without fields")
    matrix.check_count(matrix.count * len(fields))
    return [
        {field: _inner(matrix.rest, budget, depth) for field in fields} for _ in range(matrix.count)
    ]


def _text(matrix: _Matrix) -> str | list[str]:
    if not matrix.count:
        return ""
    kind, data = matrix.rest.take()
    if kind not in _TEXTS:
        raise NotRead(f"it has data of type {kind} where text should be")
    wide = _TEXTS[kind]
    suffix = "" if wide in ("latin-1", "utf-8") else "-le" if matrix.rest.order == "<" else "-be"
    try:
        text = bytes(data).decode(wide + suffix)
    except UnicodeDecodeError as error:
        raise NotRead(f"it has text that is not {wide.upper()}") from error
    rows = math.prod(matrix.shape[:-1])
    if rows <= 1:
        return text
    if len(text) != matrix.count:
        raise NotRead("it is damaged: text of another length than it says")
    return [text[row::rows].rstrip(" ") for row in range(rows)]  # by column, padded


def _unpacked(data: memoryview, budget: _Budget) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data, budget.bytes + 1)
    except zlib.error as error:
        raise NotRead(f"it is damaged ({error})") from error
    budget.bytes -= len(found)
    if budget.bytes < 0:
        raise NotRead("it holds too much")
    if not unpacker.eof:
        raise NotRead("it is cut short")
    return found


def _order(data: bytes) -> str:
    """Returns the order of bytes, by the file's header."""
    if data[:4] == b"\x89HDF" or data[124:128] in (b"\0\2IM", b"\2\0MI"):
        raise NotRead("it is of MATLAB 7.3; save it with -v7")
    if data[124:128] not in (b"\0\1IM", b"\1\0MI"):
        raise NotRead("it is not a MATLAB file of version 5 to 7.2")
    return "<" if data[126:128] == b"IM" else ">"


def read(path: files.Path, wanted: Collection[str], most_bytes: int, most_values: int) -> dict:
    """Returns the variables of these names that a file has; others are passed over.

    A cell array is a list, a struct array a list of dicts; both run down the columns. Characters
    are a string, or a list of strings where they have several rows. Numbers are a flat array.

    Args:
      path: the file.
      wanted: names of variables.
      most_bytes: of the file, and of what is compressed in it.
      most_values: in all variables; a value takes about 200 bytes of memory besides its numbers.

    Raises:
      NotRead: when the file is damaged, too large or of another version, or a wanted variable has
        something else in it.
    """
    with pathlib.Path(path).open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise NotRead(f"it is larger than {most_bytes} bytes")
    order, budget, found = _order(data), _Budget(most_bytes, most_values), {}
    elements = _Elements(memoryview(data)[_HEADER:], order)
    while elements:
        kind, content = elements.take()
        if kind == _COMPRESSED:
            kind, content = _Elements(_unpacked(content, budget), order).take()
        if kind != _MATRIX:
            raise NotRead(f"it has data of type {kind} where a variable should be")
        if len(content) and (name := _Matrix(content, order).name) in wanted:
            found[name] = _value(content, order, budget)
    return found
