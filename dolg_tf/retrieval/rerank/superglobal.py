"""SuperGlobal re-ranking: the best photos refine their own descriptors and the query.

Reference: Shao et al., "Global Features are All You Need for Image Retrieval and Reranking",
ICCV 2023, section 3.3, and its published code, whose results these equal.
"""

import numpy as np

from dolg_tf.stage.config import InputError


def _order(scores: np.ndarray) -> np.ndarray:
    """Returns the places of scores, best first; the leftmost first among equals.

    Scores are float64 sums, rounded here, so that copies of a photo have equal scores whatever the
    order of summation in a matrix product.
    """
    return np.argsort(-scores.astype(np.float32), axis=-1, kind="stable")


def refine(candidates: np.ndarray, k: int, beta: float) -> np.ndarray:
    """Returns each photo of a query averaged with its k nearest among them.

    (x + sum of beta * (x.y) * y) / (1 + sum of beta * (x.y)) over the k nearest y.

    Args:
      candidates: float32 (M, D), unit rows.
      k: number of neighbours; all others, if there are fewer.
      beta: weight of the neighbours.

    Returns:
      float64 (M, D), not of unit norm.

    Raises:
      InputError: when the weights of a photo and its neighbours, which have the signs of their
        inner products, do not have a positive sum.
    """
    candidates = candidates.astype(np.float64)
    products = candidates @ candidates.T
    nearest = _order(products)[:, : k + 1]
    weights = beta * np.take_along_axis(products, nearest, 1)
    weights[:, 0] = 1  # the photo itself
    total = weights.sum(axis=1, keepdims=True)
    if not (total > 1e-6).all():
        raise InputError(
            f"the weights of a photo and its {k} neighbours sum to {total.min():.3g}, since they "
            "point away from it; use a smaller --rerank_beta or --rerank_k"
        )
    # (M, M) with k + 1 weights per row: one matrix product instead of M gathers.
    spread = np.zeros_like(products)
    np.put_along_axis(spread, nearest, weights / total, 1)
    return spread @ candidates


def reorder(
    query: np.ndarray, candidates: np.ndarray, k: int, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of a query's photos after re-ranking, best first, and their scores.

    The photos are refined (`refine`) and scored against the query. The element-wise maximum of the
    k + 1 best is a second query, and the mean of both scores decides. Ties keep their order.

    Args:
      query: float32 (D,), unit norm.
      candidates: float32 (M, D), unit rows, the M best of the query, best first.
      k: neighbours of a photo; k + 1 photos form the second query.
      beta: weight of the neighbours.

    Returns:
      int64 (M,), and float64 (M,), falling.
    """
    refined = refine(candidates, k, beta)
    scores = refined @ query
    first = _order(scores)
    expanded = refined[first[: k + 1]].max(axis=0)
    second = (scores + refined @ expanded)[first] / 2
    places = _order(second)
    return first[places], second[places]
