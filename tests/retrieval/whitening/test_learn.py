import numpy as np
import pytest

from dolg_tf.retrieval.rows import Rows
from dolg_tf.retrieval.whitening import learn
from dolg_tf.retrieval.whitening.learn import pca, supervised
from dolg_tf.stage.config import InputError

SIZE = 6


def _rows(seed, count, size=SIZE):
    """Unit rows that vary differently in each direction."""
    rng = np.random.default_rng(seed)
    rows = (
        rng.standard_normal((count, size)) * np.arange(1, size + 1) @ rng.normal(size=(size,) * 2)
    )
    rows += rng.normal(size=size)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _covariance(rows, mean):
    total = np.zeros((rows.shape[1],) * 2)
    for row in rows:
        total += np.outer(row - mean, row - mean)
    return total


def _pca_oracle(rows, power):
    """As pcawhitenlearn: P = diag(eigenvalues) ** (-power / 2) @ eigenvectors^T, one row each."""
    rows = rows.astype(np.float64)
    mean = sum(rows) / len(rows)
    values, vectors = np.linalg.eig(_covariance(rows, mean) / len(rows))
    order = np.argsort(values)[::-1]
    return mean, np.array([values[i] ** (-power / 2) * vectors[:, i] for i in order])


def _supervised_oracle(rows, queries, positives):
    """As whitenlearn."""
    rows = rows.astype(np.float64)
    mean = sum(rows[q] for q in queries) / len(queries)
    differences = [rows[q] - rows[p] for q, p in zip(queries, positives, strict=True)]
    within = sum(np.outer(d, d) for d in differences) / len(differences)
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    values, vectors = np.linalg.eig(_covariance((whiten @ rows.T).T, whiten @ mean))
    return mean, vectors[:, np.argsort(values)[::-1]].T @ whiten


def _same_up_to_signs(projection, expected):
    for column, row in zip(projection.T, expected, strict=True):
        np.testing.assert_allclose(column * np.sign(column @ row), row, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=[3, 8192])
def block(request, monkeypatch):
    monkeypatch.setattr(learn, "_BLOCK", request.param)


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("dimensions", [0, 2, SIZE])
def test_pca_equals_the_formula(block, power, dimensions):
    rows = _rows(0, 50)
    mean, projection = pca(Rows([rows[:20], rows[20:]]), dimensions, power)
    expected_mean, expected = _pca_oracle(rows, power)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-12)
    assert projection.shape == (SIZE, dimensions or SIZE)
    _same_up_to_signs(projection, expected[: dimensions or SIZE])


def test_pca_whitens():
    rows = _rows(1, 200)
    mean, projection = pca(rows)
    covariance = np.cov((rows - mean) @ projection, rowvar=False, ddof=0)
    np.testing.assert_allclose(covariance, np.eye(SIZE), atol=1e-10)
    # What is white already is only turned.
    again = pca(((rows - mean) @ projection).astype(np.float32))[1]
    np.testing.assert_allclose(again.T @ again, np.eye(SIZE), atol=1e-5)


@pytest.mark.parametrize("dimensions", [0, 2, SIZE])
def test_supervised_equals_the_formula(block, dimensions):
    rows, rng = _rows(2, 50), np.random.default_rng(3)
    queries, positives = rng.permuted(np.tile(np.arange(50), (40, 1)), axis=1)[:, :2].T
    mean, projection = supervised(Rows([rows[:20], rows[20:]]), queries, positives, dimensions)
    expected_mean, expected = _supervised_oracle(rows, queries, positives)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-12)
    assert projection.shape == (SIZE, dimensions or SIZE)
    _same_up_to_signs(projection, expected[: dimensions or SIZE])


def test_signs_are_fixed():
    rows = _rows(4, 30)
    projection = pca(rows)[1]
    assert (projection.max(axis=0) == np.abs(projection).max(axis=0)).all()
    np.testing.assert_allclose(pca(rows[::-1])[1], projection, atol=1e-6)


@pytest.mark.parametrize("kind", ["f4", "f2"])
def test_fewer_photos_than_numbers(kind, caplog):
    rows = _rows(5, 4).astype(kind)
    mean, projection = pca(rows)
    assert projection.shape == (SIZE, 3) and "vary in 3 directions" in caplog.text
    whitened = (rows - mean) @ projection
    np.testing.assert_allclose(whitened.T @ whitened / 4, np.eye(3), atol=1e-5)
    assert pca(rows, 2)[1].shape == (SIZE, 2)
    with pytest.raises(
        InputError, match="4 descriptors of length 6 vary in 3 directions, but 4 are"
    ):
        pca(rows, 4)


