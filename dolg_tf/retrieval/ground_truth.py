"""Ground truths in the form of Revisited Oxford and Paris: the photos that match each query.

The `.pkl` form is a pickle. With Python's own reader it could run any program and take any memory;
here it is read as plain lists, dicts, strings and numbers. DELG's `.mat` form counts from 1.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import dataclasses
import pathlib

import numpy as np

from dolg_tf.stage import files, plain_pickle
from dolg_tf.stage.config import InputError

LABELS = ("easy", "hard", "junk")
# Two million photos, two opcodes each. Whatever such a pickle holds takes less than 0.8 GB.
_MOST_BYTES, _MOST_OPCODES = 1 << 27, 4_000_000


@dataclasses.dataclass(frozen=True)
class Query:
    """One query: its box and its photos in the index.

    Attributes:
      box: (left, top, right, bottom) in pixels of the query photo.
      easy, hard, junk: int64 (n,), rows of `GroundTruth.index_ids`, ascending.
    """

    box: tuple[float, float, float, float]
    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray


@dataclasses.dataclass(frozen=True)
class GroundTruth:
    """A retrieval task.

    Attributes:
      name: of the file, without suffix.
      index_ids: `imlist`, the photos to search in.
      query_ids: `qimlist`, the photos to search for.
      queries: `gnd`, one per query photo.
      upright: whether boxes and photos are as EXIF orientation turns them. Files of
        `dolg ground-truth` say so; benchmarks' do not, and count in pixels as stored.
    """

    name: str
    index_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[Query, ...]
    upright: bool = False


def _read_pickle(path: pathlib.Path):
    try:
        with path.open("rb") as file:
            return plain_pickle.unpickle(file, most_bytes=_MOST_BYTES, most_opcodes=_MOST_OPCODES)
    except plain_pickle.Refused as error:
        raise InputError(
            f"{path}: refused: a ground truth holds only lists, dicts, strings and numbers "
            f"({error}); download it again from the benchmark's authors, or write yours so"
        ) from error


def _read_mat(path: pathlib.Path):
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        value = loadmat(path, simplify_cells=True)
    except (MatReadError, NotImplementedError, ValueError, TypeError, OSError) as error:
        raise InputError(f"{path}: not a MATLAB file up to version 7.2 ({error})") from error
    # MATLAB has no scalars: a list of one element comes out as that element.
    queries = value.get("gnd", [])
    value["gnd"] = [queries] if isinstance(queries, dict) else list(queries)
    for name in ("imlist", "qimlist"):
        value[name] = [str(x) for x in np.atleast_1d(value.get(name, []))]
    for query in value["gnd"]:
        for label in LABELS:
            if isinstance(query, dict) and label in query:
                query[label] = np.atleast_1d(query[label]).astype(np.int64) - 1
    return value


def _names(value, key: str, path) -> tuple[str, ...]:
    names = value.get(key)
    if not isinstance(names, list | tuple) or not all(isinstance(x, str) for x in names):
        raise InputError(f"{path}: {key!r} must be a list of photo names")
    if not names:
        raise InputError(f"{path}: {key!r} is empty")
    return tuple(names)


def _rows(query: dict, label: str, count: int, where: str) -> np.ndarray:
    """Returns one list of index rows, checked and ascending."""
    listed = query.get(label)
    # Checked before it becomes an array: nested lists that share elements would fill the memory.
    plain = isinstance(listed, list | tuple) and all(type(row) is int for row in listed)
    if not plain and not isinstance(listed, np.ndarray):
        raise InputError(f"{where}: {label!r} must be a list of whole numbers")
    rows = np.array(listed)
    if rows.size == 0:
        return np.zeros(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InputError(f"{where}: {label!r} must be a list of whole numbers")
    wrong = rows[(rows < 0) | (rows >= count)]
    if wrong.size:
        raise InputError(
            f"{where}: {label!r} has row {wrong[0]}, but the index has rows 0 to {count - 1}"
        )
    if len(np.unique(rows)) != len(rows):
        raise InputError(f"{where}: {label!r} has a row twice")
    return np.sort(rows.astype(np.int64))


def _query(query, count: int, where: str) -> Query:
    if not isinstance(query, dict):
        raise InputError(f"{where}: must be a dict of bbx, easy, hard and junk")
    try:
        box = tuple(float(x) for x in query["bbx"])
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{where}: no 'bbx' of four numbers") from error
    if len(box) != 4 or not np.isfinite(box).all():
        raise InputError(f"{where}: 'bbx' is {box}, but must be left, top, right, bottom")
    rows = {label: _rows(query, label, count, where) for label in LABELS}
    together = np.concatenate(list(rows.values()))
    if len(np.unique(together)) != len(together):
        raise InputError(f"{where}: a row is in two of easy, hard and junk")
    return Query(box, **rows)


def load_ground_truth(path: files.Path) -> GroundTruth:
    """Reads `gnd_*.pkl` (rows from 0) or DELG's `gnd_*.mat` (rows from 1).

    Raises:
      InputError: when the file is missing or damaged, holds anything but plain containers, strings
        and numbers, or its lists do not fit together.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"--ground_truth={path}: no such file")
    value = _read_mat(path) if path.suffix == ".mat" else _read_pickle(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a dict of imlist, qimlist and gnd")
    index_ids, query_ids = _names(value, "imlist", path), _names(value, "qimlist", path)
    queries = value.get("gnd")
    if not isinstance(queries, list | tuple) or len(queries) != len(query_ids):
        raise InputError(f"{path}: 'gnd' must have one entry for each of {len(query_ids)} queries")
    parsed = tuple(
        _query(query, len(index_ids), f"{path}: query {i} ({query_ids[i]})")
        for i, query in enumerate(queries)
    )
    upright = value.get("upright", False)
    if type(upright) is not bool:
        raise InputError(f"{path}: 'upright' must be True or False")
    return GroundTruth(path.stem, index_ids, query_ids, parsed, upright)
