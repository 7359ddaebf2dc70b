"""Search inside a graph gives the scores and the order of `retrieval.exact.search`."""

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.retrieval.exact.search import search
from dolg_tf.serving.graph import nearest


def _unit(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _search(rows, k):
    variable = tf.Variable(rows)
    longest = float(np.linalg.norm(rows.astype(np.float32), axis=1).max())

    @tf.function(input_signature=[tf.TensorSpec([None, rows.shape[1]])], autograph=False)
    def found(queries):
        return nearest.nearest(variable, longest, queries, k)

    return found


def _check(found, rows, queries, k):
    scores, places = found(queries)
    expected = search(rows.astype(np.float32), queries, k)
    np.testing.assert_array_equal(scores, expected.scores)
    np.testing.assert_array_equal(places, expected.rows)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_and_order_are_those_of_exact_search(dtype, monkeypatch):
    monkeypatch.setattr(nearest, "_BLOCK", 1024)
    monkeypatch.setattr(nearest, "_SCORED", 100)  # fewer than there are candidates
    rows = _unit(3000, 33).astype(dtype)  # more than one group, and no power of two
    rows[100:400] = rows[5]  # equal scores, more than are asked for
    queries = np.concatenate([_unit(68, 33, seed=1), rows[5:7].astype(np.float32)])
    found = _search(rows, 10)
    _check(found, rows, queries, 10)  # in three parts
    _check(found, rows, queries[-1:], 10)
    assert found(queries[:0])[0].shape == (0, 10)


def test_all_of_a_few_rows_are_ranked():
    rows = _unit(7, 16)
    _check(_search(rows, 7), rows, _unit(3, 16, seed=1), 7)


def test_rows_that_are_all_alike_keep_their_order():
    rows = np.repeat(_unit(1, 8), 500, axis=0)
    _check(_search(rows, 5), rows, rows[:2], 5)
