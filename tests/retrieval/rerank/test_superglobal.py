import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.retrieval.rerank.superglobal import refine, reorder
from dolg_tf.stage.config import InputError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def some(seed, count, size=8):
    """Rows around a common direction, as the best photos of a query are."""
    rng = np.random.default_rng(seed)
    return unit(rng.standard_normal((count, size)) + 2)


def _best(values, count):
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def _refined(rows, k, beta):
    refined = []
    for i, x in enumerate(rows):
        total, weight = x.astype(np.float64), 1.0
        others = [j for j in _best([float(x @ y) for y in rows], k + 1) if j != i]
        for j in others[:k]:
            total = total + beta * float(x @ rows[j]) * rows[j]
            weight += beta * float(x @ rows[j])
        refined.append(total / weight)
    return np.array(refined)


def _reordered(query, rows, k, beta):
    refined = _refined(rows, k, beta)
    scores = [float(query @ x) for x in refined]
    best = _best(scores, k + 1)
    largest = [max(refined[i][d] for i in best) for d in range(rows.shape[1])]
    final = [(scores[i] + float(refined[i] @ np.array(largest))) / 2 for i in range(len(rows))]
    first = _best(scores, len(rows))
    return sorted(range(len(rows)), key=lambda i: (-final[i], first.index(i)))


@pytest.mark.parametrize("beta", [0, 0.15, 1])
@pytest.mark.parametrize("k", [1, 3, 9, 50])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_equals_the_formula(count, k, beta):
    rows, query = some(0, count), some(1, 1)[0]
    np.testing.assert_allclose(refine(rows, k, beta), _refined(rows, k, beta), atol=1e-6)
    np.testing.assert_array_equal(
        reorder(query, rows, k, beta)[0], _reordered(query, rows, k, beta)
    )


def test_without_weight_nothing_is_refined():
    rows = some(2, 12)
    np.testing.assert_array_equal(refine(rows, 9, 0), rows)
    np.testing.assert_allclose(refine(np.repeat(rows[:1], 5, 0), 3, 0.15), rows[[0] * 5], atol=1e-6)


def test_neighbours_that_point_away_are_refused():
    x = some(3, 1)
    with pytest.raises(InputError, match="point away from it; use a smaller --rerank_beta"):
        refine(np.concatenate([x, -x]), 1, 1.0)


@settings(deadline=None, max_examples=25)
@given(
    seed=strategies.integers(0, 1000),
    count=strategies.integers(1, 20),
    copies=strategies.integers(1, 3),
    k=strategies.integers(1, 25),
)
def test_is_a_permutation_with_duplicates(seed, count, copies, k):
    rows = np.repeat(some(seed, count), copies, 0)
    order, _ = reorder(some(seed + 1, 1)[0], rows, k, 0.15)
    assert sorted(order) == list(range(len(rows)))
