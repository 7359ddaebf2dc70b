import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.retrieval.rerank.k_reciprocal import reorder


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def some(seed, count, size=8):
    return unit(np.random.default_rng(seed).standard_normal((count, size)) + 0.5)


def _distances(query, rows, k1, k2, original):
    """Final distances by the sets and sums of the paper, the query as item 0."""
    x = [row.astype(np.float64) for row in (query, *rows)]
    n = range(len(x))
    squared = [[float(np.sum((x[i] - x[j]) ** 2)) for j in n] for i in n]
    d = [[value / (max(row) or 1) for value in row] for row in squared]
    nearest = [sorted(n, key=lambda j, i=i: (j != i, squared[i][j], j)) for i in n]

    def mutual(i, k):  # equation 2, each photo being its own neighbour
        return {j for j in nearest[i][: k + 1] if i in nearest[j][: k + 1]}

    vectors = []
    for i in n:
        here = mutual(i, k1)
        members = set(here)
        for j in here:  # equation 3
            half = mutual(j, round(k1 / 2))
            if len(here & half) > 2 / 3 * len(half):
                members |= half
        weights = {j: math.exp(-d[i][j]) for j in members}  # equation 7
        total = sum(weights.values())
        vectors.append([weights.get(j, 0) / total for j in n])
    mean = [np.mean([vectors[j] for j in nearest[i][:k2]], axis=0) for i in n]  # equation 11
    final = []
    for j in n[1:]:
        least, most = np.minimum(mean[0], mean[j]).sum(), np.maximum(mean[0], mean[j]).sum()
        final.append((1 - original) * (1 - least / most) + original * d[0][j])  # equations 10, 12
    return final


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (5, 1), (7, 3), (1, 1), (100, 100)])
@pytest.mark.parametrize(("count", "copies"), [(1, 1), (2, 1), (40, 1), (9, 4)])
def test_equals_the_paper(count, copies, k1, k2):
    for seed in range(2):
        rows, query = np.tile(some(seed, count), (copies, 1)), some(seed + 10, 1)[0]
        for original in (0.3, 1.0):
            expected = _distances(query, rows, k1, k2, original)
            expected = np.argsort(np.round(expected, 7), kind="stable")
            np.testing.assert_array_equal(reorder(query, rows, k1, k2, original)[0], expected)


@pytest.mark.parametrize("seed", [2, 7])
def test_copies_are_equally_far(seed):
    # Of these, sums differ between copies in the last digit.
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.tile(unit(rng.standard_normal((25, 100)) + 0.5), (4, 1)))
    query = unit(rng.standard_normal(100) + 0.5)
    expected = np.argsort(np.round(_distances(query, rows, 5, 6, 0.3), 7), kind="stable")
    np.testing.assert_array_equal(reorder(query, rows, 5, 6, 0.3)[0], expected)


def test_the_original_distance_alone_keeps_the_order():
    rows, query = some(1, 30), some(2, 1)[0]
    rows = rows[np.argsort(-(rows @ query))]
    np.testing.assert_array_equal(reorder(query, rows, 20, 6, 1.0)[0], np.arange(30))


def test_equal_photos_stay_in_order():
    rows = np.repeat(some(3, 1), 12, 0)
    for query in (rows[0], some(4, 1)[0]):
        np.testing.assert_array_equal(reorder(query, rows, 20, 6, 0.3)[0], np.arange(12))


@settings(deadline=None, max_examples=25)
@given(
    seed=strategies.integers(0, 1000),
    count=strategies.integers(1, 15),
    copies=strategies.integers(1, 3),
    k1=strategies.integers(1, 25),
)
def test_is_a_permutation_with_duplicates(seed, count, copies, k1):
    rows = np.repeat(some(seed, count), copies, 0)
    order, _ = reorder(some(seed + 1, 1)[0], rows, k1, 6, 0.3)
    assert sorted(order) == list(range(len(rows)))
