"""Ground truths in the form of Revisited Oxford and Paris: the photos that match each query.

The `.pkl` form is a pickle. With Python's own reader it could run any program and take any memory;
here it is read as plain containers, strings, numbers and NumPy arrays. DELG's `.mat` form counts
from 1.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import collections
import dataclasses
import pathlib

import numpy as np

from dolg_tf.data import photo_ids, pickled_arrays
from dolg_tf.retrieval import mat_file
from dolg_tf.stage import files, plain_pickle
from dolg_tf.stage.config import InputError

LABELS = ("easy", "hard", "junk")
# Two million photos, two opcodes each. Whatever such a pickle holds takes less than 0.8 GB: arrays
# are checked as arrays, and only as many elements become Python's as there may be.
_MOST_BYTES, _MOST_OPCODES, _MOST_VALUES = 1 << 27, 4_000_000, 4_000_000
_MOST_PHOTOS = 2_000_000
_MOST_ROWS = 1 << 26  # of all queries together; lists that share their rows are counted each


@dataclasses.dataclass(frozen=True)
class Query:
    """One query: its box and its photos in the index.

    Attributes:
      box: (left, top, right, bottom) in pixels of the query photo; None: all of it.
      easy, hard, junk: int64 (n,), rows of `GroundTruth.index_ids`, ascending.
    """

    box: tuple[float, float, float, float] | None
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
      original: whether it is of the original protocol of Oxford and Paris, which has one level:
        its `ok` is read as `easy`.
    """

    name: str
    index_ids: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[Query, ...]
    upright: bool = False
    original: bool = False


def _read_pickle(path: pathlib.Path):
    arrays = pickled_arrays.Arrays(_MOST_BYTES)
    with path.open("rb") as file:
        try:
            return plain_pickle.unpickle(
                file,
                arrays.find,
                build=arrays.build,
                most_bytes=_MOST_BYTES,
                most_opcodes=_MOST_OPCODES,
            )
        except plain_pickle.Refused as error:
            raise InputError(
                f"{path}: refused: {error}; a ground truth holds dicts, lists, strings, numbers "
                "and NumPy arrays of these, as pickle.dump writes them; for a large one, write "
                "long lists as arrays, and very many queries to several files"
            ) from error


def _read_mat(path: pathlib.Path) -> dict:
    try:
        value = mat_file.read(path, ("imlist", "qimlist", "gnd"), _MOST_BYTES, _MOST_VALUES)
    except mat_file.NotRead as error:
        raise InputError(f"{path}: refused: {error}; save it again, or write a .pkl") from error
    for name in ("imlist", "qimlist"):
        if isinstance(
            value.get(name), str
        ):  # MATLAB has no difference between a list of one and it
            value[name] = [value[name]]
    queries = value.get("gnd")
    if isinstance(queries, list):
        # A struct array, or a cell array of structs.
        one = (
            query[0] if isinstance(query, list) and len(query) == 1 else query for query in queries
        )
        photos = value.get("imlist")
        most = len(photos) if isinstance(photos, list) else 0
        value["gnd"] = [_with_whole_rows(query, most) for query in one]
    return value


def _with_whole_rows(query, most: int):
    """Returns a query of a `.mat`, whose row numbers are doubles, as ours are.

    Args:
      query: the struct.
      most: rows that a list may have; longer ones are left, to be refused.
    """
    if not isinstance(query, dict):
        return query
    whole = dict(query)
    for label in (*LABELS, "ok"):
        rows = query.get(label)
        if not isinstance(rows, np.ndarray) or rows.dtype.kind != "f" or len(rows) > most:
            continue
        if np.all((rows == np.floor(rows)) & (abs(rows) < 2**53)):
            whole[label] = rows.astype(np.int64)
    return whole


def _listed(value, where: str):
    """Returns a list, a tuple or a flat array as it is; None if it is nothing of the kind."""
    try:
        value = pickled_arrays.opened(value)
    except plain_pickle.Refused as error:
        raise InputError(f"{where} ({error})") from error
    if isinstance(value, np.ndarray):
        return value if value.ndim == 1 else None
    return value if isinstance(value, list | tuple) else None


def _elements(listed, where: str):
    """Returns what is `_listed` as Python's own values."""
    try:
        return listed.tolist() if isinstance(listed, np.ndarray) else listed
    except ValueError as error:  # characters that there are not
        raise InputError(f"{where} ({error})") from error


