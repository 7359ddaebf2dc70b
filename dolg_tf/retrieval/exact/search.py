"""Exact search by inner product.

A score is the inner product of two descriptors and depends on nothing else: it is summed in float64
in a fixed order and rounded to float32. The rounding of a matrix product depends on blocks, threads
and processor, so it only tells which photos may be among the best. Equal descriptors therefore have
equal scores.
"""

from typing import NamedTuple

import numpy as np

from dolg_tf.retrieval.exact import products
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage.config import InputError

# Queries multiplied at a time, and pairs whose products are in memory at a time.
_QUERIES = 1024
_PAIRS = 512
_GROUP = 64  # scores of which only the best is looked at first


class Neighbours(NamedTuple):
    """The nearest photos of each query, best first.

    Attributes:
      scores: float32 (Q, k), inner products of descriptors.
      rows: int64 (Q, k), rows of the index.
    """

    scores: np.ndarray
    rows: np.ndarray


def inner_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the scores of pairs of descriptors, the same on every machine.

    Args:
      a: float32 (P, D), or (D,) for a single one that is paired with all of `b`.
      b: float32 (P, D).

    Returns:
      float32 (P,).
    """
    # Exact: the product of two float32 has 48 bits, a float64 has 53.
    sums = np.multiply(a, b, dtype=np.float64)
    width = sums.shape[1]
    while width > 1:  # halves are added element by element: no library chooses the order
        half = -(-width // 2)
        sums[:, : width - half] += sums[:, half:width]
        width = half
    return sums[:, :1].sum(axis=1).astype(np.float32)


class _Candidates:
    """Pairs (query, row) that may be among the k best of the query, with rough scores.

    If too many rough scores are within their error of one another (a collapsed network, many copies
    of a photo), the candidates are scored exactly, and later products are taken in float64.
    """

    def __init__(self, index, queries: np.ndarray, k: int):
        self._index, self._queries, self._k = index, queries, k
        self._lengths = products.lengths(queries, "queries")
        self.longest = 0.0  # at least the norm of each row so far
        self.factor = queries  # what rows are multiplied with
        self._kth = np.full(len(queries), -np.inf)
        self._most = 2 * k * len(queries) + 65536
        self._query = self._row = np.zeros(0, np.int64)
        self._score = np.zeros(0)

    def _least(self) -> np.ndarray:
        """Returns (Q,), the lowest rough score of a row that may be among the k best."""
        # The error of a matrix product is at most D u |q| |x|, whatever its order of summation
        # (Higham, Accuracy and Stability of Numerical Algorithms, 3.5), plus what underflows. Two
        # products are compared, so the bound is twice that; u is half of eps.
        kind, width = np.finfo(self.factor.dtype), self._queries.shape[1]
        error = 1.01 * width * float(kind.eps) * self._lengths * self.longest
        return self._kth - error - 4 * width * float(np.finfo(np.float32).tiny)

    def add(self, start: int, scores: np.ndarray, longest: float) -> None:
        """Adds the rows from `start` on, which have these rough scores and are at most so long."""
        self.longest, count = max(self.longest, longest), scores.shape[1]
        if start == 0 and count > self._k:
            self._kth = _at_most_kth(scores, self._k).astype(np.float64)
        # Rounded down when it is cast back to float32.
        least = np.nextafter(self._least().astype(scores.dtype), scores.dtype.type(-np.inf))
        # A flat scan: NumPy takes twenty times as long over two axes.
        query, column = np.divmod(np.flatnonzero(scores >= least[:, None]), count)
        self._query = np.concatenate([self._query, query])
        self._row = np.concatenate([self._row, column + start])
        self._score = np.concatenate([self._score, scores[query, column]])
        if len(self._row) > self._most:
            self._prune()
            if len(self._row) > self._most:
                self._keep_best()

    def _take(self, chosen: np.ndarray) -> None:
        self._query, self._row = self._query[chosen], self._row[chosen]
        self._score = self._score[chosen]

    def _set_kth(self) -> None:
        """Sets the k-th best score of each query that has k candidates, which must be sorted."""
        starts = np.searchsorted(self._query, np.arange(len(self._queries) + 1))
        full = np.diff(starts) >= self._k
        self._kth[full] = self._score[starts[:-1][full] + self._k - 1]

    def _prune(self) -> None:
        """Drops candidates that cannot be among the k best."""
        if self.factor.dtype == np.float64:
            return  # exact scores and float64 products are mixed here: see `_keep_best`
        self._take(np.lexsort((-self._score, self._query)))
        self._set_kth()
        self._take(self._score >= self._least()[self._query])

    def _keep_best(self) -> None:
        """Scores the candidates, keeps the k best of each query, and continues in float64."""
        scores = np.empty(len(self._row), np.float32)
        for start in range(0, len(scores), _PAIRS):
            part = slice(start, start + _PAIRS)
            rows = np.asarray(self._index[self._row[part]], np.float32)
            scores[part] = inner_products(self._queries[self._query[part]], rows)
        self._score = scores.astype(np.float64)
        self._take(np.lexsort((self._row, -self._score, self._query)))
        first = np.searchsorted(self._query, self._query)
        self._take(np.arange(len(first)) - first < self._k)
        self._set_kth()
        # A later row loses a tie, so its score must round to more than the k-th.
        kth = self._kth.astype(np.float32)
        self._kth = (self._kth + np.nextafter(kth, np.float32(np.inf))) / 2
        self.factor = self._queries.astype(np.float64)

    def best(self) -> Neighbours:
        """Returns the k nearest photos of each query."""
        self._prune()
        self._keep_best()
        shape = (len(self._queries), self._k)
        return Neighbours(self._score.astype(np.float32).reshape(shape), self._row.reshape(shape))


def _at_most_kth(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns (Q,), a score that k of (Q, B) reach, near the k-th best.

    Among the best of disjoint groups, the k-th is reached by k groups, and is found many times as
    fast. Neighbours in the index are often views of one place, so they are in different groups.
    """
    groups = scores.shape[1] // _GROUP
    if groups > 8 * k:
        split = scores[:, : groups * _GROUP].reshape(len(scores), _GROUP, groups)
        scores = split.max(axis=1)
    place = scores.shape[1] - k
    return np.partition(scores, place, axis=1)[:, place]


