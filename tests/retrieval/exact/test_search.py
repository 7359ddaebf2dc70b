import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dolg_tf.retrieval.exact import products
from dolg_tf.retrieval.exact import search as module
from dolg_tf.retrieval.exact.search import inner_products, search
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError


def _oracle(index, queries, k):
    """Sorts (-score, row) pairs of integers, which have exact products and many ties."""
    scores, ranks = [], []
    for query in queries:
        pairs = sorted((-int(np.dot(query, row)), i) for i, row in enumerate(index))[:k]
        scores.append([-score for score, _ in pairs])
        ranks.append([row for _, row in pairs])
    return np.array(scores), np.array(ranks)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    queries=st.integers(1, 5),
    width=st.integers(1, 5),
    k=st.one_of(st.none(), st.integers(1, 50)),
    block=st.integers(1, 50),
)
def test_equals_sorting_with_ties(seed, rows, queries, width, k, block):
    rng = np.random.default_rng(seed)
    index = rng.integers(-1, 2, (rows, width)).astype(np.float32)
    queries = rng.integers(-1, 2, (queries, width)).astype(np.float32)
    scores, ranks = search(index, queries, k, block)
    expected_scores, expected_ranks = _oracle(index, queries, k)
    np.testing.assert_array_equal(ranks, expected_ranks)
    np.testing.assert_array_equal(scores, expected_scores)
    assert scores.dtype == np.float32 and ranks.dtype == np.int64


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 511])
def test_a_score_is_the_inner_product_rounded_once(width):
    rng = np.random.default_rng(width)
    a, b = rng.standard_normal((2, 30, width)).astype(np.float32)
    exact = [
        math.fsum(x * y for x, y in zip(*pair, strict=True))
        for pair in zip(a.astype(float).tolist(), b.astype(float).tolist(), strict=True)
    ]
    np.testing.assert_array_equal(inner_products(a, b), np.float32(exact))
    np.testing.assert_array_equal(
        inner_products(a[0], b), [inner_products(a[:1], b[i : i + 1])[0] for i in range(30)]
    )


@pytest.fixture(scope="module")
def near():
    """Rows that a float32 matrix product cannot tell apart, each there three times."""
    rng = np.random.default_rng(3)
    rows = rng.standard_normal(256) + 1e-6 * rng.standard_normal((200, 256))
    rows = np.repeat(rows / np.linalg.norm(rows, axis=1, keepdims=True), 3, axis=0)
    return rng.permutation(rows.astype(np.float32)), rows[:12].astype(np.float32)


