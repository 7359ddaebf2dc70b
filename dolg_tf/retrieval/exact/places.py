"""Places of photos in rankings, counted instead of sorted.

For an average precision it is enough to know how many photos precede each photo that counts: those
with a higher score, and those with the same score in a lower row. So scores are computed block by
block, and only these counts are kept.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

# Index rows multiplied at a time; fewer when memory is short.
_BLOCK, _LEAST_BLOCK = 65536, 1024
_KNOWN_BLOCK = 8192
_BYTES = 4  # of a float32
_WORKERS = os.cpu_count() or 1
# Odd numbers that mix the bits of a row's first columns into a key.
_MIX = 2 * np.random.default_rng(0).integers(2**63, size=4, dtype=np.uint64) + 1
_TABLE_BITS = np.uint64(20)


def count_places(
    index: Rows | np.ndarray,
    queries: np.ndarray,
    rows: Sequence[np.ndarray],
    head: np.ndarray | None = None,
    memory_gb: float = 4.0,
) -> Iterator[np.ndarray]:
    """Yields the places that photos have in rankings by inner product, without sorting.

    Only those of one group of queries are in memory: where many queries match many photos, all
    places would take more than the index.

    A score is a float32 product, so two photos whose scores differ by less than its rounding
    (about 1e-7) may come in either order. Equal descriptors have equal scores in any row, and the
    lower row comes first among equal scores.

    Args:
      index: float (N, D), `Rows` or an array; read once per group of queries that fits in memory.
      queries: float32 (Q, D).
      rows: for each query int (P,), the rows of the index whose places are wanted.
      head: int64 (Q, M), rows that come first in each ranking, in this order; None: none do.
      memory_gb: most memory to use in GB, besides the pages of memory-mapped files.

    Yields:
      For each query int64 (P,), places from 0.

    Raises:
      InputError: when the descriptors differ in length, or not even one query fits in memory.
    """
    if queries.ndim != 2 or index.ndim != 2 or index.shape[1] != queries.shape[1]:
        raise InputError(
            f"index {index.shape} and queries {queries.shape} must be (N, D) and (Q, D) with the "
            "same D; extract both with the same model"
        )
    queries = np.asarray(queries, np.float32)
    rows = [np.asarray(asked, np.int64) for asked in rows]
    heads = np.empty((len(queries), 0), np.int64) if head is None else head
    wanted = np.zeros(len(index), bool)
    for some in (*rows, heads.ravel()):
        wanted[some] = True
    known = KnownRows(index, np.flatnonzero(wanted))
    size, group = _sizes(index.shape, len(known.rows), memory_gb)
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(queries), group):
            some = slice(start, start + group)
            scores = known.scores(queries[some])
            rankings = [
                Ranking(known, *one) for one in zip(rows[some], scores, heads[some], strict=True)
            ]
            work = _scored_blocks(index, queries[some], known, scores, size)
            for first, block in progress.track(
                work, -(-len(index) // size), "count places", "blocks"
            ):
                add_block(pool, rankings, first, block)
            for ranking in rankings:
                yield ranking.places()


def _sizes(shape: tuple[int, int], known: int, memory_gb: float) -> tuple[int, int]:
    """Returns how many index rows and how many queries are multiplied at a time."""
    room, row = memory_gb * 1e9, _BYTES * shape[1]
    # A block is read as stored, then cast: two copies at most.
    size = int(min(_BLOCK, max(_LEAST_BLOCK, room / 4 / (2 * row))))
    # Each query has the scores of the block and of the known rows, and notes on each row.
    group = int((room - 2 * size * row) // (_BYTES * (size + 12 * known)))
    if group < 1:
        raise InputError(f"--memory_gb={memory_gb} has no room for a single query; give more")
    return size, group


def _scored_blocks(index, queries: np.ndarray, known: "KnownRows", scores: np.ndarray, size: int):
    """Yields (first row, float32 (Q, up to `size`) scores); the next block overwrites the array."""
    room = np.empty((len(queries), size), np.float32)
    for first, block in blocks(index, size):
        out = room if len(block) == size else None
        block_scores = np.matmul(queries, block.T, out=out)
        columns, positions = known.find(block)
        block_scores[:, columns] = scores[:, positions]
        yield first, block_scores


def add_block(pool: ThreadPoolExecutor, rankings: list, first: int, scores: np.ndarray) -> None:
    """Counts a block for all queries, on all processors: sorting releases Python's lock."""

    def add(part: int) -> None:
        for ranking, row in zip(rankings[part::_WORKERS], scores[part::_WORKERS], strict=True):
            ranking.add(first, row)

    list(pool.map(add, range(_WORKERS)))


