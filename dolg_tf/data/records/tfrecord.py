"""TFRecords of DELG's schema: writing, parsing, and reading any record of many files by number.

One record is one photo. The framing is written here, so that the builder's processes need no
TensorFlow; the tests hold it against TensorFlow's.
"""

import contextlib
import glob
import logging
import os
import pathlib
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

import numpy as np
from crc32c import crc32c

from dolg_tf.data import protos
from dolg_tf.data.records import example, foreign
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_BUILDER = "dolg records"
_HEADER, _FOOTER = struct.Struct("<QI"), 4  # length and its checksum; the payload's


def masked_crc32c(data: bytes) -> int:
    """Returns the CRC-32C of some bytes in the masked form that TFRecords use."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- writing ------------------------------------------------------------------------------


def encode(
    jpeg: bytes,
    image_id: str,
    height: int,
    width: int,
    label: int | None,
    *,
    upright: bool = False,
) -> bytes:
    """Returns one photo as a serialised `tf.train.Example` of DELG's schema.

    Args:
      jpeg: an RGB JPEG.
      image_id: the photo's id.
      height, width: in pixels.
      label: the landmark, at least 0; None in test records.
      upright: whether photos of these records are turned by their EXIF orientation; False is not
        written: DELG's schema does not have it.
    """
    values = {
        "image/channels": 3,
        "image/class/label": label,
        "image/colorspace": b"RGB",
        "image/encoded": jpeg,
        "image/format": b"JPEG",
        "image/height": height,
        "image/id": image_id.encode(),
        "image/upright": 1 if upright else None,
        "image/width": width,
    }
    message = protos.example_class()()
    for key, value in values.items():
        if value is None:
            continue
        feature = message.features.feature.add(key=key).value
        kind = feature.bytes_list if isinstance(value, bytes) else feature.int64_list
        kind.value.append(value)
    return message.SerializeToString()


def write_shard(path: files.Path, examples: Iterable[bytes]) -> int:
    """Writes one TFRecord file, whole or not at all, and returns its number of records."""
    count = 0
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        for example in examples:
            file.write(_HEADER.pack(len(example), masked_crc32c(struct.pack("<Q", len(example)))))
            file.write(example)
            file.write(struct.pack("<I", masked_crc32c(example)))
            count += 1
    return count


def shard_name(split: str, shard: int, num_shards: int) -> str:
    """Returns a file name such as `train-00003-of-00128`."""
    return f"{split}-{shard:05d}-of-{num_shards:05d}"


# --- reading ------------------------------------------------------------------------------


def parse(serialized, labelled: bool = True) -> dict:
    """Parses one record with TensorFlow ops.

    Args:
      serialized: scalar string.
      labelled: False for test records, which have no label.

    Returns:
      Scalars `encoded` (string), `id` (string) and, if labelled, `label` (int64, -1 where the
      record has none).
    """
    import tensorflow as tf

    keys = {"encoded": "image/encoded", "id": "image/id"}
    features = {key: tf.io.FixedLenFeature([], tf.string) for key in keys.values()}
    if labelled:
        keys["label"] = "image/class/label"
        features[keys["label"]] = tf.io.FixedLenFeature([], tf.int64, default_value=-1)
    values = tf.io.parse_single_example(serialized, features)
    return {name: values[key] for name, key in keys.items()}


def _scan(path: str) -> tuple[np.ndarray, str]:
    """Returns where each whole record of a file starts (int64), and what is wrong after them.

    Only headers are read. After a damaged length nobody knows where the next record begins, so the
    first fault ends the file.
    """
    starts, fault, at = [], "", 0
    with pathlib.Path(path).open("rb", buffering=0) as file:
        number, cut = file.fileno(), "the file ends inside the record; copy or write it again"
        size = os.fstat(number).st_size
        while at < size:
            header = os.pread(number, _HEADER.size, at)
            if len(header) < _HEADER.size:
                fault = cut
                break
            length, checksum = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != checksum:
                fault = "" if at else foreign.compression(header)
                fault = fault or "this is not a TFRecord file, or it is damaged; write it again"
                break
            end = at + _HEADER.size + length + _FOOTER
            if end > size:
                fault = cut
                break
            starts.append(at)
            at = end
    if fault:
        fault = f"{path}, record {len(starts)} at byte {at}: {fault}"
    return np.array(starts, np.int64), fault


def list_files(pattern: str) -> list[str]:
    """Returns the files of a glob, sorted.

    Raises:
      InputError: when there is none.
    """
    paths = sorted(glob.glob(pattern))  # noqa: PTH207 - pathlib globs no absolute pattern
    if not paths:
        raise InputError(f"no file matches {pattern!r}; `{_BUILDER}` makes the records")
    return paths


def check_files(pattern: str, skip_damaged: bool = False) -> None:
    """Checks that a glob matches TFRecords, by the first file that it matches.

    Args:
      pattern, skip_damaged: as `RecordIndex.open` takes them, which reads all files.

    Raises:
      InputError: when it matches nothing, or that file cannot be read, or is damaged or not a
        TFRecord file.
    """
    _, fault = _scan_file(list_files(pattern)[0])
    if fault and not skip_damaged:
        raise InputError(fault)


def _scan_file(path: str) -> tuple[np.ndarray, str]:
    try:
        if not stat.S_ISREG(pathlib.Path(path).stat().st_mode):  # opening a FIFO may never end
            raise InputError(f"{path} is not a regular file; move it away or narrow the pattern")
        return _scan(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_at(path: str, start: int) -> bytes | None:
    """Returns the serialised `tf.train.Example` of the record that starts at a byte of a file.

    None if its checksum is wrong, or the file ends inside it.
    """
    with pathlib.Path(path).open("rb") as file:
        file.seek(start)
        length = int.from_bytes(file.read(_HEADER.size)[:8], "little")
        left = os.fstat(file.fileno()).st_size - file.tell() - _FOOTER
        data, footer = file.read(min(length, max(left, 0))), file.read(_FOOTER)
    whole = len(data) == length and masked_crc32c(data) == int.from_bytes(footer, "little")
    return data if whole else None


class RecordIndex:
    """All records of the files of a pattern, numbered in the order of the sorted file names.

    Takes about 16 bytes of memory per record. Many threads may read at once.

    Attributes:
      paths: of the files.
      group_sizes: number of records of each group of files.
      left_out: what was left out of damaged files, one message per file.
    """

    def __init__(self, paths: list[str], starts: list[np.ndarray], groups: int, left_out: list):
        self.paths, self.left_out = paths, left_out
        self._starts = np.concatenate(starts)
        counts = [len(of_file) for of_file in starts]
        self._firsts = np.cumsum([0, *counts])
        group = np.sort(np.arange(len(paths)) % groups)
        self.group_sizes = np.bincount(group, counts, groups).astype(np.int64)

    @classmethod
    def open(cls, pattern: str, groups: int = 1, skip_damaged: bool = False) -> "RecordIndex":
        """Reads the record headers of all files that match a glob.

        Args:
          pattern: the glob.
          groups: the sorted files are dealt out to this many groups in turn, and the records are
            numbered group by group.
          skip_damaged: use the records before the damage in a damaged or truncated file and warn,
            instead of refusing it.

        Raises:
          InputError: when no file matches, there are no records, a file cannot be read, there are
            fewer files than groups, or a file is damaged, cut short, or not a TFRecord file.
        """
        paths = list_files(pattern)
        if len(paths) < groups:
            raise InputError(
                f"{pattern!r} matches {len(paths)} files, too few for {groups} workers; write more "
                "files, or choose --shard_by=photo"
            )
        paths = [path for group in range(groups) for path in paths[group::groups]]
        # Threads, because on a cold disk the scan waits for one page per record.
        with futures.ThreadPoolExecutor(min(16, len(paths))) as pool:
            starts, faults = zip(*pool.map(_scan_file, paths), strict=True)
        left_out = [fault for fault in faults if fault]
        if left_out and not skip_damaged:
            raise InputError(left_out[0])
        index = cls(paths, starts, groups, left_out)
        for fault in left_out:
            log.warning("left out: %s; nothing from there on is read", fault)
        if not len(index):
            raise InputError(f"{pattern!r}: no records in {len(paths)} files; write them again")
        empty = [path for path, of_file in zip(paths, starts, strict=True) if not len(of_file)]
        if empty:
            log.info("%s: %d of %d files have no records", empty[0], len(empty), len(paths))
        return index

    def __len__(self) -> int:
        return len(self._starts)

    def _file(self, record: int) -> int:
        return int(np.searchsorted(self._firsts, record, side="right")) - 1

    def where(self, record: int) -> str:
        """Returns where a record lies, for error messages: the file and its number in that file."""
        file = self._file(record)
        return f"{self.paths[file]}, record {record - self._firsts[file]}"

    def read(self, record: int) -> bytes:
        """Returns the serialised `tf.train.Example` of a record.

        Raises:
          InputError: when its checksum is wrong, or the file has changed since it was opened.
        """
        try:
            data = read_at(self.paths[self._file(record)], int(self._starts[record]))
        except OSError as error:
            raise InputError(f"{self.where(record)} cannot be read: {error.strerror}") from error
        if data is None:
            raise InputError(f"{self.where(record)}: the checksum is wrong; write the file again")
        return data

    def upright(self, pattern: str) -> bool:
        """Returns whether the photos were turned by their EXIF orientation when they were written.

        The first record of each file is asked; one that cannot be read says nothing.

        Args:
          pattern: that of the files, for the error.

        Raises:
          InputError: when some files were turned, others not.
        """
        found = {}
        for path, first, behind in zip(self.paths, self._firsts, self._firsts[1:], strict=False):
            with contextlib.suppress(InputError, ValueError):
                if first < behind:
                    value = example.find_int(memoryview(self.read(int(first))), b"image/upright")
                    found.setdefault(bool(value), path)
        if len(found) > 1:
            raise InputError(
                f"{pattern!r}: the photos of {found[True]} are turned by their EXIF orientation, "
                f"those of {found[False]} are not; build all with or without --upright"
            )
        return True in found

    def places(self) -> Iterator[tuple[str, list[int]]]:
        """Yields the path of each file and the bytes at which its records start."""
        for path, first, behind in zip(self.paths, self._firsts, self._firsts[1:], strict=False):
            yield path, self._starts[first:behind].tolist()

    def reader(self) -> Callable:
        """Returns a function from record number (int64 scalar) to serialised Example (string).

        It consists of TensorFlow ops alone. A Python function inside tf.data would wait forever
        when an iterator is dropped half way: TensorFlow joins the threads that run it while holding
        the lock they need. The op opens the file at the record and verifies its checksum.
        """
        import tensorflow as tf

        with tf.device("CPU:0"):
            paths, firsts = tf.constant(self.paths), tf.constant(self._firsts)
            starts = tf.constant(self._starts)

        def read(record):
            file = tf.searchsorted(firsts, record[None], side="right") - 1
            dataset = tf.raw_ops.TFRecordDatasetV2(
                filenames=tf.gather(paths, file),
                compression_type="",
                buffer_size=0,
                byte_offsets=starts[record][None],
            )
            spec = {"output_types": [tf.string], "output_shapes": [()]}
            first = tf.raw_ops.TakeDataset(input_dataset=dataset, count=1, **spec)
            return tf.raw_ops.DatasetToSingleElement(dataset=first, **spec)[0]

        return read
