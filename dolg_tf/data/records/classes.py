"""Files of classes beside the records: the landmark of each label, and its number of photos."""

import dataclasses
import hashlib
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np

from dolg_tf.data.config import DataConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table, write_table

RELABELING = "relabeling.csv"
CLASS_COUNTS = "class_counts.csv"


def write_class_counts(path: files.Path, counts: np.ndarray) -> None:
    """Writes a CSV `label,photos`.

    Args:
      path: the file.
      counts: int (C,), number of training photos of each label.
    """
    write_table(path, ("label", "photos"), enumerate(counts.tolist()))


def write_classes(folder: files.Path, landmarks: Sequence, counts: np.ndarray) -> None:
    """Writes `relabeling.csv` (new_label,old_label) and `class_counts.csv` (label,photos).

    Args:
      folder: of the records.
      landmarks: the landmark of each label.
      counts: int (C,), number of training photos of each label, without those left out.
    """
    folder = pathlib.Path(folder)
    write_table(folder / RELABELING, ("new_label", "old_label"), enumerate(landmarks))
    write_class_counts(folder / CLASS_COUNTS, counts)


def read_class_counts(file_pattern: str, num_classes: int) -> np.ndarray:
    """Reads class_counts.csv in the folder of a record pattern.

    Args:
      file_pattern: glob of the training records.
      num_classes: number of labels that it must list.

    Returns:
      int64 (num_classes,): number of training photos of each label, at least 0.

    Raises:
      InputError: when the file does not exist, or does not list the labels 0 to num_classes - 1
        in order, each with a count.
    """
    path = pathlib.Path(file_pattern).parent / CLASS_COUNTS
    remedy = (
        f"count them with `dolg verify --file_pattern="
        f"{shlex.quote(file_pattern)} --num_classes={num_classes} "
        f"--class_counts_csv={shlex.quote(str(path))}`"
    )
    try:
        rows = list(read_table(path, ["label"], ["photos"]))
    except InputError as error:
        raise InputError(f"{error} (photos of each class); {remedy}") from error
    counts = []
    for label, (where, row) in enumerate(rows):
        if row[0] != str(label) or not (row[1].isdecimal() and row[1].isascii()):
            raise InputError(f"{where}: {','.join(row)!r} must be {label} and a count; {remedy}")
        counts.append(int(row[1]))
    if len(counts) != num_classes:
        raise InputError(
            f"{path} lists {len(counts)} classes, --num_classes={num_classes}; correct the flag, "
            f"or {remedy}"
        )
    return np.array(counts, np.int64)


def count_landmarks(file_pattern: str) -> int | None:
    """Returns how many labels the relabeling.csv beside records lists; None without that file.

    Args:
      file_pattern: glob of the records.
    """
    path = pathlib.Path(file_pattern).parent / RELABELING
    if not path.is_file():
        return None
    return sum(1 for _ in read_table(path))


def landmarks_sha256(file_pattern: str) -> str | None:
    """Returns a hash that is equal for two sets of records whose labels are the same landmarks.

    Args:
      file_pattern: glob of the records.

    Returns:
      The SHA-256 (hexadecimal) of relabeling.csv in their folder, whatever its line endings; None
      without that file.
    """
    path = pathlib.Path(file_pattern).parent / RELABELING
    if not path.is_file():
        return None
    # DELG's builder ends lines as Windows does.
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def with_classes(data: DataConfig) -> DataConfig:
    """Returns the configuration with the number of landmarks, if need be from the records' list.

    Raises:
      InputError: when it is given nowhere, or is less than the list has.
    """
    listed = count_landmarks(data.train_file_pattern)
    if not data.num_classes and listed is None:
        raise InputError(
            f"no relabeling.csv beside {data.train_file_pattern!r}: give --num_classes, or make "
            "the records with `dolg records`, which writes it"
        )
    if data.num_classes and (listed or 0) > data.num_classes:
        raise InputError(
            f"--num_classes={data.num_classes}, but relabeling.csv beside "
            f"{data.train_file_pattern!r} lists {listed} landmarks"
        )
    return dataclasses.replace(data, num_classes=data.num_classes or listed)
