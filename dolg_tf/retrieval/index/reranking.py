"""The photos of an index that are nearest to each query, in the order that re-ranking gives them.

A score is always the inner product of the query's and the photo's descriptor, whatever the order: a
threshold was fitted to such.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from dolg_tf.retrieval.exact.search import inner_products, search
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.rerank.table import RERANKERS
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.stage.config import InputError

_BLOCK = 1024  # queries whose photos are verified at a time: each pair's inliers are remembered


class Answers(NamedTuple):
    """The photos found for each query, best first.

    Attributes:
      rows: int64 (Q, K); -1 where there is none.
      scores: float32 (Q, K).
      inliers: int64 (Q, K); -1: the photo was not verified. None: none was.
    """

    rows: np.ndarray
    scores: np.ndarray
    inliers: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Local features of photos of a set, by their place among the rows that are given."""

    found: LocalFeatureSet
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> LocalFeatures:
        return self.found[self.rows[place]]


def check(settings: RerankConfig, index: Index) -> None:
    """Makes sure that an index has what re-ranking takes.

    Raises:
      InputError: when it has not.
    """
    if settings.local and "local" not in index.meta:
        raise InputError(
            f"--rerank={settings.rerank}: {index.path} has no local features; build it with "
            "`dolg index build --local`"
        )
    by_descriptors = [name for name in settings.methods if not RERANKERS[name].local]
    if by_descriptors and index.descriptors is None:
        raise InputError(
            f"--rerank={settings.rerank}: {index.path} is approximate, and keeps no descriptors "
            f"for {by_descriptors[0]}; build it with --kind=flat, or take geometric alone"
        )


def answer(
    index: Index,
    queries: np.ndarray,
    k: int,
    settings: RerankConfig,
    verification: VerifyConfig,
    features: Chosen | None,
) -> Answers:
    """Returns the best photos of each query.

    Args:
      index: has what the settings need, see `check`.
      queries: float32 (Q, D), unit rows.
      k: photos per query, at most.
      settings: of re-ranking; none: the order is that of the scores.
      verification: of the photos, for a method that takes local features.
      features: local ones of the queries, for such a method.
    """
    k = min(k, len(index))
    if settings.rerank == "none":
        found = index.search(queries, k)
        return Answers(found.rows, found.scores)
    before, rest = _before(index, queries, k, settings)
    after = before
    if settings.local:
        photos = Chosen(index.local, index.local.rows_of(index.ids))
        after = _verified(before, settings, verification, features, photos)
    rows = np.full((len(queries), k), -1, np.int64)
    scores, inliers = np.full(rows.shape, -np.inf, np.float32), np.full(rows.shape, -1, np.int64)
    for query, asked in enumerate(np.asarray(queries, np.float32)):
        head = rest[query, :0] if after.head is None else after.head[query]
        ranked = _distinct(np.concatenate([head, rest[query]]))[:k]
        rows[query, : len(ranked)] = ranked
        scores[query, : len(ranked)] = _scores(index, asked, ranked, before, query)
        if after.inliers is not None:
            of = dict(zip(after.head[query].tolist(), after.inliers[query].tolist(), strict=True))
            inliers[query, : len(ranked)] = [of.get(row, -1) for row in ranked.tolist()]
    return Answers(rows, scores, inliers if settings.local else None)


def _before(
    index: Index, queries: np.ndarray, k: int, settings: RerankConfig
) -> tuple[Reranked, np.ndarray]:
    """Returns the rankings by descriptors, and the rows that follow their heads, (Q, R)."""
    if all(RERANKERS[name].local for name in settings.methods):
        verify = settings.numbers()["verify"]
        found = index.search(queries, min(max(k, verify), len(index)))
        return Reranked(queries, index.descriptors, found.rows, found.scores), found.rows[:, :0]
    found = methods.by_descriptors(settings, queries, index.descriptors)
    head = 0 if found.head is None else found.head.shape[1]
    return found, search(found.index, found.queries, min(k + head, len(index))).rows


def _verified(
    before: Reranked,
    settings: RerankConfig,
    verification: VerifyConfig,
    features: Chosen,
    photos: Chosen,
) -> Reranked:
    """Returns the rankings, with heads that geometric verification has ordered."""
    parts, nothing = [], [np.array([-1])]  # a row that an approximate search did not find
    for start in range(0, len(before.queries), _BLOCK):
        block = slice(start, start + _BLOCK)
        columns = {"queries": before.queries[block]}
        if before.head is not None:
            columns |= {"head": before.head[block], "scores": before.scores[block]}
        part = dataclasses.replace(before, **columns)
        asked = Chosen(features.found, features.rows[block])
        counts = InlierCounts(asked, photos, verification)
        junk = nothing * len(part.queries)
        parts.append(methods.by_local_features(settings, part, counts, junk))
    return dataclasses.replace(
        before,
        head=np.concatenate([part.head for part in parts]),
        inliers=np.concatenate([part.inliers for part in parts]),
    )


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Returns rows that were found, each where it comes first."""
    rows = rows[rows >= 0]
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]


def _scores(
    index: Index, asked: np.ndarray, rows: np.ndarray, before: Reranked, query: int
) -> np.ndarray:
    """Returns the scores of a query, float32 (D,) as it was asked, and rows of the index."""
    if index.descriptors is not None:
        return inner_products(asked, index.descriptors[rows])
    # All of them are in the head: an approximate index has no other ranking.
    order = np.argsort(before.head[query])
    places = order[np.searchsorted(before.head[query], rows, sorter=order)]
    return before.scores[query][places]
