"""Geometric re-ranking, against the authors' rankings and a slow statement of both orders."""

import json
import os
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank import geometric
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.methods import RerankConfig, apply, by_local_features
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.verification.pairs import VerifyConfig

GROUND_TRUTHS = os.environ.get("DOLG_GROUND_TRUTHS")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Known:
    """Inliers that are known beforehand; remembers what it was asked."""

    def __init__(self, inliers):
        self.inliers, self.asked = inliers, []

    def of(self, rows):
        self.asked += rows
        return [self.inliers[query][some] for query, some in enumerate(rows)]


def _ranks(found):
    """All rows of the first ranking, best first."""
    scores = np.asarray(found.index) @ found.queries[0]
    order = np.argsort(-scores, kind="stable")
    return np.concatenate([found.head[0], order[~np.isin(order, found.head[0])]])


def _scored(scores):
    """A search of one query that gives these scores, equal ones included."""
    return Reranked(np.ones((1, 1), np.float32), np.asarray(scores, np.float32)[:, None])


# --- the authors' own code -----------------------------------------------------------


@pytest.mark.skipif(not GROUND_TRUTHS, reason="DOLG_GROUND_TRUTHS is not set")
def test_ranks_of_the_authors_code():
    folder = pathlib.Path(GROUND_TRUTHS)
    arrays = np.load(folder / "geometric_verification.npz")
    runs = json.loads((folder / "geometric_verification.json").read_text())["rerank"]["runs"]
    # Their ranks, which have ties; float32 would add some.
    scores = np.unique(arrays["rerank/similarities"], return_inverse=True)[1]
    for name, run in runs.items():
        inliers = np.full(60, 99)  # not to be asked for
        inliers[[int(row) for row in run["inliers_of"]]] = list(run["inliers_of"].values())
        config = RerankConfig(rerank="geometric", rerank_verify=run["top"])
        junk = [np.array(run["junk"], np.int64)]
        known = Known([inliers])
        found = by_local_features(config, _scored(scores), known, junk)
        assert _ranks(found).tolist() == arrays[f"rerank/{name}/ranks_after"].tolist(), name
        assert sorted(known.asked[0].tolist()) == sorted(map(int, run["inliers_of"])), name


# --- orders --------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=strategies.integers(0, 1000),
    count=strategies.integers(1, 25),
    verify=strategies.integers(1, 30),
    order=strategies.sampled_from(list(geometric.ORDERS)),
)
def test_orders_are_those_of_all_rows_sorted(seed, count, verify, order):
    rng = np.random.default_rng(seed)
    scores, inliers = rng.integers(0, 8, count) / 8, rng.integers(0, 9, count)
    junk = rng.permutation(count)[: rng.integers(0, count)]
    before = sorted(range(count), key=lambda row: (-scores[row], row))
    checked = [row for row in before if row not in junk][:verify]
    seen = {row: int(inliers[row]) if row in checked else 0 for row in range(count)}
    if order == "delg":
        expected = sorted(range(count), key=lambda row: (-seen[row], -scores[row], row))
        numbers = {}
    else:
        numbers = {"weight": 0.125, "cap": 5}
        sums = {row: scores[row] + 0.125 * min(seen[row], 5) for row in seen}
        # Equal sums keep their order.
        expected = sorted(range(count), key=lambda row: (-sums[row], before.index(row)))
    known = Known([inliers])
    found = geometric.rerank(_scored(scores), known, [junk], verify=verify, order=order, **numbers)
    assert _ranks(found).tolist() == expected
    assert found.inliers[0].tolist() == [
        inliers[row] if row in checked else -1 for row in found.head[0]
    ]


def test_after_another_order_its_best_are_verified_and_its_scores_count():
    queries, index = np.ones((1, 1), np.float32), np.linspace(1, 0, 9, dtype=np.float32)[:, None]
    before = Reranked(queries, index, np.array([[2, 0, 1]]), np.array([[5.0, 4.0, 1.0]]))
    inliers = [np.array([0, 9, 0, 9, 9, 9, 9, 9, 9])]
    numbers = {"verify": 6, "order": "sum", "weight": 1.0, "cap": 3}
    found = geometric.rerank(before, Known(inliers), **numbers)
    assert _ranks(found).tolist() == [2, 0, 1, 3, 4, 5, 6, 7, 8]
    assert found.scores.tolist() == [[5.0, 4.0, 4.0]]
    found = geometric.rerank(before, Known(inliers), **numbers | {"cap": 4})
    assert _ranks(found).tolist() == [2, 1, 0, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("order", ["delg", "sum"])
def test_what_another_method_ordered_and_was_not_verified_keeps_its_places(order):
    queries, index = np.ones((1, 1), np.float32), np.linspace(1, 0, 9, dtype=np.float32)[:, None]
    head = np.array([[5, 3, 8, 0, 7, 2]])
    before = Reranked(queries, index, head, np.array([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]]))
    known = Known([np.array([0, 0, 0, 9, 9, 0, 9, 9, 9])])
    numbers = {"verify": 2, "order": order, "weight": 1.0, "cap": 9}
    found = geometric.rerank(before, known, [np.array([5])], **numbers)
    assert _ranks(found).tolist() == [3, 8, 5, 0, 7, 2, 1, 4, 6]
    assert found.inliers.tolist() == [[9, 9, -1, -1, -1, -1]]
    if order == "sum":
        assert found.scores.tolist() == [[14.0, 13.0, 6.0, 3.0, 2.0, 1.0]]


# --- local features ------------------------------------------------------------------


def _photo(places, descriptors):
    count = len(places)
    floats = [np.asarray(x, np.float32) for x in (places, np.ones(count), np.ones(count))]
    return LocalFeatures(*floats, unit(descriptors), (100, 100))


def _photos(seed=0):
    """Two queries and five index photos: those with a row above 2 show the second query's place."""
    rng = np.random.default_rng(seed)
    places, rows = rng.uniform(0, 100, (30, 2)), rng.standard_normal((30, 16))
    other = [_photo(rng.uniform(0, 100, (30, 2)), rng.standard_normal((30, 16))) for _ in range(4)]
    views = [_photo(places * scale + 3, rows) for scale in (0.8, 1.2)]
    return [other[0], _photo(places, rows)], [*other[1:], *views]


def test_photos_that_show_the_place_come_first():
    queries, index = _photos()
    counts = InlierCounts(queries, index, VerifyConfig())
    rng = np.random.default_rng(1)
    rows = unit(rng.standard_normal((2, 8))), unit(rng.standard_normal((5, 8)))
    found = apply(RerankConfig(rerank="geometric"), *rows, counts)
    assert set(found.head[1, :2]) == {3, 4} and found.inliers[1, :2].tolist() == [30, 30]
    first = RerankConfig(rerank="superglobal,geometric", rerank_m=4, rerank_order="sum")
    assert apply(first, *rows, counts).scores.shape == (2, 4)


def test_a_pair_is_verified_once(monkeypatch):
    queries, index = _photos()
    counts = InlierCounts(queries, index, VerifyConfig())
    assert not len(counts.of([np.array([], int), np.array([4, 0])])[0])
    monkeypatch.setattr(counts, "_verifier", None)
    assert counts.of([np.array([], int), np.array([0, 4])])[1].tolist()[1] == 30
    with pytest.raises(AttributeError):
        counts.of([np.array([1]), np.array([0, 4])])
