"""Whitenings learned from descriptors: unit((x - mean) @ projection).

References:
  PCA whitening: Jégou and Chum, "Negative evidences and co-occurrences in image retrieval", ECCV
  2012; its power: Mukundan et al., "Understanding and Improving Kernel Local Descriptors", IJCV
  2019.
  Supervised whitening: Mikolajczyk and Matas, "Improving descriptors for fast tree matching by
  optimal linear projection", ICCV 2007; Radenović et al., "CNN Image Retrieval Learns from BoW",
  ECCV 2016.
  Its shrinkage: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
  matrices", 2004.
Up to signs these are `pcawhitenlearn(X)` and `whitenlearn(X, qidxs, pidxs)` of
cnnimageretrieval-pytorch, with projection = P^T.
"""

import logging
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval.rows import blocks
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_BLOCK = 8192  # rows cast to float64 at a time: 32 MB at D 512
# A direction with at most this share of the largest variance has none: float16 rounds away a few
# times 1e-9, and batches move a descriptor by nearly as much.
_NO_VARIANCE = 1e-8
# Pair differences with less than this share of the largest variance come from too few pairs.
_SINGULAR = 1e-12
# Without any shrinkage, directions in which no group varies would be amplified without bound.
_LEAST = 1e-3
# Directions in which places differ most count for more, by this power of their deviation, where
# groups tell enough of what varies within a place: power is _TRUSTED less the shrinkage.
_TRUSTED, _MOST_POWER = 0.6, 0.5


