"""Exact search by inner product."""

import numpy as np

from dolg_tf.config import InputError


def _best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best of each row of (Q, C) candidates; among equals the leftmost first."""
    chosen = np.empty((len(scores), k), np.int64)
    for query, row in enumerate(scores):
        if k < len(row):
            least = np.partition(row, len(row) - k)[len(row) - k]
            candidates = np.flatnonzero(row >= least)
        else:
            candidates = np.arange(len(row))
        order = np.argsort(-row[candidates], kind="stable")[:k]
        chosen[query] = candidates[order]
    return np.take_along_axis(scores, chosen, 1), np.take_along_axis(rows, chosen, 1)


def search(
    index: np.ndarray, queries: np.ndarray, k: int | None = None, block: int = 65536
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks index photos by the inner product of descriptors.

    Equal scores are ranked by row, the lower first, so a ranking is the same at each run.

    Args:
      index: float32 (N, D), may be memory-mapped.
      queries: float32 (Q, D).
      k: how many to return for each query; None: all N.
      block: index rows multiplied at a time.

    Returns:
      (scores, ranks): float32 and int64 (Q, min(k, N)), best first; ranks are rows of the index.

    Raises:
      InputError: when the descriptors differ in length, k is below 1, or there
        is nothing to search.
    """
    if index.ndim != 2 or queries.ndim != 2 or index.shape[1] != queries.shape[1]:
        raise InputError(
            f"index {index.shape} and queries {queries.shape} must be (N, D) and (Q, D) of one D; "
            "extract both with the same model"
        )
    if k is not None and k < 1:
        raise InputError(f"k is {k}; it must be at least 1")
    if not len(index):
        raise InputError("the index has no descriptors")
    k = len(index) if k is None else min(k, len(index))
    queries = np.asarray(queries, np.float32)
    scores, rows = [], []
    for start in range(0, len(index), block):
        part = np.asarray(index[start : start + block], np.float32)
        scores.append(queries @ part.T)
        rows.append(np.broadcast_to(np.arange(start, start + len(part)), scores[-1].shape))
        last = start + len(part) == len(index)
        if last or sum(part.shape[1] for part in scores) > k:
            # Kept candidates are left of the block and have lower rows: ties stay in row order.
            best = _best(np.concatenate(scores, axis=1), np.concatenate(rows, axis=1), k)
            scores, rows = [best[0]], [best[1]]
    return scores[0], rows[0]
