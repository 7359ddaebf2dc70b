"""Exact search for very many queries: block by block, resumable, with penalties per index photo."""

import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

BLOCK = 1024  # queries searched at once


class Pieces:
    """The results of finished blocks, kept in a folder until the output is complete.

    Args:
      folder: of the pieces; created if missing.
      identity: plain JSON values that must be equal for a rerun to continue.

    Raises:
      InputError: when the folder holds pieces of another run.
    """

    def __init__(self, folder: pathlib.Path, identity: dict):
        self._folder = folder
        stood = folder / "search.json"
        if stood.exists() and files.read_json(stood) != identity:
            raise InputError(
                f"{folder} holds the beginning of another run (other descriptors, queries or "
                "options); delete it, or choose another --output"
            )
        files.write_json(stood, identity)

    def get(self, name: str, find: Callable[[], Neighbours]) -> Neighbours:
        """Returns the piece with this name, from the folder or as found now."""
        path = self._folder / f"{name}.npz"
        if path.exists():
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    # NumPy reads only as far as an array's header says; checksums cover all of it.
                    if wrong := arrays.zip.testzip():
                        raise ValueError(f"the checksum of {wrong} is wrong")
                    return Neighbours(arrays["scores"], arrays["ranks"])
            except (*files.DAMAGED_ARRAYS, OSError) as error:
                raise InputError(f"{path} is damaged ({error}); delete it") from error
        found = find()
        with files.atomic_path(path) as temporary:
            np.savez(temporary, scores=found.scores, ranks=found.rows)
        return found


def nearest(
    pieces: Pieces, name: str, index, count: int, block_of: Callable, k: int
) -> Iterator[Neighbours]:
    """Yields the neighbours of each block of queries; see `search.search`.

    Args:
      pieces: the blocks that are done.
      name: of these pieces, and of the progress bar.
      index: (N, D), an array, `Rows` or anything that is read like them.
      count: number of queries.
      block_of: slice of queries -> float32 (B, D).
      k: number of rows per query.
    """
    index = Rows([index])  # one for all blocks: the first measures it
    starts = range(0, count, BLOCK)
    for start in progress.track(starts, len(starts), name, f"blocks of {BLOCK}"):
        part = slice(start, min(start + BLOCK, count))
        yield pieces.get(
            f"{name}-{start:08d}", lambda part=part: search.search(index, block_of(part), k)
        )


class Penalised:
    """Index rows with one more column, their negated penalty; read like `Rows`.

    Their product with (query, 1) is the similarity minus the penalty of the index photo, so exact
    search ranks by it.

    Args:
      rows: (N, D), `Rows` or an array.
      penalties: float32 (N,).
    """

    ndim = 2

    def __init__(self, rows, penalties: np.ndarray):
        self._rows, self._penalties = rows, penalties
        self.shape = (len(rows), rows.shape[1] + 1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        minus = -self._penalties[key, None]
        return np.concatenate([np.asarray(self._rows[key], np.float32), minus], axis=1)


def with_one(queries: np.ndarray) -> np.ndarray:
    """Returns float32 (Q, D + 1): queries for a `Penalised` index."""
    return np.pad(queries, ((0, 0), (0, 1)), constant_values=1)
