"""Check of TFRecords of DELG's schema, ours or DELG's own: every fault in them.

    dolg verify --file_pattern='records/train-*'

No TensorFlow here, so that each process starts at once and needs little memory.
"""

import collections
import contextlib
import dataclasses
import functools
import glob
import hashlib
import io
import logging
import pathlib
from collections.abc import Iterator
from typing import IO, NamedTuple

import numpy as np

from dolg_tf.data import photo_files
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.data.records import classes
from dolg_tf.data.records.example import parse_example
from dolg_tf.data.records.foreign import compression
from dolg_tf.data.records.tfrecord import masked_crc32c
from dolg_tf.stage import config, files, progress
from dolg_tf.stage.config import InputError, option
from dolg_tf.stage.processes import process_count, run_in_processes

log = logging.getLogger(__name__)

_SHOWN = 20  # faults on stderr
_LABEL = "image/class/label"
_UPRIGHT = "image/upright"  # ours; DELG's own records lack it
_KEYS = {
    "image/encoded": bytes,
    "image/id": bytes,
    "image/colorspace": bytes,
    "image/format": bytes,
    "image/height": int,
    "image/width": int,
    "image/channels": int,
    _LABEL: int,
    _UPRIGHT: int,
}
_NAMES = {int: "int64", bytes: "bytes"}
_EXPECTED = {"image/colorspace": b"RGB", "image/format": b"JPEG", "image/channels": 3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which records are checked, and where the faults are listed."""

    file_pattern: str = option("glob of the TFRecords; files named test-* need no labels")
    num_classes: int = option(
        "labels must be below this; 0: the number of landmarks in the relabeling.csv beside the "
        "records, or without that file no limit",
        0,
        unit="classes",
    )
    class_counts_csv: str = option(
        "file to write: label,photos of these records, for recipes that need class counts; empty: "
        "not written",
        "",
    )
    faults_tsv: str = option(
        f"file to write: file, record, id and reason of every fault; empty: the first {_SHOWN} go "
        "to stderr",
        "",
    )
    processes: int = option("worker processes; 0: one per core", 0)

    def __post_init__(self):
        config.at_least(self, num_classes=0, processes=0)


class Fault(NamedTuple):
    """A fault of one record."""

    file: str
    record: int  # its number in the file, from 0
    id: str  # empty if it cannot be read
    reason: str


class FileReport(NamedTuple):
    """Contents of one file."""

    path: str
    records: int
    faults: list[Fault]
    labels: np.ndarray  # int64, those in range
    numbers: np.ndarray  # uint32, of the records that have an id
    hashes: np.ndarray  # uint64, of these ids


# --- one file -----------------------------------------------------------------------------


def _payloads(file: IO[bytes]) -> Iterator[tuple[bytes, str]]:
    """Yields the payload and the fault ("" if none) of each record.

    After a damaged length nobody knows where the next record begins, so that record is the last.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        checksum = int.from_bytes(header[8:], "little")
        if len(header) == 12 and masked_crc32c(header[:8]) != checksum:
            packed = "" if file.tell() > 12 else compression(header)
            lost = "its length is damaged, or this is not a TFRecord file; nothing after it is read"
            yield b"", packed or lost
            return
        if len(header) < 12 or length + 4 > size - file.tell():
            yield b"", "the file ends inside the record"
            return
        data, checksum = file.read(length), int.from_bytes(file.read(4), "little")
        if masked_crc32c(data) != checksum:
            yield b"", "the checksum is wrong"
        else:
            yield data, ""


def _one(values: dict, key: str):
    """Returns the value of a key if there is exactly one of the right type, else None."""
    found = values.get(key, ())
    return found[0] if len(found) == 1 and isinstance(found[0], _KEYS[key]) else None


def _kind_of(found: list) -> str:
    """Returns what a feature holds, in words."""
    if not found:
        return "empty, or of floats"
    name = _NAMES[type(found[0])]
    return name if len(found) == 1 else f"{len(found)} values of {name}"


def _key_faults(values: dict, labelled: bool) -> Iterator[str]:
    if not any(key in values for key in _KEYS):
        yield f"none of the keys of DELG's schema; its keys are: {', '.join(sorted(values)):.200}"
        return
    for key, kind in _KEYS.items():
        if (key == _LABEL and not labelled) or (key == _UPRIGHT and key not in values):
            continue
        value = _one(values, key)
        if key not in values:
            yield f"no {key}"
        elif value is None:
            yield f"{key} is {_kind_of(values[key])}, not one {_NAMES[kind]}"
        elif value != _EXPECTED.get(key, value):
            yield f"{key} is {value!r}, not {_EXPECTED[key]!r}"
        elif key == "image/id" and not value:
            yield "image/id is empty"
        elif key == _UPRIGHT and value not in (0, 1):
            yield f"{key} is {value}, not 0 or 1"


def _photo_faults(values: dict) -> Iterator[str]:
    """Yields the faults of the JPEG, and of what the record says about it."""
    encoded = _one(values, "image/encoded")
    if encoded is None:
        return
    try:
        examined = photo_files.examine(encoded)
        header = examined.header
        if header.format != "JPEG":
            yield f"image/encoded is {header.format}, not JPEG"
        elif header.mode != "RGB":
            yield f"the JPEG is {header.mode}, not RGB"
        for key, real in (("image/height", header.height), ("image/width", header.width)):
            stored = _one(values, key)
            if stored not in (None, real):
                yield f"{key} is {stored}, but the photo's is {real}"
        # Small, which shows just as well whether all of the data is there.
        examined.decode(upright=False, max_pixels=0, reduce_to=1)
    except UnusablePhoto as error:
        if error.reason == "not a picture":
            yield "image/encoded is not a picture"
        else:
            yield f"the photo cannot be decoded: {error.reason}"


def _label_faults(values: dict, num_classes: int) -> Iterator[str]:
    label = _one(values, _LABEL)
    if label is None:
        return
    if label < 0 or 0 < num_classes <= label:
        yield f"label {label} must be {f'0 to {num_classes - 1}' if num_classes else 'at least 0'}"


def verify_file(path: str, num_classes: int = 0) -> FileReport:
    """Verifies one TFRecord file.

    Args:
      path: the file; one whose name begins with `test-` needs no labels.
      num_classes: labels must be below this; 0: no limit.
    """
    faults, labels, numbers, hashes, count = [], [], [], [], 0
    labelled = is_labelled(path)
    with pathlib.Path(path).open("rb") as file:
        for number, (data, fault) in enumerate(_payloads(file)):
            count += 1
            reasons, values = [fault] if fault else [], {}
            if not fault:
                try:
                    values = parse_example(data)
                except ValueError as error:
                    reasons.append(f"not a tf.train.Example: {error}")
                else:
                    reasons += [*_key_faults(values, labelled), *_photo_faults(values)]
            if labelled and values:
                wrong = [*_label_faults(values, num_classes)]
                reasons += wrong
                if not wrong and _one(values, _LABEL) is not None:
                    labels.append(_one(values, _LABEL))
            name = _one(values, "image/id")
            if name:
                numbers.append(number)
                hashes.append(_hash(name))
            name = (name or b"").decode(errors="replace")
            faults += [Fault(path, number, name, reason) for reason in reasons]
    columns = np.array(labels, np.int64), np.array(numbers, np.uint32), np.array(hashes, np.uint64)
    return FileReport(path, count, faults, *columns)


# --- all files ----------------------------------------------------------------------------


def is_labelled(path: str) -> bool:
    """Returns whether the records of a file must have labels; those of `test-*` need none."""
    return not pathlib.Path(path).name.startswith("test-")


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big")


def _repeated_ids(reports: list[tuple[str, np.ndarray, np.ndarray]]) -> Iterator[Fault]:
    """Yields a fault for each record whose id an earlier record has.

    Args:
      reports: path, numbers and hashes of each file. Ids are read again and compared only where
        hashes are equal.
    """
    every = np.sort(np.concatenate([hashes for _, _, hashes in reports]))
    twice = np.unique(every[1:][every[1:] == every[:-1]])
    seen = {}
    for path, numbers, hashes in reports:
        wanted = set(numbers[np.isin(hashes, twice)].tolist())
        if not wanted:
            continue
        with pathlib.Path(path).open("rb") as file:
            for number, (data, _) in enumerate(_payloads(file)):
                if number not in wanted:
                    continue
                name = _one(parse_example(data), "image/id").decode(errors="replace")
                if name in seen:
                    where = "{}, record {}".format(*seen[name])
                    yield Fault(path, number, name, f"the same image/id as {where}")
                else:
                    seen[name] = path, number


class _FaultList:
    """Faults as they come: all are counted and go to a file, or the first ones to stderr."""

    def __init__(self, file: IO[str] | None):
        self.count, self.files, self._file = 0, set(), file
        if file:
            file.write("file\trecord\tid\treason\n")

    def add(self, fault: Fault) -> None:
        self.count += 1
        self.files.add(fault.file)
        if self._file:
            cells = (" ".join(str(cell).split()) for cell in fault)
            self._file.write("\t".join(cells) + "\n")
        elif self.count <= _SHOWN:
            name = f" (image {fault.id})" if fault.id else ""
            log.info("%s, record %d%s: %s", fault.file, fault.record, name, fault.reason)


def _verify(settings: VerifyConfig, paths: list[str], num_classes: int, found: _FaultList) -> dict:
    """Verifies the files and notes their faults; returns numbers of files, records and labels."""
    task = functools.partial(verify_file, num_classes=num_classes)
    counts, total, reports = collections.Counter(), 0, []
    done = run_in_processes(task, paths, process_count(settings.processes, len(paths)))
    for report in progress.track(done, len(paths), "verify", "files"):
        total += report.records
        for fault in report.faults:
            found.add(fault)
        if not report.records:
            found.add(Fault(report.path, 0, "", "the file has no records"))
        labels, times = np.unique(report.labels, return_counts=True)
        counts.update(dict(zip(labels.tolist(), times.tolist(), strict=True)))
        reports.append((report.path, report.numbers, report.hashes))
    for fault in _repeated_ids(sorted(reports, key=lambda report: report[0])):
        found.add(fault)
    return {"files": len(paths), "records": total, "counts": counts}


def verify_records(settings: VerifyConfig, name: str = "") -> dict:
    """Verifies TFRecords: checksums, keys, labels, that every JPEG decodes, and unique ids.

    They may be ours or DELG's own. Each record needs all of DELG's keys. The stored height, width,
    colorspace and format must be those of the photo. No id may occur twice. Records of files named
    `test-*` need no label. `class_counts_csv` counts the labels that are in range, whatever other
    faults there are.

    Args:
      settings: which records, and what is checked.
      name: what the log calls them; "": their pattern.

    Returns:
      {"files": n, "records": n, "classes": number of labels that occur}.

    Raises:
      InputError: when there are faults, after all of them are listed, or when no file matches.
    """
    pattern = settings.file_pattern
    matching = glob.glob(pattern)  # noqa: PTH207 - pathlib globs no absolute pattern
    paths = sorted(path for path in matching if pathlib.Path(path).is_file())
    if not paths:
        raise InputError(f"no file matches {pattern!r}; `dolg records` makes them")
    labelled = any(map(is_labelled, paths))
    num_classes = settings.num_classes or classes.count_landmarks(pattern) or 0
    if settings.class_counts_csv and not (num_classes and labelled):
        raise InputError(
            f"--class_counts_csv={settings.class_counts_csv} needs labels, and --num_classes or a "
            "relabeling.csv beside the records"
        )
    with contextlib.ExitStack() as stack:
        file = None
        if settings.faults_tsv:
            path = stack.enter_context(files.atomic_path(settings.faults_tsv))
            file = stack.enter_context(path.open("w", encoding="utf-8"))
        found = _FaultList(file)
        result = _verify(settings, paths, num_classes, found)
    counts = result.pop("counts")
    if settings.class_counts_csv:
        column = np.array([counts[label] for label in range(num_classes)], np.int64)
        classes.write_class_counts(settings.class_counts_csv, column)
    result["classes"] = len(counts)
    log.info(
        "%s: %d records in %d files, %s, %d faults",
        *(name or pattern, result["records"], result["files"]),
        f"{result['classes']} of {num_classes or 'any number of'} classes"
        if labelled
        else "no labels needed",
        found.count,
    )
    if found.count:
        where = settings.faults_tsv or "--faults_tsv=FILE lists them all"
        raise InputError(
            f"{found.count} faults in {len(found.files)} of {len(paths)} files ({where}); repair "
            "the photos and build the records again"
        )
    return result
