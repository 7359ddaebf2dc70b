"""The methods of re-ranking: a table from which flags, their help and the page's list are made.

A new method is a function in a module of its own and an entry here; a number that no other method
has also needs a flag in `methods.RerankConfig`.

Every method has numbers that its authors tuned for other networks and data than yours, so the
default is none, and a score with re-ranking names its method.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.rerank import geometric, k_reciprocal, superglobal
from dolg_tf.retrieval.rerank.expansion import alpha_dba, alpha_qe
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.stage import progress

_K2 = 6  # of k-reciprocal encoding, as published


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a method: its default, its meaning and its bounds.

    `order`: the one of `geometric.ORDERS` that takes it; empty: it is not of one.
    """

    default: float
    words: str
    least: float
    most: float = float("inf")
    order: str = ""


@dataclasses.dataclass(frozen=True)
class Reranker:
    """A method of re-ranking.

    Attributes:
      title: its name for people.
      words: what it does.
      numbers: by name, the keyword of `apply`; the flag is `rerank_` and the name.
      apply: (float32 (Q, D) queries, (N, D) index, **numbers) -> `Reranked`, rows of unit norm; of
        a local method, see `geometric.rerank`.
      quick: whether it answers a single query at once.
      orders: whether it orders the best photos, so that only a local method may follow.
      local: whether it takes local features, and other methods may come before.
    """

    title: str
    words: str
    numbers: dict[str, Number]
    apply: Callable[..., Reranked]
    quick: bool = True
    orders: bool = False
    local: bool = False


def _head(queries: np.ndarray, index, m: int, reorder: Callable) -> Reranked:
    """Orders the m best photos of each query by `reorder`."""
    head = search(index, queries, m).rows
    scores = np.empty(head.shape)
    for query in progress.track(range(len(queries)), len(queries), "rerank", "queries"):
        candidates = np.asarray(index[head[query]], np.float32)
        places, scores[query] = reorder(queries[query], candidates)
        head[query] = head[query][places]
    return Reranked(queries, index, head, scores)


def _by_alpha_qe(queries, index, k: int, alpha: float) -> Reranked:
    return Reranked(alpha_qe(queries, index, k, alpha), index)


def _by_alpha_dba(queries, index, k: int, alpha: float) -> Reranked:
    return Reranked(queries, alpha_dba(index, k, alpha))


def _by_superglobal(queries, index, m: int, k: int, beta: float) -> Reranked:
    return _head(queries, index, m, functools.partial(superglobal.reorder, k=k, beta=beta))


def _by_k_reciprocal(queries, index, m: int, k: int, beta: float) -> Reranked:
    reorder = functools.partial(k_reciprocal.reorder, k1=k, k2=_K2, original=beta)
    return _head(queries, index, m, reorder)


_ALPHA = Number(3.0, "exponent of the score in a neighbour's weight; with 0 all weigh the same", 0)
_M = Number(400, "number of best photos that are reordered", 1)

# The default numbers are as published; `methods.RerankConfig` says whose they are.
RERANKERS: dict[str, Reranker] = {
    "alpha_qe": Reranker(
        "Query expansion",
        "each query is averaged with its best photos",
        {"k": Number(50, "photos averaged with a query", 1), "alpha": _ALPHA},
        _by_alpha_qe,
    ),
    "alpha_dba": Reranker(
        "Database augmentation",
        "each index photo is averaged with its best others, which compares each with each",
        {"k": Number(10, "photos averaged with another", 1), "alpha": _ALPHA},
        _by_alpha_dba,
        quick=False,
    ),
    "superglobal": Reranker(
        "SuperGlobal",
        "the best photos refine each other and the query",
        {
            "m": _M,
            "k": Number(9, "neighbours (K)", 1),
            "beta": Number(0.15, "weight of a photo's neighbours", 0),
        },
        _by_superglobal,
        orders=True,
    ),
    "k_reciprocal": Reranker(
        "k-reciprocal",
        "the best photos are ordered by the neighbours that they share",
        {
            "m": _M,
            "k": Number(20, "neighbours (k1)", 1),
            "beta": Number(0.3, "share (lambda) of the original distance", 0, 1),
        },
        _by_k_reciprocal,
        orders=True,
    ),
    "geometric": Reranker(
        "Geometric verification",
        "the best photos are ordered by how many local features agree with the query's on one view",
        {
            "verify": Number(100, "number of best photos that are verified", 1),
            "weight": Number(0.005, "of an inlier in the sum", 0, order="sum"),
            "cap": Number(100, "inliers that count at most in the sum", 1, order="sum"),
        },
        geometric.rerank,
        orders=True,
        local=True,
    ),
}
