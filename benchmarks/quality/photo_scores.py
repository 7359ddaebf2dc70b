"""Average precision and recall at 1 of labelled photos, for the other benchmarks."""

import numpy as np

from dolg_tf.evaluation.metrics import revisited_average_precision


def score_queries(similarities: np.ndarray, same: np.ndarray) -> dict[str, list[float]]:
    """Returns average precision and hit at 1 per query over the whole index, as fractions.

    Args:
      similarities: (Q, N), between queries and index.
      same: bool (Q, N), true where both show the same landmark; at least once per query.
    """
    order = np.argsort(-similarities, axis=1, kind="stable")
    hits = np.take_along_axis(same, order, 1)
    return {
        "AP": [revisited_average_precision(np.flatnonzero(row)) for row in hits],
        "hit": [float(row[0]) for row in hits],
    }


def mean_scores(similarities: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    """Returns mAP and recall at 1, as fractions; takes the arguments of `score_queries`."""
    found = score_queries(similarities, same)
    return float(np.mean(found["AP"])), float(np.mean(found["hit"]))


def percent_scores(queries, index, query_landmarks, index_landmarks) -> tuple[float, float]:
    """Returns mAP and recall at 1, in percent.

    Args:
      queries, index: unit descriptors (Q, C) and (N, C).
      query_landmarks, index_landmarks: (Q,) and (N,).
    """
    same = np.asarray(index_landmarks) == np.asarray(query_landmarks)[:, None]
    precision, hit = mean_scores(queries @ index.T, same)
    return 100 * precision, 100 * hit
