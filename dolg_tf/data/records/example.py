"""Reading a serialised `tf.train.Example` without TensorFlow, whoever wrote it.

Reference: the protocol buffers' encoding, https://protobuf.dev/programming-guides/encoding. Keys
may come in any order, and integers packed or one by one.
"""

from collections.abc import Iterator

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_BYTES_LIST, _INT64_LIST = 1, 3  # fields of a Feature


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the unsigned value at a place, and the place behind it."""
    value = shift = 0
    while True:
        if at == len(data) or shift > 63:
            raise ValueError("a number is cut short")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & (1 << 64) - 1, at


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields number and value of each field of a message: an int, or what a length delimits."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire in (_DELIMITED, _EIGHT_BYTES, _FOUR_BYTES):
            if wire == _DELIMITED:
                size, at = _varint(data, at)
            else:
                size = 8 if wire == _EIGHT_BYTES else 4
            if size > len(data) - at:
                raise ValueError("a field is cut short")
            value, at = data[at : at + size], at + size
        else:
            raise ValueError(f"a field of unknown type {wire}")
        yield tag >> 3, value


def _delimited(data: memoryview, number: int) -> Iterator[memoryview]:
    """Yields the fields of one number that a length delimits."""
    for found, value in _fields(data):
        if found == number and isinstance(value, memoryview):
            yield value


def _int64s(data: memoryview) -> list[int]:
    values = []
    for number, value in _fields(data):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
        else:  # packed
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                values.append(one)
    return [value - (1 << 64) if value >> 63 else value for value in values]


def parse_example(data: bytes) -> dict[str, list]:
    """Parses a serialised `tf.train.Example`.

    Returns:
      {key: values}: a list of bytes, or of int; an empty list for floats, which DELG's schema has
      not.

    Raises:
      ValueError: when the data is no such message.
    """
    found = {}
    for features in _delimited(memoryview(data), 1):
        for entry in _delimited(features, 1):
            key, values = "", []
            for number, value in _fields(entry):
                if number == 1 and isinstance(value, memoryview):
                    key = bytes(value).decode()
                elif number == 2 and isinstance(value, memoryview):
                    values = _values(value)
            found[key] = values
    return found


def find_bytes(data: memoryview, key: bytes) -> bytes | None:
    """Returns the first bytes of one key of a serialised `tf.train.Example`, None without any.

    Nothing else is read: of a memory-mapped file the photo of a record stays on disk.

    Raises:
      ValueError: when the data is no such message.
    """
    for features in _delimited(data, 1):
        for entry in _delimited(features, 1):
            if next(_delimited(entry, 1), None) == key:
                for feature in _delimited(entry, 2):
                    for part in _delimited(feature, _BYTES_LIST):
                        return next((bytes(value) for value in _delimited(part, 1)), None)
    return None


def _values(feature: memoryview) -> list:
    values = []
    for kind, part in _fields(feature):
        if kind == _BYTES_LIST and isinstance(part, memoryview):
            values += [bytes(value) for value in _delimited(part, 1)]
        elif kind == _INT64_LIST and isinstance(part, memoryview):
            values += _int64s(part)
    return values
