"""The benchmark of geometric verification: halves, sums and the best order, on drawn counts."""

import geometric as benchmark
import numpy as np

from dolg_tf.retrieval.rerank.reranked import Reranked


class _Counts:
    """Inliers that tell the right photos, of every fourth query alone."""

    def __init__(self, same):
        self._same = same

    def of(self, rows):
        return [50 * self._same[query, some] * (query % 4 == 0) for query, some in enumerate(rows)]


def _drawn(queries=8, photos=30, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((queries + photos, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same = rng.random((queries, photos)) < 0.2
    same[:, 0] = True
    return Reranked(rows[:queries], rows[queries:]), same


def test_scores_are_of_the_whole_ranking():
    before, same = _drawn()
    similarities = before.queries @ before.index.T
    expected = benchmark.score_queries(similarities, same)
    assert benchmark.scores_of(before, same)["AP"].tolist() == expected["AP"]
    head = np.argsort(similarities, axis=1)[:, :5]  # the worst come first
    found = benchmark.scores_of(Reranked(before.queries, before.index, head), same)
    np.put_along_axis(similarities, head, np.arange(10.0, 5.0, -1)[None], 1)
    assert found["AP"].tolist() == benchmark.score_queries(similarities, same)["AP"]


def test_a_weight_is_chosen_by_the_other_half():
    before, same = _drawn()
    mixed, (even, odd) = benchmark.by_sum(before, _Counts(same), 30, same)
    # The odd queries gain nothing by any weight, so the even ones get the first; inliers of the
    # even ones choose the largest that helps for the odd ones.
    assert even == benchmark.WEIGHTS[0] and odd > even
    alone = benchmark.scores_of(before, same)
    assert (mixed["AP"][1::2] == alone["AP"][1::2]).all()
    assert benchmark.best_order(before, 30, same)["AP"].tolist() == [1.0] * 8
