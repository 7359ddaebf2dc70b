"""Photos in TFRecords: where each one is, and its bytes."""

import mmap
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from dolg_tf.data.records import example, foreign, tfrecord
from dolg_tf.stage.config import InputError

_RECORD_HEADER = 12  # bytes: length of a record, and its checksum


class Record(NamedTuple):
    """Where a record is, and what it says of its photo.

    Attributes:
      id: its `image/id`.
      file: the TFRecord file.
      start: its first byte there.
      size: in bytes.
      upright: whether its photo was turned by EXIF orientation before it was written.
    """

    id: str
    file: str
    start: int
    size: int
    upright: bool


def list_records(pattern: str) -> Iterator[Record]:
    """Yields each record, in file order.

    Args:
      pattern: a glob of TFRecords of DELG's schema.

    Raises:
      InputError: when no file matches, a file is truncated or not a TFRecord, or a record has no
        `image/id`.
    """
    for path, starts in tfrecord.RecordIndex.open(pattern).places():
        if not starts:
            continue
        with (
            pathlib.Path(path).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            for start in starts:
                body = start + _RECORD_HEADER
                size = int.from_bytes(data[start : start + 8], "little")
                with data[body : body + size] as record:
                    id_, upright = _about(record, path, start)
                    yield Record(id_, path, start, size, upright)


def _about(record: memoryview, path: str, start: int) -> tuple[str, bool]:
    """Returns the id of a record, and whether its photo was turned."""
    where = f"{path}, record at byte {start}"
    found, fault = "", None
    try:
        found = (example.find_bytes(record, b"image/id") or b"").decode()
        upright = example.find_int(record, b"image/upright")
    except ValueError as error:  # UnicodeDecodeError is one
        fault = str(error)  # not chained: its frames would hold on to the mapped file
    if fault is not None:
        raise InputError(f"{where}: not a tf.train.Example ({fault}); write it again")
    if not found:
        reason = foreign.schema_fault(bytes(record)) or "no image/id: it is empty"
        raise InputError(f"{where}: {reason}")
    return found, bool(upright)


def read_record(path: str, start: int) -> bytes:
    """Returns the encoded photo of the record that starts at a given byte.

    Raises:
      OSError: when the file cannot be read.
      ValueError: saying what is wrong with the record.
    """
    data = tfrecord.read_at(path, start)
    if data is None:
        raise ValueError("the checksum is wrong")
    encoded = example.find_bytes(memoryview(data), b"image/encoded")
    if not encoded:
        raise ValueError("no image/encoded in the record")
    return encoded