def test_rounding_is_no_direction():
    # Three directions, stored as float16: the rest is what was rounded away.
    basis = np.linalg.qr(np.random.default_rng(6).normal(size=(64, 64)))[0][:3]
    rows = np.random.default_rng(7).normal(size=(500, 3)) @ basis
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert pca(rows.astype(np.float16))[1].shape == (64, 3)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_what_does_not_vary_is_refused(count):
    with pytest.raises(InputError, match="vary in 0 directions, but at least 1 are needed"):
        pca(np.repeat(_rows(8, 1), count, 0))


def test_too_few_pairs_are_refused():
    rows, numbers = _rows(9, 50), np.arange(5)
    with pytest.raises(InputError, match=r"5 pairs span 5 of the 6 directions.*give more pairs"):
        supervised(rows, numbers, numbers + 1)
    copies = np.repeat(rows, 2, 0)
    with pytest.raises(InputError, match="50 pairs span 0 of the 6"):
        supervised(copies, np.arange(0, 100, 2), np.arange(1, 100, 2))
    with pytest.raises(InputError, match="vary in 6 directions, but 7 are needed"):
        supervised(rows, numbers, numbers + 1, 7)


def test_supervised_leaves_out_where_nothing_varies(caplog):
    rows, turn = _rows(10, 50), np.linalg.qr(np.random.default_rng(11).normal(size=(9, 9)))[0]
    queries, positives = np.arange(49), np.arange(1, 50)
    wide = rows.astype(np.float64) @ turn[:SIZE]  # (50, 9), in 6 directions
    mean, projection = supervised(wide, queries, positives)
    expected_mean, expected = supervised(rows, queries, positives)
    assert "50 descriptors of length 9 vary in 6 directions" in caplog.text
    found = (wide - mean) @ projection
    expected = (rows - expected_mean) @ expected
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-3, atol=1e-3)


def test_whitening_within_groups_is_the_naive_one(monkeypatch):
    monkeypatch.setattr(learn, "_BLOCK", 7)  # groups of 7 rows: no block cuts one
    rows, groups = _rows(3, 60), np.full(60, -1)
    groups[np.random.default_rng(0).permutation(60)[:49]] = np.repeat(np.arange(7), 7)
    mean, projection, shrinkage = learn.within_groups(rows, groups, SIZE)
    residuals = []
    for group in range(7):
        some = rows[groups == group].astype(np.float64)
        residuals += [row - sum(some) / 7 for row in some]
    squares = [np.outer(row, row) for row in residuals]
    within = sum(squares) / 49
    target = np.trace(within) / SIZE * np.eye(SIZE)
    error = sum(np.sum((square - within) ** 2) for square in squares) / 49**2
    assert shrinkage == pytest.approx(error / np.sum((within - target) ** 2))
    assert 0.01 < shrinkage < 0.9
    shrunk = (1 - shrinkage) * within + shrinkage * target
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    whitened = projection.T @ shrunk @ projection
    scales = np.sqrt(np.diag(whitened))
    np.testing.assert_allclose(whitened, np.diag(scales**2), atol=1e-8)
    spread = projection.T @ _covariance(rows, mean) @ projection
    np.testing.assert_allclose(spread, np.diag(np.diag(spread)), atol=1e-6)
    variances = np.diag(spread) / scales**2  # of whitened directions, before they are weighted
    assert (np.diff(variances) < 0).all() and shrinkage < 0.6
    expected = np.sqrt(variances / variances[0]) ** min(0.6 - shrinkage, 0.5)
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert learn.within_groups(rows, groups, 2)[1].shape == (SIZE, 2)


def test_few_photos_give_as_many_directions_as_they_vary_in():
    rows = _rows(5, 5)
    _, projection, _ = learn.within_groups(rows, np.array([0, 0, 0, 1, 1]), SIZE)
    assert projection.shape == (SIZE, 4) and np.isfinite(projection).all()


def test_fewer_photos_than_numbers_are_whitened_alike():
    rows, groups = _rows(6, 9, 40), np.repeat([0, 1, 2], 3)
    _, projection, _ = learn.within_groups(rows, groups, 40)
    repeated = np.tile(rows, (5, 1))  # as many as numbers, of the same moments
    _, expected, _ = learn.within_groups(repeated, np.r_[groups, np.full(36, -1)], 8)
    _same_up_to_signs(projection, expected.T)
