"""Scores of all index photos for all queries: what a search without descriptors hands to scoring.

A directory with `scores.npy`, float32 (Q, N), higher is better; `queries.txt` and `ids.txt`, the
names of its rows and columns; and `meta.json`, which says how they were made.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.stage import checksums, files, workshop
from dolg_tf.stage.config import InputError

FORMAT_VERSION = 1
CONTENTS = "scores"
_REMEDY = "search again"
_FILES = ("scores.npy", "queries.txt", "ids.txt")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores that are open for reading.

    Attributes:
      queries: one per row.
      ids: one per column.
      scores: float32 (Q, N), memory-mapped.
      meta: the contents of `meta.json`.
      source: the directory, for errors.
    """

    queries: tuple[str, ...] = dataclasses.field(repr=False)
    ids: tuple[str, ...] = dataclasses.field(repr=False)
    scores: np.ndarray = dataclasses.field(repr=False)
    meta: dict
    source: str


def write(
    folder: pathlib.Path,
    queries: Sequence[str],
    ids: Sequence[str],
    rows: Iterable[np.ndarray],
    meta: dict,
) -> None:
    """Writes scores into a new folder, one query in memory at a time.

    Args:
      folder: an empty one, which takes its place when all is written.
      queries: names of the rows.
      ids: names of the columns.
      rows: (N,) for each query.
      meta: for `meta.json`.
    """
    descriptors.check_ids(queries, folder)
    descriptors.check_ids(ids, folder)
    with (folder / "scores.npy").open("wb") as file:
        about = {"descr": "<f4", "fortran_order": False, "shape": (len(queries), len(ids))}
        np.lib.format.write_array_header_1_0(file, about)
        for row in rows:
            file.write(np.asarray(row, "<f4").data)
    for name, names in (("queries.txt", queries), ("ids.txt", ids)):
        files.write_text(folder / name, "".join(f"{id_}\n" for id_ in names))
    about = {**meta, "contents": CONTENTS, "format_version": FORMAT_VERSION}
    checksums.write_json(folder / "meta.json", about, checksums.of_files(folder, _FILES))


def read(path: files.Path) -> Scores:
    """Reads scores; the matrix stays on disk.

    Raises:
      InputError: when there are none, a file is damaged, or the counts disagree.
    """
    path = pathlib.Path(path)
    if not workshop.recover(path / "meta.json"):
        raise InputError(f"{path}: no scores; `dolg asmk query` writes them")
    meta, sums = checksums.read_json(path / "meta.json", FORMAT_VERSION, _REMEDY)
    if meta.get("contents") != CONTENTS:
        raise InputError(f"{path}: no scores, but {meta.get('contents')!r:.60}")
    checksums.check(path, {name: sums.get(name, "") for name in _FILES}, _REMEDY)
    queries, ids = (descriptors.read_ids(path / name) for name in ("queries.txt", "ids.txt"))
    try:
        scores = np.load(path / "scores.npy", mmap_mode="r", allow_pickle=False)
    except (*files.DAMAGED_ARRAYS, OSError) as error:
        raise InputError(f"{path / 'scores.npy'}: damaged ({error}); {_REMEDY}") from error
    if scores.shape != (len(queries), len(ids)) or scores.dtype != np.float32:
        raise InputError(f"{path / 'scores.npy'}: {scores.dtype} {scores.shape}; {_REMEDY}")
    return Scores(queries, ids, scores, meta, str(path))