def _names(value, key: str, path) -> tuple[str, ...]:
    wrong = f"{path}: {key!r} must be a list of photo names"
    if key not in value:
        raise InputError(f"{wrong}; the file has {', '.join(map(repr, value))[:200] or 'no key'}")
    listed = _listed(value[key], wrong)
    if listed is None:
        raise InputError(f"{wrong}, but is a {type(value[key]).__name__.strip('_')}")
    if not len(listed):
        raise InputError(f"{path}: {key!r} is empty")
    if len(listed) > _MOST_PHOTOS:
        raise InputError(f"{path}: {key!r} has {len(listed):,} photos; {_MOST_PHOTOS:,} are read")
    names = []
    for number, name in enumerate(_elements(listed, wrong)):
        try:
            name = name.decode() if type(name) is bytes else name
        except UnicodeDecodeError as error:
            raise InputError(f"{wrong}; {name!r:.99} is not UTF-8") from error
        if type(name) is not str:
            raise InputError(f"{wrong}, but has {name!r:.60} at place {number}; write strings")
        names.append(name)
    return tuple(names)


def _rows(query: dict, label: str, known: range, where: str) -> np.ndarray:
    """Returns one list of index rows from 0, checked and ascending."""
    wrong = f"{where}: {label!r} must be a list of whole numbers, rows of 'imlist' from {known[0]}"
    listed = query[label]
    if isinstance(listed, set):
        listed = list(listed)
    listed = _listed(listed, wrong)
    if listed is None:
        raise InputError(f"{wrong}; write [] for none")
    if len(listed) > len(known):
        raise InputError(
            f"{where}: {label!r} lists {len(listed):,} rows of {len(known):,}; list each once"
        )
    # Checked before it becomes an array: nested lists that share elements would fill the memory.
    for row in _elements(listed, wrong):
        if type(row) is not int:
            raise InputError(f"{wrong}, but has {_short(row)}")
        if row not in known:
            raise InputError(
                f"{where}: {label!r} has row {_short(row)}, but the index has rows {known[0]} to "
                f"{known[-1]}"
            )
    rows = np.sort(np.array(listed, np.int64))
    twice = np.flatnonzero(rows[1:] == rows[:-1])
    if twice.size:
        raise InputError(f"{where}: {label!r} has row {rows[twice[0]]} twice; list it once")
    return rows - known.start


def _short(value) -> str:
    """Returns a number or a string as it is written, and of anything else its type."""
    text = repr(value) if type(value) in (int, float, str, bytes, bool) else None
    return text if text and len(text) < 60 else f"({type(value).__name__.strip('_')})"


def _box(query: dict, where: str) -> tuple[float, float, float, float] | None:
    found = query.get("bbx")
    if found is None:
        return None
    wrong = f"{where}: no 'bbx' of four numbers: left, top, right, bottom; leave it out for none"
    listed = _listed(found, wrong)
    if listed is None:
        raise InputError(wrong)
    if not len(listed):
        return None
    if len(listed) != 4:
        raise InputError(f"{wrong}; it has {len(listed):,}")
    listed = _elements(listed, wrong)
    if not all(type(x) in (int, float) for x in listed):
        raise InputError(wrong)
    try:
        box = tuple(map(float, listed))
    except OverflowError as error:
        raise InputError(wrong) from error
    if not np.isfinite(box).all():
        raise InputError(f"{where}: 'bbx' is {box}, but must be left, top, right, bottom")
    return box


def _keys(query: dict, where: str) -> tuple[str, ...]:
    """Returns the keys of a query's lists: Revisited's, or those of the protocol of 2007."""
    if "ok" in query:
        if "easy" in query or "hard" in query:
            raise InputError(
                f"{where}: 'ok' belongs to the original protocol, 'easy' and 'hard' to the "
                "revisited one; keep one kind"
            )
        return "ok", "junk"
    if "easy" not in query and "hard" not in query:
        keys = ", ".join(map(repr, query))[:200] or "no key"
        raise InputError(
            f"{where}: it has {keys}, but no list 'easy', 'hard' or 'ok' of the photos it matches"
        )
    return LABELS