def _search_best(index: Rows, queries: np.ndarray, k: int, block: int | None) -> Neighbours:
    found, size = _Candidates(index, queries, k), block or products.block_size(len(queries))
    with products.workers() as pool:
        for start in range(0, len(index), size):
            stop = min(start + size, len(index))
            found.add(start, *products.multiply(pool, index, start, stop, found.factor))
    index.longest = found.longest  # all rows have been read
    return found.best()


def _search_all(index: Rows, queries: np.ndarray, block: int) -> Neighbours:
    """Ranks the whole index: every score is needed, so none is rough."""
    scores = np.empty((len(queries), len(index)), np.float32)
    for start, part in blocks(index, min(block, _PAIRS)):
        products.lengths(part, "index", start)
        for query, row in enumerate(queries):
            scores[query, start : start + len(part)] = inner_products(row, part)
    ranks = np.argsort(-scores, axis=1, kind="stable")
    return Neighbours(np.take_along_axis(scores, ranks, 1), ranks)


def share_found(exact: np.ndarray, found: np.ndarray) -> float:
    """Returns the share of the exact neighbours, rows (Q, k), that are among those found."""
    same = (len(np.intersect1d(*pair)) for pair in zip(exact, found, strict=True))
    return sum(same) / exact.size


def check(index_shape: tuple[int, ...], queries: np.ndarray, k: int | None) -> None:
    """Makes sure that queries can be searched for.

    Raises:
      InputError: as `search`.
    """
    if len(index_shape) != 2 or queries.ndim != 2 or index_shape[1] != queries.shape[1]:
        raise InputError(
            f"index {index_shape} and queries {queries.shape} must be (N, D) and (Q, D) with the "
            "same D; extract both with the same model"
        )
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1")
    if not index_shape[0]:
        raise InputError("the index has no descriptors")
    products.lengths(queries, "queries")


def search(
    index: Rows | np.ndarray, queries: np.ndarray, k: int | None = None, block: int | None = None
) -> Neighbours:
    """Ranks index photos by the inner product of descriptors.

    Equal scores are ranked by row, the lower first. Scores and ranks are the same in every run,
    whatever the block size, the threads, the processor and the other queries.

    Args:
      index: `Rows` or float32 (N, D), which may be memory-mapped.
      queries: float32 (Q, D).
      k: number of photos to return per query; None: all N.
      block: index rows multiplied at a time; None: as many as is quick.

    Returns:
      `scores` and `rows`, float32 and int64 (Q, min(k, N)), best first.

    Raises:
      InputError: when the descriptors differ in length or are not finite, k is below 1, or the
        index is empty.
    """
    queries = np.asarray(queries, np.float32)
    check(index.shape, queries, k)
    index = index if isinstance(index, Rows) else Rows([index])
    k = len(index) if k is None else min(k, len(index))
    scores, rows = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        if k == len(index):
            scores[part], rows[part] = _search_all(index, queries[part], block or _PAIRS)
        else:
            scores[part], rows[part] = _search_best(index, queries[part], k, block)
    return Neighbours(scores, rows)
