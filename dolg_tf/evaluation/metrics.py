"""The retrieval metrics of both protocols, in NumPy alone.

Revisited Oxford and Paris: mAP and mP@k of whole rankings, junk photos taken out. Their input is
ranks: positions in a ranking, from 0, of the photos that count. Nothing here needs the whole
ranking, so a caller may find those ranks without sorting a million scores.

GLDv2 and the Kaggle challenges held on it: mAP@100 and GAP, by the dataset's own scorer, quirks
included: a query without a prediction counts as 0; a repeated photo is passed over but keeps its
place.

References:
  Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
  Weyand et al., "Google Landmarks Dataset v2", CVPR 2020, section 4 (mAP@100 and GAP).
"""

from collections.abc import Collection, Sequence

import numpy as np

GLDV2_DEPTH = 100  # photos of a GLDv2 ranking that count


# --- both ----------------------------------------------------------------------------


def mean(values: list[float | None]) -> float | None:
    """Returns the mean of the values that are not None; None when there are none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def bootstrap_interval(
    values: list[float | None], seed: int = 0, resamples: int = 10000, level: float = 0.95
) -> list[float] | None:
    """Returns the [low, high] percentile bootstrap interval of the mean over queries.

    Args:
      values: one fraction per query; None for a query that is left out of the mean.
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
    block = max(1, 2**22 // there.size)  # resamples in memory at once
    means = np.empty(resamples)
    for start in range(0, resamples, block):
        part = means[start : start + block]
        part[:] = there[rng.integers(there.size, size=(len(part), there.size))].mean(axis=1)
    tail = (1 - level) / 2
    return [float(x) for x in np.quantile(means, [tail, 1 - tail])]


# --- Revisited Oxford and Paris ------------------------------------------------------


def remove_junk(positive_ranks: np.ndarray, junk_ranks: np.ndarray) -> np.ndarray:
    """Returns the ranks of the positives once junk photos are taken out of the ranking.

    Args:
      positive_ranks: int (P,), ascending.
      junk_ranks: int (J,), in any order.
    """
    positive_ranks = np.asarray(positive_ranks, np.int64)
    return positive_ranks - np.searchsorted(np.sort(junk_ranks), positive_ranks)


def revisited_average_precision(ranks: np.ndarray) -> float:
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


def revisited_precision_at(ranks: np.ndarray, k: int) -> float:
    """Returns the share of positives among the first min(k, last positive's place) photos.

    Args:
      ranks: int (P,), ascending, of every positive, P at least 1, junk removed.
      k: photos, at least 1.
    """
    ranks = np.asarray(ranks)
    depth = min(k, int(ranks[-1]) + 1)
    return float(np.count_nonzero(ranks < depth) / depth)


# --- GLDv2 retrieval -----------------------------------------------------------------


def find_hits(
    predicted: Sequence[str], relevant: Collection[str], depth: int = GLDV2_DEPTH
) -> np.ndarray:
    """Returns bool (min(len(predicted), depth),): whether each place holds a relevant photo.

    Args:
      predicted: index photos, best first; only the first place of a repeated photo counts.
      relevant: the photos that should be found.
      depth: places that count.
    """
    predicted = predicted[:depth]
    seen, hits = set(), np.zeros(len(predicted), bool)
    for place, photo in enumerate(predicted):
        hits[place] = photo in relevant and photo not in seen
        seen.add(photo)
    return hits


def gldv2_average_precision(hits: np.ndarray, relevant: int, depth: int = GLDV2_DEPTH) -> float:
    """Returns the sum of the precisions at the hits over min(`relevant`, `depth`).

    Args:
      hits: bool (P,), see `find_hits`.
      relevant: how many photos should be found; with 0 the result is 0.
      depth: places that count.
    """
    places = np.flatnonzero(hits[:depth]) + 1
    return float(np.sum(np.arange(1, len(places) + 1) / places)) / max(min(relevant, depth), 1)


def gldv2_precision_at(hits: np.ndarray, k: int) -> float:
    """Returns the hits among the first k places over k, even when fewer were predicted."""
    return float(np.count_nonzero(hits[:k]) / k)


def first_position(hits: np.ndarray, depth: int = GLDV2_DEPTH) -> int:
    """Returns the place of the first hit, from 1; `depth` + 1 when there is none."""
    places = np.flatnonzero(hits[:depth])
    return int(places[0]) + 1 if len(places) else depth + 1


# --- GLDv2 recognition -------------------------------------------------------------


def confidence_order(ids: Sequence[str], scores: np.ndarray) -> np.ndarray:
    """Returns the order of predictions: by score, highest first, then by query id.

    Args:
      ids: of the queries, each once.
      scores: float (P,).
    """
    return np.array(sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i])), np.int64)


def global_average_precision(correct: np.ndarray, positives: int) -> float | None:
    """Returns GAP: the sum of the precisions at the correct predictions over `positives`.

    Args:
      correct: bool (P,), the predictions of all queries in `confidence_order`, at most one per
        query.
      positives: how many queries show a landmark; with 0 the result is None.
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

    GAP is not a mean over queries: each resample is ranked as a whole, and a query drawn several
    times takes several places. A resample without any landmark is left out; None when all are.

    Args:
      correct: bool (Q,), all queries: first those with a prediction, in `confidence_order`, then
        the others (not correct).
      positive: bool (Q,), whether each shows a landmark.
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
