"""Retrieval metrics on ranks, in numpy alone.

A rank is a position in a ranking, from 0. Nothing here needs the whole ranking, only the ranks
of the photos that count, so a caller may find those without sorting a million scores.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import numpy as np


def remove_junk(positive_ranks: np.ndarray, junk_ranks: np.ndarray) -> np.ndarray:
    """Returns the ranks that the positives have once junk photos are taken out of the ranking.

    Args:
      positive_ranks: int (P,), ascending.
      junk_ranks: int (J,), in any order.
    """
    positive_ranks = np.asarray(positive_ranks, np.int64)
    return positive_ranks - np.searchsorted(np.sort(junk_ranks), positive_ranks)


def average_precision(ranks: np.ndarray) -> float:
    """Returns the area under the precision-recall curve, by trapezoids.

    The j-th positive (from 0) at rank r adds ((j / r) + ((j + 1) / (r + 1))) / 2 over the number
    of positives, with j / r = 1 at r = 0.

    Args:
      ranks: int (P,), ascending, of every positive, P at least 1, junk removed.
    """
    ranks = np.asarray(ranks, np.float64)
    j = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, j / np.maximum(ranks, 1))
    after = (j + 1) / (ranks + 1)
    return float(np.mean((before + after) / 2))


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share of positives among the first min(k, last positive's place) photos.

    Args:
      ranks: int (P,), ascending, of every positive, P at least 1, junk removed.
      k: photos, at least 1.
    """
    ranks = np.asarray(ranks)
    depth = min(k, int(ranks[-1]) + 1)
    return float(np.count_nonzero(ranks < depth) / depth)


def mean(values: list[float | None]) -> float | None:
    """Returns the mean of the values that are there, None when none is."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def bootstrap_interval(
    values: list[float | None], seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> list[float] | None:
    """Returns the [low, high] percentile bootstrap interval of the mean over queries.

    Args:
      values: one a query, fractions; None for a query that is left out of the mean.
      seed: of the resampling.
      resamples: how often the queries are drawn anew, with replacement.
      level: share of the resampled means inside the interval.

    Returns:
      None when no query has a value.
    """
    there = np.array([value for value in values if value is not None])
    if not there.size:
        return None
    rng = np.random.default_rng(seed)
    block = max(1, 2**22 // there.size)  # resamples that are in memory at once
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        part = means[start : start + block]
        part[:] = there[rng.integers(there.size, size=(len(part), there.size))].mean(axis=1)
    tail = (1 - level) / 2
    return [float(x) for x in np.quantile(means, [tail, 1 - tail])]
