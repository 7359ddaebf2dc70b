"""k-reciprocal re-ranking: photos are near when they are among each other's neighbours.

Reference: Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR
2017, equations 1 to 12. The paper encodes all photos and queries together, which takes (Q + N)^2
distances. Here each query is encoded with its M best photos only, so that a million photos work and
no query sees another. With one query and M = N the result is the same.
"""

import numpy as np


def _reciprocal(nearest: np.ndarray, k: int) -> np.ndarray:
    """Returns bool (n, n): whether i and j are each among the other's k nearest (and itself)."""
    near = np.zeros((len(nearest), len(nearest)), bool)
    np.put_along_axis(near, nearest[:, : k + 1], True, 1)
    return near & near.T


def _encode(distances: np.ndarray, nearest: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Returns the k-reciprocal vector of each photo: float64 (n, n), rows that sum to 1."""
    mutual = _reciprocal(nearest, k1)
    half = _reciprocal(nearest, round(k1 / 2))
    # A neighbour's half set joins when more than two thirds of it are members already.
    shared = mutual.astype(np.float32) @ half.T.astype(np.float32)
    joins = mutual & (shared > half.sum(axis=1) * (2 / 3))
    members = mutual | (joins.astype(np.float32) @ half.astype(np.float32) > 0)
    vectors = np.where(members, np.exp(-distances), 0)
    vectors /= vectors.sum(axis=1, keepdims=True)
    return vectors[nearest[:, :k2]].mean(axis=1)


def reorder(
    query: np.ndarray, candidates: np.ndarray, k1: int, k2: int, original: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the places of a query's photos after re-ranking, best first, and their scores.

    Args:
      query: float (D,), unit norm.
      candidates: float (M, D), unit rows, the M best of the query, best first.
      k1: neighbours that must be mutual.
      k2: nearest photos (and itself) over which an encoding is averaged, at least 1.
      original: share (lambda) of the original distance in the final one, 0 to 1.

    Returns:
      int64 (M,), and float64 (M,), falling: distances below 0. Ties keep their order.
    """
    together = np.concatenate([query[None], candidates]).astype(np.float64)  # (M + 1, D)
    squares = np.sum(together**2, axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * (together @ together.T), 0)
    np.fill_diagonal(distances, -1)  # a photo is its own nearest, before its duplicates
    # Rounded for comparison, so that copies of a photo are equally far whatever the order of
    # summation in a matrix product.
    nearest = np.argsort(distances.round(7), axis=1, kind="stable")
    np.fill_diagonal(distances, 0)
    largest = distances.max(axis=1, keepdims=True)
    distances /= np.where(largest > 0, largest, 1)
    vectors = _encode(distances, nearest, k1, k2)
    common = np.minimum(vectors[0], vectors[1:]).sum(axis=1)
    jaccard = 1 - common / (2 - common)
    final = (1 - original) * jaccard + original * distances[0, 1:]
    final = final.round(7)
    places = np.argsort(final, kind="stable")
    return places, -final[places]