def _query(query, known: range, where: str) -> Query:
    if not isinstance(query, dict):
        raise InputError(f"{where}: must be a dict of bbx, easy, hard and junk")
    rows = {key: _rows(query, key, known, where) for key in _keys(query, where) if key in query}
    together = np.sort(np.concatenate(list(rows.values())))
    shared = np.flatnonzero(together[1:] == together[:-1])
    if shared.size:
        row = together[shared[0]]
        names = [repr(key) for key, found in rows.items() if row in found]
        raise InputError(
            f"{where}: row {row + known.start} is in {' and '.join(names)}; keep it in one"
        )
    none = np.zeros(0, np.int64)
    easy = rows.get("ok", rows.get("easy", none))
    return Query(_box(query, where), easy, rows.get("hard", none), rows.get("junk", none))


def _queries(listed: list, query_ids: tuple[str, ...], known: range, path) -> tuple[Query, ...]:
    """Returns the queries; one that is listed many times is there once."""
    parsed, queries, rows = {}, [], 0
    for number, query in enumerate(listed):
        if id(query) not in parsed:
            found = _query(query, known, f"{path}: query {number} ({query_ids[number]})")
            parsed[id(query)] = found
            rows += sum(len(getattr(found, label)) for label in LABELS)
            if rows > _MOST_ROWS:
                raise InputError(f"{path}: its queries list more than {_MOST_ROWS} rows together")
        queries.append(parsed[id(query)])
    return tuple(queries)


def _of_sfm(value: dict, path) -> dict:
    """Returns the validation set of retrieval-SfM-120k as any other: its queries are index rows."""
    names = _names(value, "cids", path)
    try:
        photos = [photo_ids.of_sfm(cid) for cid in names]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    known = range(len(photos))
    asked = _listed(value.get("qidx"), f"{path}: 'qidx'")
    if asked is None:
        raise InputError(f"{path}: 'qidx' must be a list of whole numbers, rows of 'cids'")
    rows = _elements(asked, f"{path}: 'qidx'")
    if wrong := [row for row in rows if type(row) is not int or row not in known]:
        raise InputError(
            f"{path}: 'qidx' has {_short(wrong[0])}, but must have rows of 'cids', 0 to {known[-1]}"
        )
    return value | {"imlist": photos, "qimlist": [photos[row] for row in rows]}


def load_ground_truth(path: files.Path) -> GroundTruth:
    """Reads `gnd_*.pkl` (rows from 0) or `gnd_*.mat` (rows from 1), the benchmark's or your own.

    Lists may be tuples and NumPy arrays, and those of rows also sets. A query may lack its box, and
    all its lists but one: `easy` or `hard`, or `ok`, which is that of the protocol of 2007. The
    validation set that HOW's authors use, retrieval-SfM-120k-val-eccv2020.pkl, has photos of the
    folder `ims`, by `cids`, and its queries among them, `qidx`.

    Raises:
      InputError: when the file is missing or damaged, holds anything but plain containers, strings
        and numbers, or its lists do not fit together.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"--ground_truth={path}: no such file")
    of_matlab = path.suffix.lower() == ".mat"
    value = _read_mat(path) if of_matlab else _read_pickle(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: must be a dict of imlist, qimlist and gnd")
    if "cids" in value and "imlist" not in value:
        value = _of_sfm(value, path)
    index_ids, query_ids = _names(value, "imlist", path), _names(value, "qimlist", path)
    if len(set(index_ids)) < len(index_ids):
        twice = collections.Counter(index_ids).most_common(1)[0][0]
        raise InputError(f"{path}: 'imlist' has {twice!r} twice; list each photo once")
    listed = _listed(value.get("gnd"), f"{path}: 'gnd'")
    if listed is None or len(listed) != len(query_ids):
        raise InputError(f"{path}: 'gnd' must have one entry for each of {len(query_ids)} queries")
    listed = _elements(listed, f"{path}: 'gnd'")
    kinds = ["ok" in query for query in listed if isinstance(query, dict)]
    if any(kinds) and not all(kinds):
        lacking = query_ids[kinds.index(False)]
        raise InputError(
            f"{path}: some queries have 'ok', but {lacking} does not; use one protocol"
        )
    upright = value.get("upright", False)
    if type(upright) is not bool:
        raise InputError(f"{path}: 'upright' must be True or False")
    known = range(int(of_matlab), len(index_ids) + int(of_matlab))
    queries = _queries(listed, query_ids, known, path)
    return GroundTruth(path.stem, index_ids, query_ids, queries, upright, any(kinds))
