import numpy as np
import pytest

from dolg_tf.config import InputError
from dolg_tf.retrieval.search import search


def _oracle(index, queries, k):
    """Sorts (-score, row) pairs of integers, which have exact products and many ties."""
    scores, ranks = [], []
    for query in queries:
        pairs = sorted((-int(np.dot(query, row)), i) for i, row in enumerate(index))[:k]
        scores.append([-score for score, _ in pairs])
        ranks.append([row for _, row in pairs])
    return np.array(scores), np.array(ranks)


@pytest.mark.parametrize("k", [None, 1, 7, 60, 1000])
@pytest.mark.parametrize("block", [1, 9, 64, 1000])
def test_equals_sorting_with_ties(k, block):
    rng = np.random.default_rng(0)
    index = rng.integers(-1, 2, (60, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (5, 4)).astype(np.float32)
    scores, ranks = search(index, queries, k, block)
    expected_scores, expected_ranks = _oracle(index, queries, k)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.dtype == np.float32 and ranks.dtype == np.int64


def test_memory_mapped_half_precision(tmp_path):
    index = np.eye(3, 4, dtype=np.float16)
    np.save(tmp_path / "index.npy", index)
    _, ranks = search(np.load(tmp_path / "index.npy", mmap_mode="r"), np.eye(3, 4)[::-1])
    assert list(ranks[:, 0]) == [2, 1, 0]


def test_refuses():
    with pytest.raises(InputError, match="one D"):
        search(np.zeros((3, 4)), np.zeros((2, 5)))
    with pytest.raises(InputError, match="k is 0"):
        search(np.zeros((3, 4)), np.zeros((2, 4)), 0)
    with pytest.raises(InputError, match="no descriptors"):
        search(np.zeros((0, 4)), np.zeros((2, 4)))
