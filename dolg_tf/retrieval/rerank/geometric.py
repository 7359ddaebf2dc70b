"""Geometric verification: the best photos of a query are ordered by their inliers.

References:
  Philbin et al., "Object Retrieval with Large Vocabularies and Fast Spatial Matching", CVPR 2007.
  The order "delg": Cao et al., "Unifying Deep Local and Global Features for Image Search", ECCV
  2020, and its published code, whose results these equal.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage import progress

ORDERS = {
    "delg": "by inliers, equal ones as before, as DELG does",
    "sum": "by the score before and --rerank_weight x inliers, of which --rerank_cap count",
}
_WORKERS = min(os.cpu_count() or 1, 8)


class Photos(Protocol):
    """Local features of photos by row: a list of them, or a set on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> LocalFeatures: ...


class InlierCounts:
    """How many local features of queries and index photos agree on a view, each pair verified once.

    Args:
      queries: local features of the queries.
      index: local features of the index photos, by row of the index.
      settings: of matching and geometry.
    """

    def __init__(self, queries: Photos, index: Photos, settings: VerifyConfig):
        self.settings = settings
        self._queries, self._index = queries, index
        self._verifier = Verifier(settings)
        self._known: dict[tuple[int, int], int] = {}

    def of(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the inliers of each query with rows of the index, (n,) each.

        Raises:
          InputError: when the descriptors of two photos differ in length.
        """
        wanted = [
            [row for row in some.tolist() if (query, row) not in self._known]
            for query, some in enumerate(rows)
        ]
        pairs = self._verify(wanted)
        for pair, count in progress.track(pairs, sum(map(len, wanted)), "verify", "pairs"):
            self._known[pair] = count
        return [
            np.array([self._known[query, row] for row in some.tolist()], np.int64)
            for query, some in enumerate(rows)
        ]

    def reaching(self, least: int) -> dict[int, np.ndarray]:
        """Returns the rows of verified pairs with so many inliers, int64 (n,) by query."""
        found: dict[int, list[int]] = {}
        for (query, row), count in self._known.items():
            if count >= least:
                found.setdefault(query, []).append(row)
        return {query: np.array(rows, np.int64) for query, rows in found.items()}

    def _verify(self, wanted: list[list[int]]):
        """Yields ((query, row), inliers); the features of one query are in memory at a time."""
        with ThreadPoolExecutor(_WORKERS) as pool:
            for query, rows in enumerate(wanted):
                if not rows:
                    continue
                features = self._queries[query]

                def count(row: int, features: LocalFeatures = features) -> int:
                    return self._verifier.verify(features, self._index[row]).count

                for row, inliers in zip(rows, pool.map(count, rows), strict=True):
                    yield (query, row), inliers


def total(scores: np.ndarray, inliers: np.ndarray, weight: float, cap: float) -> np.ndarray:
    """Returns score + weight * min(inliers, cap)."""
    return scores + weight * np.minimum(inliers, cap)


def rerank(
    before: Reranked,
    counts: InlierCounts,
    junk: Sequence[np.ndarray] | None = None,
    *,
    verify: int,
    order: str,
    weight: float = 0.0,
    cap: float = 0.0,
) -> Reranked:
    """Orders the best photos of each query by their inliers; all others keep their places.

    Photos that are not verified have no inliers. After a method that has ordered the best photos,
    those are verified, and none behind them.

    Args:
      before: the rankings so far.
      counts: see there.
      junk: for each query int (n,), rows that its protocol does not count: others are verified in
        their place. None: there are none.
      verify: photos of each query that are verified.
      order: one of `ORDERS`.
      weight, cap: see `total`, for the order "sum".
    """
    junk = [np.zeros(0, np.int64)] * len(before.queries) if junk is None else junk
    # In either order, a photo behind these has none before it that was not so already.
    head, scores = before.best(verify + max(map(len, junk), default=0))
    chosen = np.array(
        [~np.isin(rows, some) for rows, some in zip(head, junk, strict=True)], bool
    ).reshape(head.shape)
    chosen &= np.cumsum(chosen, axis=1) <= verify
    found = counts.of([rows[some] for rows, some in zip(head, chosen, strict=True)])
    inliers = np.full(head.shape, -1)
    inliers[chosen] = np.concatenate([np.zeros(0, np.int64), *found])
    seen = np.maximum(inliers, 0)
    keys = seen if order == "delg" else total(scores, seen, weight, cap)
    places = np.argsort(-keys, axis=1, kind="stable")
    head, keys, inliers = (np.take_along_axis(x, places, 1) for x in (head, keys, inliers))
    if before.head is not None:  # what the method before has ordered keeps its places behind these
        behind = before.head[:, head.shape[1] :]
        head = np.concatenate([head, behind], axis=1)
        keys = np.concatenate([keys, before.scores[:, keys.shape[1] :]], axis=1)
        inliers = np.concatenate([inliers, np.full(behind.shape, -1)], axis=1)
    return dataclasses.replace(
        before, head=head, scores=None if order == "delg" else keys, inliers=inliers
    )
