"""Agreement of local features, against loops over all cells."""

import numpy as np
import pytest

from dolg_tf.apps.pictures import agreement as module
from dolg_tf.apps.pictures.agreement import agreement
from dolg_tf.stage.config import InputError


def _features(*shape, seed=0):
    """Unit vectors times an attention of many sizes."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*shape, 6))
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    return (x * rng.lognormal(0, 1, (*shape, 1))).astype(np.float32)


def _cells(features):
    return [(r, c) for r in range(features.shape[0]) for c in range(features.shape[1])]


def _oracle(a, b, most):
    """The formula, cell by cell, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norm = {"a": np.linalg.norm(a, axis=-1), "b": np.linalg.norm(b, axis=-1)}
    top = norm["a"].max() * norm["b"].max()
    score = {(i, j): a[i] @ b[j] / top for i in _cells(a) for j in _cells(b)}
    cosine = {
        (i, j): a[i] @ b[j] / (norm["a"][i] * norm["b"][j]) for i in _cells(a) for j in _cells(b)
    }
    best_a = [max(score[i, j] for j in _cells(b)) for i in _cells(a)]
    best_b = [max(score[i, j] for i in _cells(a)) for j in _cells(b)]
    pairs = []
    for i in _cells(a):
        j = max(_cells(b), key=lambda j: cosine[i, j])
        if max(_cells(a), key=lambda i: cosine[i, j]) == i and score[i, j] >= 0.02:
            pairs.append((score[i, j], i, j))
    taken = []
    for value, i, j in sorted(pairs, reverse=True):
        far = all(
            np.hypot(i[0] - k[0], i[1] - k[1]) >= max(a.shape[:2]) / 8
            and np.hypot(j[0] - m[0], j[1] - m[1]) >= max(b.shape[:2]) / 8
            for _, k, m in taken
        )
        if far and len(taken) < most:
            taken.append((value, i, j))
    return np.reshape(best_a, a.shape[:2]), np.reshape(best_b, b.shape[:2]), taken, len(pairs)


@pytest.mark.parametrize("block", [7, 1024])
def test_it_is_the_formula(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    a, b = _features(17, 9), _features(8, 20, seed=1)
    b[3:7, 5:15] = a[6:10, :9].repeat(2, axis=1)[:, :10] * 0.7  # something in common, and ties
    b[:, :, 0] += 1e-3 * np.arange(20)  # no ties any more
    found = agreement(a, b, most=5)
    best_a, best_b, pairs, mutual = _oracle(a, b, most=5)
    np.testing.assert_allclose(found.a, best_a, atol=1e-6)
    np.testing.assert_allclose(found.b, best_b, atol=1e-6)
    assert found.a.max() == pytest.approx(found.b.max())
    assert [(p.a, p.b) for p in found.pairs] == [(i, j) for _, i, j in pairs]
    np.testing.assert_allclose(
        [p.agreement for p in found.pairs], [v for v, *_ in pairs], atol=1e-6
    )
    assert mutual > len(pairs) == 5


def test_a_photo_agrees_with_itself_in_proportion_to_its_attention():
    a = _features(5, 6)
    found = agreement(a, a)
    norms = np.linalg.norm(a, axis=-1) / np.linalg.norm(a, axis=-1).max()
    assert (found.a >= norms**2 - 1e-6).all() and found.a.max() == pytest.approx(1)
    assert found.pairs and all(pair.a == pair.b for pair in found.pairs)
    assert found.pairs[0].agreement == pytest.approx(1)
    np.testing.assert_array_equal(found.a, found.b)


def test_pairs_keep_apart_in_both_photos():
    # Three cells on the left of a wide map and one far away, all with a direction of their own.
    a = np.zeros((1, 24, 4), np.float32)
    for place, direction in ((0, 0), (1, 1), (3, 2), (20, 3)):
        a[0, place, direction] = 1.0 - 0.1 * direction
    found = agreement(a, a)
    assert [pair.a[1] for pair in found.pairs] == [0, 3, 20]  # an eighth of 24 is 3
    b = a[:, ::-1].copy()
    b[0, 23], b[0, 1] = a[0, 0], a[0, 3]  # in b, the third is far from the first, and by the last
    b[0, 20] = 0
    places = [(pair.a[1], pair.b[1]) for pair in agreement(a, b).pairs]
    assert places == [(0, 23), (3, 1)]


def test_what_has_no_length_or_points_elsewhere_agrees_with_nothing():
    a, b = _features(2, 3), np.zeros((4, 2, 6), np.float32)
    found = agreement(a, b)
    assert not found.a.any() and not found.b.any() and found.pairs == ()
    opposite = agreement(a[:1, :1], -a[:1, :1])
    assert opposite.a[0, 0] == pytest.approx(-1) and opposite.pairs == ()


def test_features_that_cannot_be_compared():
    a = _features(2, 2)
    with pytest.raises(InputError, match=r"\(2, 2, 6\) and \(2, 2, 5\)"):
        agreement(a, a[..., :5])
    with pytest.raises(InputError, match=r"\(h, w, C\)"):
        agreement(a[0], a[0])
    a[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        agreement(a, a)
