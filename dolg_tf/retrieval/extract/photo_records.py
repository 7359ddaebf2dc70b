"""The photos of TFRecords: their ids are found without reading a photo, their bytes on demand."""

import mmap
import pathlib
from collections.abc import Iterator

from dolg_tf.data.records import example, tfrecord
from dolg_tf.stage.config import InputError

_HEADER = 12  # bytes: length of a record, and its checksum


def list_records(pattern: str) -> Iterator[tuple[str, str, int, int]]:
    """Yields id, file, byte where it starts and size in bytes of each record, in file order.

    Args:
      pattern: a glob of TFRecords of DELG's schema.

    Raises:
      InputError: when no file matches, one is cut short or no TFRecord, or a record has no
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
                body = start + _HEADER
                size = int.from_bytes(data[start : start + 8], "little")
                with data[body : body + size] as record:
                    yield _id(record, path, start), path, start, size


def _id(record: memoryview, path: str, start: int) -> str:
    where = f"{path}, record at byte {start}"
    try:
        found = (example.find_bytes(record, b"image/id") or b"").decode()
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"{where}: no tf.train.Example ({error}); write it again") from error
    if not found:
        raise InputError(f"{where}: no image/id; records of photos follow DELG's schema")
    return found


def read_record(path: str, start: int) -> bytes:
    """Returns the encoded photo of the record that starts at a byte of a file.

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