def _decompose(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns eigenvalues, largest first, and eigenvectors as columns, with fixed signs."""
    values, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], 0)
    return values, vectors * np.where(largest < 0, -1, 1)


def mean(rows) -> np.ndarray:
    """Returns the mean (D,) of rows (N, D), float64, read in blocks."""
    total = np.zeros(rows.shape[1])
    for _, block in blocks(rows, _BLOCK):
        total += block.sum(axis=0, dtype=np.float64) / len(rows)
    return total


def _mean_and_scatter(rows) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean (D,) and the sum of (x - mean)(x - mean)^T (D, D) over rows, float64."""
    count, size = rows.shape
    centre, scatter = mean(rows), np.zeros((size, size))
    steps = progress.track(
        blocks(rows, _BLOCK), -(-count // _BLOCK), "whitening", f"blocks of {_BLOCK} rows"
    )
    for _, block in steps:
        centred = block - centre
        scatter += centred.T @ centred
    return centre, scatter


def _rank(values: np.ndarray, count: int, dimensions: int) -> int:
    """Returns the number of directions in which rows vary.

    Args:
      values: eigenvalues of their covariance, largest first.
      count: number of rows.
      dimensions: number of directions wanted; 0: all.

    Raises:
      InputError: when there are fewer, or none.
    """
    size = len(values)
    rank = int(np.count_nonzero(values > max(values[0], 0) * _NO_VARIANCE))
    if not rank or dimensions > rank:
        raise InputError(
            f"{count} descriptors of length {size} vary in {rank} directions, but "
            f"{dimensions or 'at least 1'} are needed; give more photos or fewer --dimensions"
        )
    if not dimensions and rank < size:
        told = "%d descriptors of length %d vary in %d directions: this is their whitened length"
        log.warning(told, count, size, rank)
    return rank


def pca(rows, dimensions: int = 0, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Learns PCA whitening.

    With eigenvalues v_i, largest first, and unit eigenvectors e_i of the covariance of N rows
    (divided by N), column i of the projection is v_i ** (-power / 2) * e_i.

    Args:
      rows: (N, D).
      dimensions: number of directions to keep, those of the largest variance; 0: all that have any.
      power: 0 to 1; 1 gives all directions equal variance, 0 keeps their variances.

    Returns:
      (mean, projection): float64 (D,) and (D, K).

    Raises:
      InputError: when the rows vary in fewer directions than wanted, or in none.
    """
    mean, scatter = _mean_and_scatter(rows)
    values, vectors = _decompose(scatter / max(len(rows), 1))
    rank = _rank(values, len(rows), dimensions)
    kept = dimensions or rank
    return mean, vectors[:, :kept] * values[:kept] ** (-power / 2)


def _differences(rows, queries: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means of queries (D,) and of d d^T over the differences d of pairs (D, D)."""
    size = rows.shape[1]
    mean, squares = np.zeros(size), np.zeros((size, size))
    for start in range(0, len(queries), _BLOCK):
        pairs = slice(start, start + _BLOCK)
        first = np.asarray(rows[queries[pairs]], np.float64)
        difference = first - rows[positives[pairs]]
        mean += first.sum(axis=0) / len(queries)
        squares += difference.T @ difference / len(queries)
    return mean, squares


def supervised(
    rows, queries: np.ndarray, positives: np.ndarray, dimensions: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Learns the whitening that evens out the differences between photos of the same landmark.

    The mean is that of the queries, once per pair. With the differences d of P pairs,
    S = sum of d d^T / P = L L^T (Cholesky). All rows are then transformed, L^-1 (x - mean), and
    rotated to their principal directions. Directions in which no row varies are removed first.

    Args:
      rows: (N, D); all of them determine the principal directions.
      queries: int (P,), rows.
      positives: int (P,), rows that show the same landmark as the query.
      dimensions: number of directions to keep; 0: all in which the rows vary.

    Returns:
      (mean, projection): float64 (D,) and (D, K).

    Raises:
      InputError: when the rows vary in fewer directions than wanted, or the pairs do not differ in
        all of these.
    """
    centre, scatter = _mean_and_scatter(rows)
    values, vectors = _decompose(scatter)
    rank = _rank(values, len(rows), dimensions)
    basis = vectors[:, :rank]  # (D, R)
    mean, squares = _differences(rows, queries, positives)
    within = basis.T @ squares @ basis
    found = _decompose(within)[0]
    spanned = int(np.count_nonzero(found > max(found[0], 0) * _SINGULAR))
    if spanned < rank:
        raise InputError(
            f"the differences of {len(queries)} pairs span {spanned} of the {rank} directions in "
            "which photos vary, and whitening would amplify the others without bound; give more "
            f"pairs, several times {rank}, or learn without pairs (PCA)"
        )
    whiten = np.linalg.inv(np.linalg.cholesky(within)) @ basis.T  # (R, D)
    # Around the mean of the queries, not of all rows.
    scatter += len(rows) * np.outer(centre - mean, centre - mean)
    _, turned = _decompose(whiten @ scatter @ whiten.T)
    return mean, (whiten.T @ turned)[:, : dimensions or rank]


def _residuals(rows, groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows of groups less the means of their groups, float64, in blocks."""
    order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
    for start in range(0, len(order), _BLOCK):
        # A group that straddles two blocks counts as two.
        part = order[start : start + _BLOCK]
        block = np.asarray(rows[part], np.float64)
        starts = np.flatnonzero(np.diff(groups[part], prepend=-1))
        counts = np.diff(starts, append=len(part))
        means = np.add.reduceat(block, starts, axis=0) / counts[:, None]
        yield block - np.repeat(means, counts, axis=0)


def _shrunk_within(rows, groups: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the covariance within groups, shrunk towards its mean variance, and by how much.

    With S of n residuals d and m the mean of its diagonal, (1 - s) S + s m I; s is the estimate of
    Ledoit and Wolf: the error of S, sum of |d d^T - S|^2 / n^2, over its distance |S - m I|^2.
    """
    count, size = np.count_nonzero(groups >= 0), rows.shape[1]
    within, fourth = np.zeros((size, size)), 0.0
    for block in _residuals(rows, groups):
        within += block.T @ block / count
        fourth += float(np.sum(np.einsum("nd,nd->n", block, block) ** 2))
    mean, squares = np.trace(within) / size, float(np.sum(within * within))
    error, distance = fourth / count**2 - squares / count, squares - size * mean * mean
    shrinkage = min(1.0, max(error / distance, _LEAST)) if distance > 0 else 1.0
    return (1 - shrinkage) * within + shrinkage * mean * np.eye(size), shrinkage


def within_groups(
    rows, groups: np.ndarray, dimensions: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Learns the whitening that evens out the differences within groups of photos.

    With C the covariance within groups, shrunk, all rows become C^-1/2 (x - mean) and are rotated
    to their principal directions, of which the first are kept, each times its deviation to a power
    of `_TRUSTED` less the shrinkage, 0 to `_MOST_POWER`.

    Args:
      rows: (N, D); all of them determine the mean and the principal directions.
      groups: int (N,); negative: in no group. One group at least has photos that differ.
      dimensions: number of directions to keep at most; fewer where the rows vary in fewer.

    Returns:
      (mean, projection, shrinkage): float64 (D,) and (D, K), and the share of the mean variance in
      C, 0 to 1.

    Raises:
      InputError: when the rows do not vary.
    """
    within, shrinkage = _shrunk_within(rows, groups)
    whiten = np.linalg.inv(np.linalg.cholesky(within)).T
    if len(rows) < len(whiten):  # (N, N) instead of (D, D)
        centre = mean(rows)
        whitened = (np.asarray(rows[:], np.float64) - centre) @ whiten
        values, sides = _decompose(whitened @ whitened.T)
        kept = min(dimensions, _rank(values, len(rows), 1))
        turned = whitened.T @ (sides[:, :kept] / np.sqrt(values[:kept]))
    else:
        centre, scatter = _mean_and_scatter(rows)
        values, turned = _decompose(whiten.T @ scatter @ whiten)
        kept = min(dimensions, _rank(values, len(rows), 1))
    power = min(max(_TRUSTED - shrinkage, 0.0), _MOST_POWER)
    deviations = np.sqrt(values[:kept] / values[0])
    return centre, whiten @ turned[:, :kept] * deviations**power, shrinkage
