"""Which local features of two photos look alike: nearest neighbours by one matrix product."""

import typing

import numpy as np

from dolg_tf.stage.config import InputError

RULES = {
    "nearest": "each of the query with the nearest of the index photo, as in DELG",
    "mutual": "those that are each other's nearest",
    "ratio": "the nearest where it is clearly nearer than the second, DELF's ratio test",
}

_SCORES = 2**18  # products at a time: 1 MB, which a core's cache holds
# Multiplications of a matrix product that BLAS takes for too small to be worth its threads. Pairs
# of photos are what threads are for; BLAS' own would wait for each other ten times in between.
_ONE_THREAD = 2**18


class Matches(typing.NamedTuple):
    """Pairs of features.

    Attributes:
      query, index: int64 (M,), rows of either photo; `query` ascends.
    """

    query: np.ndarray
    index: np.ndarray


def match(
    query: np.ndarray, index: np.ndarray, *, max_distance: float, rule: str = "nearest"
) -> Matches:
    """Pairs each feature of a query with the nearest one of an index photo.

    Equally near ones, to the digits of float32, count in their order: the first wins. Several
    features of the query may share one of the index photo, unless the rule is "mutual".

    Args:
      query: float32 (N, D) descriptors.
      index: float32 (M, D) descriptors.
      max_distance: pairs are closer than this, in Euclidean distance; at it they are not kept.
        DELF's `match_descriptor_threshold`: 1.0 is a cosine of 0.5 between unit vectors. With the
        rule "ratio", the share of the distance to the second nearest below which a pair is kept.
      rule: one of `RULES`.

    Raises:
      InputError: when the descriptors differ in length.

    Reference: `MatchFeatures` of DELF's image_reranking.py, which asks a k-d tree.
    """
    if not len(query) or not len(index):
        return Matches(np.zeros(0, np.int64), np.zeros(0, np.int64))
    query, index = np.asarray(query, np.float32), np.asarray(index, np.float32)
    if query.shape[1] != index.shape[1]:
        raise InputError(
            f"local features have {query.shape[1]} numbers in the query, but {index.shape[1]} in "
            "the index photo; describe both by the same model"
        )
    if rule == "ratio":
        return _clearly_nearest(query, index, max_distance)
    rows = np.arange(len(query))
    nearest, apart = _nearest(query, index)
    # Most are too far apart, which the rough distance shows.
    rows = rows[apart < max_distance**2 / 2]
    rows = rows[_distances(query, index, rows, nearest[rows]) < max_distance]
    if rule == "mutual":
        asked, places = np.unique(nearest[rows], return_inverse=True)
        back, _ = _nearest(index[asked], query)
        rows = rows[back[places] == rows]
    return Matches(rows, nearest[rows])


def _half_squares(rows: np.ndarray) -> np.ndarray:
    """Returns |row|^2 / 2, float64."""
    return np.einsum("nd,nd->n", rows, rows, dtype=np.float64) / 2


def _nearest(query: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Finds the row of the index that is nearest to each of the query.

    Products in float32 say which may be nearest; where there are several, products in float64
    decide.

    Returns:
      The rows, int64 (N,), and what half of the squared distances is at least, float32 (N,).
    """
    half_query, half_index = _half_squares(query), _half_squares(index)
    longest = half_query.max() + half_index.max() if len(query) else 0.0  # so is no |q| |i|
    # Higham's bound of a product in float32, and of the sums with it.
    slack = np.float32(longest * (query.shape[1] + 4) * np.finfo(np.float32).eps)
    nearest, apart = np.empty(len(query), np.int64), np.empty(len(query), np.float32)
    height, width = _tile(query.shape[1])
    columns = _cut(index, width).transpose(0, 2, 1)
    rough_half = half_index.astype(np.float32)
    size = max(1, _SCORES // (height * columns.shape[0] * width)) * height
    # Reused: memory that is new to the process takes as long to come as the products.
    room = np.empty((min(size, len(query) + height) // height, height, *columns.shape[::2]), "f4")
    for start in range(0, len(query), size):
        block = query[start : start + size]
        closeness = _multiply(_cut(block, height), columns, room)[: len(block), : len(index)]
        closeness -= rough_half
        found = closeness.argmax(1)
        best = np.take_along_axis(closeness, found[:, None], 1)
        near = closeness >= best - 2 * slack
        unclear = np.flatnonzero(np.count_nonzero(near, axis=1) > 1)
        found[unclear] = _first_nearest(block[unclear], index, half_index, near[unclear])
        nearest[start : start + size] = found
        apart[start : start + size] = half_query[start : start + size] - best[:, 0] - slack
    return nearest, apart


def _tile(dimensions: int) -> tuple[int, int]:
    """Returns how many rows of the query and of the index are multiplied in one product."""
    width = 1
    while 8 * width * width * dimensions <= _ONE_THREAD:
        width *= 2
    return 2 * width, width


def _cut(rows: np.ndarray, height: int) -> np.ndarray:
    """Returns float32 (N, D) rows as (N / height, height, D), with rows of zeros behind them."""
    tiles = np.zeros((-(-len(rows) // height), height, rows.shape[1]), np.float32)
    tiles.reshape(-1, rows.shape[1])[: len(rows)] = rows
    return tiles


def _multiply(rows: np.ndarray, columns: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Returns the products of (n, height, D) rows and (m, D, width) columns as one matrix.

    They are in `room`, float32 (n or more, height, m, width), until it is used again.
    """
    products = room[: len(rows)]
    np.matmul(rows[:, None], columns[None], out=products.transpose(0, 2, 1, 3))
    return products.reshape(len(rows) * room.shape[1], -1)


def _first_nearest(
    query: np.ndarray, index: np.ndarray, half_index: np.ndarray, near: np.ndarray
) -> np.ndarray:
    """Returns int64 (N,), the nearest of the index rows that are `near`, bool (N, M), to a query.

    Each has one or more.
    """
    rows, candidates = np.nonzero(near)
    exact = np.einsum("cd,cd->c", query[rows], index[candidates], dtype=np.float64)
    exact = (half_index[candidates] - exact).astype(np.float32)
    # By row, then the nearest, then the first.
    order = np.lexsort((candidates, exact, rows))
    return candidates[order[np.searchsorted(rows, np.arange(len(query)))]]


def _distances(query: np.ndarray, index: np.ndarray, rows: np.ndarray, others: np.ndarray):
    """Returns float64 distances of rows of the query to others of the index."""
    # The difference itself: products lose half the digits of a small distance.
    return np.linalg.norm(query[rows].astype(np.float64) - index[others], axis=1)


def _clearly_nearest(query: np.ndarray, index: np.ndarray, ratio: float) -> Matches:
    """Pairs features of the query with the nearest, where the second is farther by 1 / ratio."""
    query, index = query.astype(np.float64), index.astype(np.float64)
    apart = _half_squares(index) - query @ index.T
    rows, nearest = np.arange(len(query)), apart.argmin(1)
    first, second = _distances(query, index, rows, nearest), np.inf
    apart[rows, nearest] = np.inf
    if len(index) > 1:
        second = _distances(query, index, rows, apart.argmin(1))
    rows = rows[first < ratio * second]
    return Matches(rows, nearest[rows])
