import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.retrieval.rerank import expansion
from dolg_tf.retrieval.rerank.expansion import alpha_dba, alpha_qe
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def some(seed, count, size=6):
    return unit(np.random.default_rng(seed).standard_normal((count, size)))


def _weight(score, alpha):
    return 1.0 if alpha == 0 else max(score, 0.0) ** alpha


def _mean_with_best(x, others, k, alpha):
    """One row at a time, sorted by (-score, row)."""
    best = sorted(range(len(others)), key=lambda row: (-float(x @ others[row]), row))[:k]
    total = x.astype(np.float64)
    for row in best:
        total = total + _weight(float(x @ others[row]), alpha) * others[row]
    return total / np.linalg.norm(total)


@pytest.mark.parametrize("alpha", [0, 1, 3, 0.5])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_alpha_qe_equals_the_formula(k, alpha):
    queries, index = some(0, 5), some(1, 20)
    expected = [_mean_with_best(query, index, k, alpha) for query in queries]
    np.testing.assert_allclose(alpha_qe(queries, index, k, alpha), expected, atol=1e-6)
    np.testing.assert_allclose(alpha_qe(queries[:1], index, k, alpha), expected[:1], atol=1e-6)


@pytest.mark.parametrize("alpha", [0, 3])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_alpha_dba_equals_the_formula(monkeypatch, k, alpha):
    index = some(2, 20)
    expected = [_mean_with_best(x, np.delete(index, i, 0), k, alpha) for i, x in enumerate(index)]
    found = alpha_dba(index, k, alpha)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    monkeypatch.setattr(expansion, "_BLOCK", 7)
    in_parts = alpha_dba(Rows([index[:3], index[3:].astype(np.float32)]), k, alpha)
    np.testing.assert_allclose(in_parts, expected, atol=1e-6)
    assert in_parts.shape == (20, 6) and in_parts[2:5].dtype == np.float32


def test_alpha_dba_leaves_out_the_photo_itself():
    # Half precision rounds norms: row 0 is not among its own 3 best, and still weighs once.
    near = 1.008 * unit(some(3, 1) + 0.03 * some(4, 5))
    index = np.concatenate([some(3, 1), near, some(5, 5)])
    assert (index[1:6] @ index[0] > 1).all()
    expected = [_mean_with_best(x, np.delete(index, i, 0), 2, 3) for i, x in enumerate(index)]
    np.testing.assert_allclose(alpha_dba(index, 2, 3), expected, atol=1e-6)


def test_the_index_stays_as_it_was_and_the_copy_is_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(expansion.tempfile, "tempdir", str(tmp_path))
    np.save(tmp_path / "index.npy", some(5, 12).astype(np.float16))
    index = np.load(tmp_path / "index.npy", mmap_mode="r")
    augmented = alpha_dba(Rows([index]), 3, 3)
    assert isinstance(augmented.arrays[0], np.memmap)
    assert [path.name for path in tmp_path.iterdir()] == ["index.npy"]
    np.testing.assert_array_equal(index, some(5, 12).astype(np.float16))


def test_no_room_is_one_sentence(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(expansion.os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"No space left.*set TMPDIR"):
        alpha_dba(some(6, 4), 2, 3)


def test_what_cancels_out_is_refused():
    x = some(7, 1)
    with pytest.raises(InputError, match="descriptor 0 and its neighbours cancel out"):
        alpha_qe(x, -x, 1, 0)
    with pytest.raises(InputError, match="cancel out"):
        alpha_dba(np.concatenate([x, -x]), 1, 0)
    np.testing.assert_allclose(alpha_qe(x, -x, 1, 3), x, atol=1e-7)


@settings(deadline=None, max_examples=25)
@given(
    seed=strategies.integers(0, 1000),
    count=strategies.integers(1, 12),
    copies=strategies.integers(1, 3),
    k=strategies.integers(1, 15),
)
def test_norms_are_one_and_copies_stay_copies(seed, count, copies, k):
    index = np.repeat(some(seed, count, 4), copies, 0)
    for rows in (alpha_qe(index, index, k, 3), np.asarray(alpha_dba(index, k, 3))):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    # A descriptor whose neighbours are all itself stays where it is.
    alone = np.repeat(some(seed, 1, 4), copies + 1, 0)
    np.testing.assert_allclose(alpha_dba(alone, k, 3), alone, atol=1e-6)
    np.testing.assert_allclose(alpha_qe(alone, alone, k, 0), alone, atol=1e-6)
