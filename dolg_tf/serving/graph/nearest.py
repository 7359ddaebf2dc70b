"""Exact search by inner product, as graph functions: `retrieval.exact.search` inside a SavedModel.

A matrix product tells which rows may be among the best, within its rounding error; those alone are
scored, by products in float64 that are summed in a fixed order and rounded once. So scores, and the
order of equal ones, are those of `dolg index query`.
"""

import numpy as np
import tensorflow as tf

_QUERIES = 32  # multiplied with all rows at a time, whose products are in memory
_BLOCK = 1 << 14  # rows of half precision that are widened at a time
_SCORED = 1 << 14  # candidates that are scored at a time
_GROUP = 64  # products of which only the best is looked at first


def nearest(
    rows: tf.Variable, longest: float, queries: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows nearest to each query, best first; of equal scores the lower row.

    Args:
      rows: float32 or float16 (N, D).
      longest: what no row's norm exceeds.
      queries: float32 (Q, D); a query of zeros finds the first rows.
      k: rows per query, at most N.

    Returns:
      Scores float32 and rows int64, (Q, k).
    """
    rows = tf.convert_to_tensor(rows)  # read here: inside a loop, each turn would copy it
    count = tf.shape(queries)[0]
    found = (tf.TensorSpec([_QUERIES, k], tf.float32), tf.TensorSpec([_QUERIES, k], tf.int64))
    scores, places = tf.map_fn(
        lambda start: _padded(_nearest(rows, longest, queries[start : start + _QUERIES], k)),
        tf.range(0, count, _QUERIES),
        fn_output_signature=found,
        parallel_iterations=1,
    )
    return tf.reshape(scores, [-1, k])[:count], tf.reshape(places, [-1, k])[:count]


def _padded(found: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    missing = [[0, _QUERIES - tf.shape(found[0])[0]], [0, 0]]
    shape = [_QUERIES, found[0].shape[1]]
    return tuple(tf.ensure_shape(tf.pad(part, missing), shape) for part in found)


def _nearest(rows, longest: float, queries, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    products = _products(rows, queries)
    # As in `retrieval.exact.search`: twice the error of a product, and what underflows.
    kind, width = np.finfo(np.float32), rows.shape[1]
    error = 1.01 * width * float(kind.eps) * longest * tf.norm(queries, axis=1)
    least = _at_most_kth(products, k) - error - 4 * width * float(kind.tiny)

    def best(piece):
        query, its_products, at_least = piece
        candidates = tf.where(its_products >= at_least)[:, 0]
        return _best(rows, query, candidates, k)

    found = (tf.TensorSpec([k], tf.float32), tf.TensorSpec([k], tf.int64))
    return tf.map_fn(
        best, (queries, products, least), fn_output_signature=found, parallel_iterations=1
    )


def _products(rows, queries) -> tf.Tensor:
    """Returns the products (Q, N)."""

    # In this order, which takes half the time of the other.
    def of(rows):
        return tf.matmul(rows, queries, transpose_b=True)

    if rows.dtype == tf.float32:
        return tf.transpose(of(rows))
    last = rows.shape[0] - _BLOCK
    starts = tf.range(0, max(last, 1), _BLOCK)
    blocks = tf.map_fn(
        lambda start: of(tf.cast(rows[start : start + _BLOCK], tf.float32)),
        starts,
        fn_output_signature=tf.TensorSpec([min(_BLOCK, rows.shape[0]), None], tf.float32),
    )
    joined = tf.reshape(blocks, [-1, tf.shape(queries)[0]])
    if last > 0:  # the rows that fill no block
        rest = of(tf.cast(rows[-(-last // _BLOCK) * _BLOCK :], tf.float32))
        joined = tf.concat([joined, rest], 0)
    return tf.ensure_shape(tf.transpose(joined), [None, rows.shape[0]])


def _at_most_kth(products, k: int) -> tf.Tensor:
    """Returns (Q,), a product that k of (Q, N) reach, near the k-th best.

    Among the best of disjoint groups, the k-th is reached by k groups, and is found many times as
    fast.
    """
    groups = products.shape[1] // _GROUP
    if groups > 8 * k:
        split = tf.reshape(products[:, : groups * _GROUP], [-1, _GROUP, groups])
        products = tf.reduce_max(split, axis=1)
    return tf.math.top_k(products, k).values[:, -1]


def _best(rows, query, candidates, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns scores (k,) and numbers (k,) of the best of at least k rows, given in their order."""
    wide = tf.cast(query, tf.float64)

    def add(start, scores, places):
        chosen = candidates[start : start + _SCORED]
        exact = _inner_products(tf.cast(tf.gather(rows, chosen), tf.float64), wide)
        # Stable, and what was found before has the lower rows.
        scores, order = tf.math.top_k(tf.concat([scores, exact], 0), k)
        return start + _SCORED, scores, tf.gather(tf.concat([places, chosen], 0), order)

    start = (tf.constant(0), tf.fill([k], -np.float32(np.inf)), tf.zeros([k], tf.int64))
    _, scores, places = tf.while_loop(
        lambda start, *_: start < tf.size(candidates), add, start, parallel_iterations=1
    )
    return scores, places


def _inner_products(rows, query) -> tf.Tensor:
    """`retrieval.exact.search.inner_products` of float64 (P, D) and (D,): float32 (P,)."""
    sums, width = rows * query, rows.shape[1]
    while width > 1:
        half = -(-width // 2)
        added = sums[:, : width - half] + sums[:, half:width]
        sums = tf.concat([added, sums[:, width - half : half]], 1)
        width = half
    return tf.cast(sums[:, 0], tf.float32)
