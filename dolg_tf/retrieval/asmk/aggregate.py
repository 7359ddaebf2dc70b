"""The local features of an image -> one sum of residuals per visual word."""

from collections.abc import Sequence

import numpy as np

_LEAST_NORM = 1e-6


def residual_sums(
    descriptors: np.ndarray, words: np.ndarray, centroids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums up the residuals of an image at each of its words: V_c = sum of (x - c).

    Args:
      descriptors: float32 (N, D).
      words: int (N, m), of each descriptor.
      centroids: float32 (K, D).

    Returns:
      The words with at least one descriptor, ascending, int64 (W,), and the sums, float64 (W, D).
    """
    residuals = descriptors[:, None] - centroids[words]
    return _sums(words.ravel(), residuals.reshape(-1, centroids.shape[1]))


def over_regions(
    regions: Sequence[tuple[np.ndarray, np.ndarray]], dimensions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Averages regions of an image, whatever their sizes: each has the same weight.

    Args:
      regions: (words, sums) of each, see `residual_sums`; those without features count.
      dimensions: D.

    Returns:
      (words, sums) of the image.

    Reference: Teichmann et al., 2019, R-VLAD: the sums of a region, all words together, are
    divided by their L2 norm.
    """
    sums = [sums / max(np.linalg.norm(sums), _LEAST_NORM) for _, sums in regions]
    words = np.concatenate([words for words, _ in regions])
    words, found = _sums(words, np.concatenate(sums).reshape(-1, dimensions))
    return words, found / len(regions)


def _sums(words: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words, ascending and once each, and the sums of their rows, float64."""
    order = np.argsort(words, kind="stable")
    present, starts = np.unique(words[order], return_index=True)
    if not len(present):
        return present.astype(np.int64), np.zeros((0, rows.shape[1]))
    return present.astype(np.int64), np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