class KnownRows:
    """Rows of the index whose scores are computed once, for them and for every equal row.

    The entries of a matrix product are not all summed in the same order, so equal rows may get
    scores that differ in the last bit. Equal rows are found by a key of their first columns, looked
    up in a table with few false positives, and then by a hash of all columns.
    """

    def __init__(self, index, rows: np.ndarray):
        self.rows = rows  # ascending
        self._index = index
        self._position = {}  # of the first row with this hash
        self._same = np.empty(len(rows), np.int64)
        self._table = np.zeros(2 ** int(_TABLE_BITS), bool)
        for start, block in self._blocks():
            self._table[_keys(block)] = True
            for position, row in enumerate(block, start):
                self._same[position] = self._position.setdefault(_hash(row), position)

    def _blocks(self):
        for start in range(0, len(self.rows), _KNOWN_BLOCK):
            some = self.rows[start : start + _KNOWN_BLOCK]
            yield start, np.asarray(self._index[some], np.float32)

    def scores(self, queries: np.ndarray) -> np.ndarray:
        """Returns float32 (Q, number of known rows); equal rows have equal scores."""
        scores = np.empty((len(queries), len(self.rows)), np.float32)
        for start, block in self._blocks():
            scores[:, start : start + len(block)] = queries @ block.T
        return scores[:, self._same]

    def find(self, block: np.ndarray) -> tuple[list[int], list[int]]:
        """Returns the rows of a block that equal a known row, and the columns of its scores."""
        columns, positions = [], []
        for column in np.flatnonzero(self._table[_keys(block)]):
            position = self._position.get(_hash(block[column]))
            if position is not None:
                columns.append(column)
                positions.append(position)
        return columns, positions


def _keys(rows: np.ndarray) -> np.ndarray:
    """Returns uint64 (N,) below 2^20: equal for equal rows, rarely equal for others."""
    first = rows[:, : len(_MIX)] + np.float32(0)  # -0 becomes 0
    bits = first.view(np.uint32).astype(np.uint64)
    return bits @ _MIX[: bits.shape[1]] >> (np.uint64(64) - _TABLE_BITS)


def _hash(row: np.ndarray) -> bytes:
    return hashlib.sha256((row + np.float32(0)).tobytes()).digest()


class Ranking:
    """The photos of a query whose places are wanted, and how many photos precede each.

    A block's scores are sorted without their rows, which NumPy does several times as fast as it
    ranks them. The place of a wanted score among them is the number of scores above it.
    """

    def __init__(self, known: KnownRows, rows: np.ndarray, scores: np.ndarray, head: np.ndarray):
        asked = scores[np.searchsorted(known.rows, rows)]
        self._order = np.argsort(asked)
        self._rows, self._scores = rows[self._order], asked[self._order]
        self._head, self._head_scores = head, scores[np.searchsorted(known.rows, head)]
        self._before = np.zeros(len(rows), np.int64)
        self._last = max(rows, default=-1)

    def _ordered(self, scores: np.ndarray) -> np.ndarray:
        """Returns the scores in ascending order; only the relevant ones if they are few."""
        relevant = scores >= self._scores[0]
        few = np.count_nonzero(relevant) < len(scores) / 4
        return np.sort(scores[relevant] if few else scores)

    def add(self, first: int, scores: np.ndarray) -> None:
        """Counts the rows from `first` on, which have these scores."""
        if not len(self._rows):
            return
        ordered = self._ordered(scores)
        up_to = np.searchsorted(ordered, self._scores, side="right")
        self._before += len(ordered) - up_to
        if self._last < first:
            return
        equal = up_to - np.searchsorted(ordered, self._scores, side="left")
        later = self._rows >= first + len(scores)
        self._before[later] += equal[later]
        for i in np.flatnonzero((first <= self._rows) & ~later & (equal > 1)):
            self._before[i] += np.count_nonzero(scores[: self._rows[i] - first] == self._scores[i])

    def places(self) -> np.ndarray:
        """Returns int64 (P,), in the order in which the rows were given."""
        if not len(self._rows):
            return self._before
        rows, scores = self._rows[:, None], self._scores[:, None]
        # Head rows precede all others, whatever their scores.
        counted = (self._head_scores > scores) | (
            (self._head_scores == scores) & (self._head < rows)
        )
        found = len(self._head) + self._before - counted.sum(axis=1)
        at, in_head = np.nonzero(rows == self._head)
        found[at] = in_head
        places = np.empty_like(found)
        places[self._order] = found
        return places
