"""Rough scores: products of queries and index rows, and the length of the longest row.

For few queries, memory is what takes time. So each row is read once, in a piece that fits into a
core's cache, and is measured and multiplied there; behind a file's 45-byte header no row is
aligned, so it is copied in any case. For many queries, multiplying is what takes time, and blocks
are left to BLAS. The first search of an index measures its rows; later ones know the longest.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError

_FEW = 32  # queries
_BLOCK = 16384  # rows that many queries are multiplied with at a time
_SCORES = 2**20  # scores of few queries that are in memory at a time
_PIECE = 2**18  # numbers in a piece: 1 MB
# Numbers in a matrix. BLAS takes a product with few queries for too small to be worth its threads,
# which would get into the way of ours.
_MATRIX = 2**13
# Most threads: a few of them read as fast as memory is.
_WORKERS = min(os.cpu_count() or 1, 8)
_SPANS = 4 * _WORKERS  # shares of a block: a thread that is late leaves some to the others


def workers() -> ThreadPoolExecutor:
    """Returns the threads that `multiply` takes."""
    return ThreadPoolExecutor(_WORKERS)


def block_size(queries: int) -> int:
    """Returns how many rows are multiplied at a time with so many queries."""
    return _BLOCK if queries > _FEW else _SCORES // max(queries, 1)


def lengths(rows: np.ndarray, name: str, start: int = 0) -> np.ndarray:
    """Returns the norms of float32 (N, D) descriptors.

    Args:
      rows: the descriptors.
      name: what the error calls all of them.
      start: number of the first row, for the error.

    Raises:
      InputError: naming the first row with which a product could overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        found = np.sqrt(np.vecdot(rows, rows))
    wrong = np.flatnonzero(~np.isfinite(found))
    if wrong.size:
        raise InputError(
            f"row {start + wrong[0]} of the {name} is not finite, or larger than 1e19; extract it "
            "again"
        )
    return found


def multiply(
    pool: ThreadPoolExecutor, index: Rows, start: int, stop: int, queries: np.ndarray
) -> tuple[np.ndarray, float]:
    """Multiplies queries with the rows from `start` to `stop`.

    Args:
      pool: see `workers`.
      index: (N, D).
      start: number of the first row.
      stop: number after the last row.
      queries: (Q, D), in the type in which products are taken.

    Returns:
      The products (Q, stop - start), and what no row's norm exceeds.

    Raises:
      InputError: naming the first row that is not finite.
    """
    if len(queries) > _FEW:
        block = index[start:stop]
        longest = _longest(index, block, start)
        return queries @ block.T.astype(queries.dtype, copy=False), longest
    products = np.empty((len(queries), stop - start), queries.dtype)
    bounds = np.linspace(start, stop, min(_SPANS, stop - start) + 1, dtype=np.int64)
    work = functools.partial(_multiply_few, index, queries, products, start)
    return products, max(pool.map(work, bounds[:-1].tolist(), bounds[1:].tolist()))


def _longest(index: Rows, rows: np.ndarray, start: int) -> float:
    """Returns what no norm of the rows from `start` on exceeds."""
    known = index.longest
    return float(lengths(rows, "index", start).max()) if known is None else known


def _multiply_few(
    index: Rows, queries: np.ndarray, products: np.ndarray, first: int, start: int, stop: int
) -> float:
    """Fills in the products of rows from `start` to `stop`; column 0 belongs to row `first`."""
    width, longest = index.shape[1], 0.0
    height = max(1, _MATRIX // width)
    matrices = max(1, min(_PIECE // (height * width), -(-(stop - start) // height)))
    piece = np.zeros((matrices * height, width), np.float32)
    for begin in range(start, stop, len(piece)):
        end = min(begin + len(piece), stop)
        rows = piece[: end - begin]
        index.copy_to(rows, begin)
        longest = max(longest, _longest(index, rows, begin))
        # All of the piece, whose last rows may be those of the piece before.
        stack = piece.reshape(matrices, height, width).astype(queries.dtype, copy=False)
        found = (stack @ queries.T).reshape(len(piece), -1)
        products[:, begin - first : end - first] = found[: len(rows)].T
    return longest
