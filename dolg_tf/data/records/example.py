"""Readers of a serialised `tf.train.Example` that need no TensorFlow, whoever wrote it.

One reader parses the whole message. The other skips the photo, which the library cannot.

Reference: the protocol buffers' encoding, https://protobuf.dev/programming-guides/encoding. Keys
may come in any order.
"""

from collections.abc import Iterator

from dolg_tf.data import protos

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_BYTES_LIST, _INT64_LIST = 1, 3  # fields of a Feature


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Returns the unsigned value at a place, and the place after it."""
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
    """Yields number and value of each field of a message: an int, or length-delimited bytes."""
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
    """Yields the length-delimited fields of one number."""
    for found, value in _fields(data):
        if found == number and isinstance(value, memoryview):
            yield value


def parse_example(data: bytes) -> dict[str, list]:
    """Parses a serialised `tf.train.Example`.

    Returns:
      {key: values}: a list of bytes or of int; an empty list for floats, which DELG's schema does
      not have.

    Raises:
      ValueError: when the data is not such a message.
    """
    found = {}
    for entry in protos.parse(protos.example_class(), data).features.feature:
        value = entry.value
        found[entry.key] = [*value.bytes_list.value, *value.int64_list.value]
    return found


def find_bytes(data: memoryview, key: bytes) -> bytes | None:
    """Returns the first bytes value of one key of a serialised `tf.train.Example`, or None.

    Nothing else is read: in a memory-mapped file, the photo of a record stays on disk.

    Raises:
      ValueError: when the data is not such a message.
    """
    for part in _lists(data, key, _BYTES_LIST):
        return next((bytes(value) for value in _delimited(part, 1)), None)
    return None


def find_int(data: memoryview, key: bytes) -> int | None:
    """Returns the first int64 value of one key, without its sign, as `find_bytes` does."""
    for part in _lists(data, key, _INT64_LIST):
        for number, value in _fields(part):
            if number == 1 and (isinstance(value, int) or len(value)):
                return value if isinstance(value, int) else _varint(value, 0)[0]
    return None


def _lists(data: memoryview, key: bytes, kind: int) -> Iterator[memoryview]:
    """Yields the lists of one kind that the feature of a key holds."""
    for features in _delimited(data, 1):
        for entry in _delimited(features, 1):
            if next(_delimited(entry, 1), None) == key:
                for feature in _delimited(entry, 2):
                    yield from _delimited(feature, kind)
