import numpy as np
import pytest

from dolg_tf.apps.report import tsne


def _divergence(points, shares):
    """KL(shares || shares on the plane), by its definition."""
    near = np.array([[1 / (1 + np.sum((a - b) ** 2)) for b in points] for a in points])
    np.fill_diagonal(near, 0)
    pairs = shares > 0
    return float(np.sum(shares[pairs] * np.log(shares[pairs] / (near / near.sum())[pairs])))


def _rows(count=150):
    return np.random.default_rng(0).normal(size=(count, 6))


def test_the_gradient_is_that_of_the_divergence(monkeypatch):
    rows = _rows()
    monkeypatch.setattr(tsne, "_CELLS", 40 * len(rows))  # several blocks, the last one smaller
    shares = tsne.neighbour_shares(rows, 12).astype(np.float64)
    points = rows[:, :2].copy()
    found = tsne.gradient(points.astype(np.float32), shares.astype(np.float32))
    for row, axis in ((0, 0), (77, 1), (149, 0)):
        ends = []
        for step in (-1e-4, 1e-4):
            moved = points.copy()
            moved[row, axis] += step
            ends.append(_divergence(moved, shares))
        assert found[row, axis] == pytest.approx((ends[1] - ends[0]) / 2e-4, rel=1e-2, abs=1e-6)


@pytest.mark.parametrize("perplexity", [3.0, 12.0])
def test_each_row_counts_as_many_neighbours_as_asked(perplexity):
    rows = _rows(60)
    found = tsne.neighbour_shares(rows, perplexity)
    assert found.dtype == np.float32 and found.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(found, found.T)
    # Each row's Gaussian, by its definition, with a width found by trying.
    kept = int(3 * perplexity) + 1
    expected = np.zeros((60, 60))
    for own, row in enumerate(rows):
        distance = np.sum((rows - row) ** 2, axis=1)
        nearest = np.argsort(distance)[1 : kept + 1]
        widths = np.exp(np.linspace(-6, 6, 4001))
        weights = np.exp(-(distance[nearest] - distance[nearest].min()) / widths[:, None])
        weights /= weights.sum(axis=1, keepdims=True)
        entropy = -np.sum(weights * np.log(weights + 1e-300), axis=1)
        expected[own, nearest] = weights[np.argmin(np.abs(entropy - np.log(perplexity)))]
    np.testing.assert_allclose(found, (expected + expected.T) / 120, atol=2e-5)


def test_neighbours_stay_neighbours():
    """A closed curve through many dimensions comes out as a line whose neighbours are its own."""
    turn = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    rows = np.stack([wave(k * turn) for k in (1, 2, 3) for wave in (np.sin, np.cos)], axis=1)
    points = tsne.place(rows, 6)
    distance = np.sum((points[:, None] - points) ** 2, axis=-1)
    np.fill_diagonal(distance, np.inf)
    apart = np.abs(np.arange(90) - np.argmin(distance, axis=1))
    assert np.mean(np.minimum(apart, 90 - apart) <= 1) > 0.95


def test_rows_that_are_all_the_same_have_places():
    assert np.isfinite(tsne.place(np.ones((12, 4)), 3)).all()
