"""HOW's whitening, which is learned from local features before the training and then kept."""

import numpy as np

_LEAST = 1e-14  # of the variances, as in the authors' code


class Moments:
    """Sums over features, from which mean and covariance follow.

    Args:
      size: numbers of a feature.
    """

    def __init__(self, size: int):
        self.count = 0
        self._sum = np.zeros(size)
        self._products = np.zeros((size, size))

    def add(self, rows: np.ndarray) -> None:
        """Adds features (n, size)."""
        rows = np.asarray(rows, np.float64)
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def whitening(self, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns kernel (size, dimensions) and bias (dimensions,) of the whitening, float64.

        Features become uncorrelated, with variance 1; those of the largest variance come first. The
        sign of each is free.

        Reference: `learn_pca` and `ConvDimReduction` of HOW's code.
        """
        mean = self._sum / self.count
        covariance = self._products / self.count - np.outer(mean, mean)
        variances, vectors = np.linalg.eigh(covariance)
        kept = np.argsort(-variances, kind="stable")[:dimensions]
        kernel = vectors[:, kept] / np.sqrt(np.maximum(variances[kept], _LEAST))
        return kernel, -mean @ kernel