@pytest.mark.parametrize("block", [1, 7, 100, 599, 5000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_no_block_changes_a_ranking_or_a_score(near, k, block):
    index, queries = near
    exact = np.stack([inner_products(query, index) for query in queries])
    expected = np.lexsort((np.arange(600)[None].repeat(12, 0), -exact))[:, :k]
    scores, ranks = search(index, queries, k, block)
    np.testing.assert_array_equal(ranks, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact, expected, 1))
    np.testing.assert_array_equal(search(index, queries)[1][:, :k], expected)
    np.testing.assert_array_equal(search(index, queries[4:5], k, block)[1], expected[4:5])


def test_the_rough_products_do_misrank_them(near):
    index, queries = near
    rough = np.argsort(-(queries @ index.T), axis=1, kind="stable")[:, :100]
    assert (rough != search(index, queries, 100)[1]).any()


def test_many_queries_go_in_turn(near, monkeypatch):
    index, queries = near
    expected = search(index, queries, 5)
    monkeypatch.setattr(module, "_QUERIES", 5)
    for found, value in zip(search(index, queries, 5), expected, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("row", [0, 30000, 79999])
@pytest.mark.parametrize(("more", "is_more"), [(2**-21, True), (2**-22, False)])
def test_a_collapsed_network_is_ranked_too(row, more, is_more):
    """2**-21 is the spacing of float32 at 4, half of it is rounded away."""
    index = np.ones((80000, 4), np.float32)
    index[row, 2] += more
    scores, ranks = search(Rows([index[:50000], index[50000:]]), np.ones((2, 4)), 3)
    expected = ([row] if is_more else []) + [i for i in range(4) if not is_more or i != row]
    np.testing.assert_array_equal(ranks, [expected[:3]] * 2)
    np.testing.assert_array_equal(scores, [[4 + 2**-21 * is_more, 4, 4]] * 2)


def _on_disk(path, rows, head=45):
    """Writes rows behind a header, which leaves them unaligned unless it is of 4 n bytes."""
    path.write_bytes(bytes(head) + rows.tobytes())
    return np.memmap(path, rows.dtype, "r", head, rows.shape)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Unaligned, half and in memory, with many ties; 2,999 rows, of an odd width."""
    folder, rng = tmp_path_factory.mktemp("stored"), np.random.default_rng(8)
    rows = rng.integers(-2, 3, (2999, 37)).astype(np.float32) / 8
    rows[2000:2100] = rows[100:200]
    halves = _on_disk(folder / "b", rows[1000:1501].astype(np.float16), 1)
    return Rows([_on_disk(folder / "a", rows[:1000]), halves, rows[1501:]]), rows


@pytest.mark.parametrize("matrix", [1, 100, 8192])
@pytest.mark.parametrize("piece", [1, 1000, 2**18])
@pytest.mark.parametrize("spans", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 33])
def test_no_way_of_multiplying_changes_a_ranking(stored, monkeypatch, matrix, piece, spans, count):
    for name, value in (("_MATRIX", matrix), ("_PIECE", piece), ("_SPANS", spans)):
        monkeypatch.setattr(products, name, value)
    index, rows = stored
    queries = rows[95 : 95 + count]
    exact = np.stack([inner_products(query, rows) for query in queries])
    expected = np.lexsort((np.arange(2999)[None].repeat(count, 0), -exact))
    for k in (1, 4, 700):
        scores, found = search(index, queries, k)
        np.testing.assert_array_equal(found, expected[:, :k])
        np.testing.assert_array_equal(scores, np.take_along_axis(exact, expected[:, :k], 1))


@pytest.mark.parametrize("count", [1, 40])
def test_the_first_search_measures_the_rows(stored, count):
    index = Rows([stored[0]])
    assert index.longest is None
    first = search(index, stored[1][:count], 3)
    np.testing.assert_allclose(index.longest, np.linalg.norm(stored[1], axis=1).max(), rtol=1e-6)
    for found, value in zip(search(index, stored[1][:count], 3), first, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("count", [1, 40])
def test_the_first_damaged_row_is_named(count):
    rows = np.ones((4000, 8), np.float32)
    rows[[3003, 1700, 3999], 5] = np.nan, np.inf, 3e38
    index = Rows([rows])
    for _ in range(2):  # a search that failed leaves nothing behind
        with pytest.raises(InputError, match="row 1700 of the index"):
            search(index, np.ones((count, 8)), 3)


def test_one_query_holds_no_copy_of_the_index(tmp_path):
    rows = np.random.default_rng(1).standard_normal((50000, 256), np.float32)
    index = Rows([_on_disk(tmp_path / "rows", rows)])
    tracemalloc.start()
    search(index, rows[:1], 10)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < rows.nbytes / 4


def test_memory_mapped_half_precision(tmp_path):
    index = np.eye(3, 4, dtype=np.float16)
    np.save(tmp_path / "index.npy", index)
    _, ranks = search(np.load(tmp_path / "index.npy", mmap_mode="r"), np.eye(3, 4)[::-1])
    assert list(ranks[:, 0]) == [2, 1, 0]


def test_no_queries():
    scores, ranks = search(np.ones((5, 2), np.float32), np.zeros((0, 2)), 3)
    assert scores.shape == ranks.shape == (0, 3)


@pytest.mark.parametrize("k", [None, 1])
def test_refuses(k):
    with pytest.raises(InputError, match="with the same D"):
        search(np.zeros((3, 4)), np.zeros((2, 5)), k)
    with pytest.raises(InputError, match="k is 0"):
        search(np.zeros((3, 4)), np.zeros((2, 4)), 0)
    with pytest.raises(InputError, match="no descriptors"):
        search(np.zeros((0, 4)), np.zeros((2, 4)), k)
    for wrong in (np.nan, np.inf, 1e30):
        rows = np.zeros((5, 4), np.float32)
        rows[3, 1] = wrong
        with pytest.raises(InputError, match="row 3 of the index"):
            search(rows, np.zeros((2, 4)), k, 2)
        with pytest.raises(InputError, match="row 3 of the queries"):
            search(np.zeros((5, 4)), rows, k)
