"""Answers are ordered by the sum of their score and of the local features that agree."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dolg_tf.pipelines.own_photos.queries import Answer
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank import geometric
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig

VERIFIED = 50  # best photos of a query that are verified
# On photos of 600 to 1,024 pixels weights from 0.012 to 0.03 gave the same, see docs/search.md.
_WEIGHT, _CAP = 0.02, 100
_WORKERS = min(os.cpu_count() or 1, 8)


def ordered(
    answers: Iterable[Answer],
    asked: Callable[[Answer], LocalFeatures],
    found: Callable[[int], LocalFeatures],
    k: int,
) -> Iterator[Answer]:
    """Yields answers with the photos in another order, and their inliers.

    Args:
      answers: with more photos than are wanted.
      asked: gives the local features of an answer's query.
      found: gives those of a row's photo.
      k: photos of each answer, at most.
    """
    verifier = Verifier(VerifyConfig(match="mutual", max_residual="30"))
    with concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        for one in answers:
            query, rows = asked(one), one.rows[:VERIFIED].tolist()
            counts = list(
                pool.map(lambda row, query=query: verifier.verify(query, found(row)).count, rows)
            )
            inliers = np.full(len(one.rows), -1)
            inliers[: len(counts)] = counts
            sums = geometric.total(one.nearness.astype(np.float64), inliers.clip(0), _WEIGHT, _CAP)
            order = np.argsort(-sums, kind="stable")[:k]
            yield dataclasses.replace(
                one,
                rows=one.rows[order],
                scores=one.scores[order],
                nearness=one.nearness[order],
                inliers=inliers[order],
            )
