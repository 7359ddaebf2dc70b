"""Metrics of GLDv2's two tasks and of the Kaggle challenges held on it, in numpy alone.

The definitions are those of the dataset's own scorer, its quirks included: a query without
prediction counts as 0, a repeated photo is passed over and keeps its place.

Reference: Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, section 4 (mAP@100 and GAP).
"""

from collections.abc import Collection, Sequence

import numpy as np

DEPTH = 100  # photos of a ranking that count


# --- retrieval -----------------------------------------------------------------------


def find_hits(
    predicted: Sequence[str], relevant: Collection[str], depth: int = DEPTH
) -> np.ndarray:
    """Returns bool (min(len(predicted), depth),): which places hold a relevant photo.

    Args:
      predicted: index photos, best first; of a photo listed again only its first place counts.
      relevant: the photos that should be found.
      depth: places that count.
    """
    predicted = predicted[:depth]
    seen, hits = set(), np.zeros(len(predicted), bool)
    for place, photo in enumerate(predicted):
        hits[place] = photo in relevant and photo not in seen
        seen.add(photo)
    return hits


def average_precision(hits: np.ndarray, relevant: int, depth: int = DEPTH) -> float:
    """Returns the sum of the precisions at the hits over min(`relevant`, `depth`).

    Args:
      hits: bool (P,), see `find_hits`.
      relevant: how many photos should be found; 0 gives 0.
      depth: places that count.
    """
    places = np.flatnonzero(hits[:depth]) + 1
    return float(np.sum(np.arange(1, len(places) + 1) / places)) / max(min(relevant, depth), 1)


def precision_at(hits: np.ndarray, k: int) -> float:
    """Returns the hits among the first k places over k, however few were predicted."""
    return float(np.count_nonzero(hits[:k]) / k)


def first_position(hits: np.ndarray, depth: int = DEPTH) -> int:
    """Returns the place of the first hit, from 1; `depth` + 1 when there is none."""
    places = np.flatnonzero(hits[:depth])
    return int(places[0]) + 1 if len(places) else depth + 1


# --- recognition ---------------------------------------------------------------------


def confidence_order(ids: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """Returns the order of predictions by score, highest first, then by query id.

    Args:
      ids: of the queries, each once.
      scores: float (P,).
    """
    return np.array(sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i])), np.int64)


def global_average_precision(correct: np.ndarray, positives: int) -> float | None:
    """Returns GAP: the sum of the precisions at the correct predictions over `positives`.

    Args:
      correct: bool (P,), the predictions of all queries in `confidence_order`, one a query at
        most.
      positives: how many queries show a landmark; with none there is no GAP.
    """
    if not positives:
        return None
    places = np.flatnonzero(correct) + 1
    return float(np.sum(np.arange(1, len(places) + 1) / places) / positives)


def gap_interval(
    correct: np.ndarray,
    positive: np.ndarray,
    predicted: int,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> list[float] | None:
    """Returns the [low, high] percentile bootstrap interval of GAP, the queries drawn anew.

    GAP is no mean over queries: each resample is ranked as a whole, a query drawn several times
    stands there several times. A resample without any landmark is left out; None when all are.

    Args:
      correct: bool (Q,), all queries: first those with a prediction in `confidence_order`, then
        the others (not correct).
      positive: bool (Q,), which of them show a landmark.
      predicted: how many have a prediction.
      seed: of the resampling.
      resamples: how often the queries are drawn.
      level: share of the resampled values inside the interval.
    """
    rng, values = np.random.default_rng(seed), []
    right = np.flatnonzero(correct[:predicted])
    for _ in range(resamples):
        counts = np.bincount(rng.integers(len(correct), size=len(correct)), minlength=len(correct))
        positives = counts[positive].sum()
        if not positives:
            continue
        drawn = counts[right]
        before = np.cumsum(counts[:predicted])[right] - drawn  # places above each one's first copy
        copy = np.arange(drawn.sum()) - np.repeat(np.cumsum(drawn) - drawn, drawn)
        places = np.repeat(before, drawn) + copy + 1
        values.append(np.sum(np.arange(1, len(places) + 1) / places) / positives)
    if not values:
        return None
    tail = (1 - level) / 2
    return [float(x) for x in np.quantile(values, [tail, 1 - tail])]
