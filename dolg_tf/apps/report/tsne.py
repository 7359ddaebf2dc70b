"""t-SNE of a few thousand rows, exact, in NumPy.

Not scikit-learn's: Keras imports scikit-learn wherever it is installed, which would cost every
command a second and 57 MB for one figure.
"""

import numpy as np

_STEPS = 1000
_EARLY, _EXAGGERATION = 250, 12  # steps in which neighbours attract one another so much more
# Cells of the (N, N) matrix at a time. OpenBLAS shares products of more than four times as many
# among threads, which wait for one another in each step: eight times as long on a busy machine.
_CELLS = 2**16


def principal_components(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns the first principal components of rows, (N, count)."""
    left, spread, _ = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    return left[:, :count] * spread[:count]


def place(rows: np.ndarray, perplexity: float) -> np.ndarray:
    """Returns places of rows on a plane where neighbours lie near one another.

    Args:
      rows: float (N, D).
      perplexity: how many neighbours count, below N / 3.

    Returns:
      float32 (N, 2), without unit; nothing in it is random.

    Reference: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008; rate and start as
    Belkina et al., 2019, and Kobak and Linderman, 2021, advise.
    """
    start = principal_components(np.pad(rows, ((0, 0), (0, 2))), 2)  # rows may have one number
    points = (1e-4 * start / (start[:, 0].std() or 1)).astype(np.float32)
    shares = neighbour_shares(rows, perplexity)
    rate = max(len(rows) / _EXAGGERATION / 4, 50)
    move, gains = np.zeros_like(points), np.ones_like(points)
    shares *= _EXAGGERATION
    for step in range(_STEPS):
        if step == _EARLY:
            shares /= _EXAGGERATION
        slope = gradient(points, shares)
        gains = np.maximum(np.where(move * slope < 0, gains + 0.2, gains * 0.8), 0.01)
        move = (0.5 if step < _EARLY else 0.8) * move - rate * gains * slope
        points += move
    return points


def neighbour_shares(rows: np.ndarray, perplexity: float) -> np.ndarray:
    """Returns how much each pair of rows belongs together: float32 (N, N), its sum 1.

    Each row's Gaussian is as wide as gives the perplexity over its 3 x perplexity nearest.
    """
    count, square = len(rows), np.sum(rows**2, axis=1)
    distance = square[:, None] + square - 2 * rows @ rows.T
    np.fill_diagonal(distance, np.inf)
    kept = min(count - 1, int(3 * perplexity) + 1)
    nearest = np.argpartition(distance, kept - 1, axis=1)[:, :kept]
    distance = np.take_along_axis(distance, nearest, axis=1)
    distance -= distance.min(axis=1, keepdims=True)
    # Bisection of 1 / (2 sigma^2); without an upper end it is doubled.
    low, high, own = np.zeros((count, 1)), np.full((count, 1), np.inf), np.ones((count, 1))
    for _ in range(64):
        weights = np.exp(-own * distance)
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -np.sum(weights * np.log(np.maximum(weights, 1e-300)), axis=1, keepdims=True)
        wide = entropy > np.log(perplexity)
        low, high = np.where(wide, own, low), np.where(wide, high, own)
        own = np.where(np.isinf(high), 2 * own, (low + high) / 2)
    shares = np.zeros((count, count), np.float32)
    np.put_along_axis(shares, nearest, weights / (2 * count), axis=1)
    return shares + shares.T


def gradient(points: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Returns the gradient of the divergence KL(shares || those on the plane), (N, 2).

    Args:
      points: float32 (N, 2).
      shares: see `neighbour_shares`, perhaps exaggerated.
    """
    ones, square = np.ones_like(points[:, :1]), np.sum(points**2, axis=1, keepdims=True)
    left = np.concatenate([points, square, ones], axis=1)
    right = np.concatenate([-2 * points, ones, square + 1], axis=1).T.copy()
    targets = np.concatenate([points, ones], axis=1)
    pull, push = np.empty_like(targets), np.empty_like(targets)
    total = -len(points)  # of all pairs; a point and itself are none
    size = max(1, _CELLS // len(points))
    for start in range(0, len(points), size):
        part = slice(start, start + size)
        near = np.reciprocal(left[part] @ right)  # 1 / (1 + distance^2)
        total += near.sum(dtype=np.float64)
        pull[part] = (shares[part] * near) @ targets
        push[part] = (near * near) @ targets
    forces = pull - push / np.float32(total)
    return 4 * (forces[:, 2:] * points - forces[:, :2])
