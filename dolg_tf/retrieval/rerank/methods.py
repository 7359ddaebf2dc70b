"""Re-ranking of a search from descriptors alone, chosen by flags.

Flags, their help and the page's list are made from the table `RERANKERS`. A new method is a
function in a module of its own and an entry in the table; a number that no other method has also
needs a flag in `RerankConfig`.

Every method has numbers that its authors tuned for other networks and data than yours, so the
default is none, and a score with re-ranking names its method.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dolg_tf.retrieval import norms
from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.rerank import k_reciprocal, superglobal
from dolg_tf.retrieval.rerank.expansion import alpha_dba, alpha_qe
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError, option

_UNSET = -1
_K2 = 6  # of k-reciprocal encoding, as published
_REMEDY = "divide the rows by their norms (--normalize), and leave out zero rows"


@dataclasses.dataclass(frozen=True)
class Reranked:
    """Rankings in short: `head` first, then all other rows of the index by score.

    Attributes:
      queries: float32 (Q, D).
      index: (N, D), `Rows` or an array.
      head: int64 (Q, M), the first M rows of each ranking; None: M is 0. The other rows are ranked
        by the inner product of `queries` and `index`, and equal scores by row, the lower first.
    """

    queries: np.ndarray
    index: Rows | np.ndarray
    head: np.ndarray | None


# --- the methods ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Number:
    """A number of a method: its default, its meaning and its bounds."""

    default: float
    words: str
    least: float
    most: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Reranker:
    """A method of re-ranking.

    Attributes:
      title: its name for people.
      words: what it does.
      numbers: by name, the keyword of `apply`; the flag is `rerank_` and the name.
      apply: (float32 (Q, D) queries, (N, D) index, **numbers) -> `Reranked`, rows of unit norm.
      quick: whether it answers a single query at once.
    """

    title: str
    words: str
    numbers: dict[str, Number]
    apply: Callable[..., Reranked]
    quick: bool = True


def _head(queries: np.ndarray, index, m: int, reorder: Callable) -> Reranked:
    """Orders the m best photos of each query by `reorder`."""
    head = search(index, queries, m).rows
    for query in progress.track(range(len(queries)), len(queries), "rerank", "queries"):
        candidates = np.asarray(index[head[query]], np.float32)
        head[query] = head[query][reorder(queries[query], candidates)]
    return Reranked(queries, index, head)


def _by_alpha_qe(queries, index, k: int, alpha: float) -> Reranked:
    return Reranked(alpha_qe(queries, index, k, alpha), index, None)


def _by_alpha_dba(queries, index, k: int, alpha: float) -> Reranked:
    return Reranked(queries, alpha_dba(index, k, alpha), None)


def _by_superglobal(queries, index, m: int, k: int, beta: float) -> Reranked:
    return _head(queries, index, m, functools.partial(superglobal.reorder, k=k, beta=beta))


def _by_k_reciprocal(queries, index, m: int, k: int, beta: float) -> Reranked:
    reorder = functools.partial(k_reciprocal.reorder, k1=k, k2=_K2, original=beta)
    return _head(queries, index, m, reorder)


_ALPHA = Number(3.0, "exponent of the score in a neighbour's weight; with 0 all weigh the same", 0)
_M = Number(400, "number of best photos that are reordered", 1)

# The default numbers are as published; `RerankConfig` says whose they are.
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
    ),
}


# --- flags ---------------------------------------------------------------------------


def _methods_help() -> str:
    methods = "; ".join(f"{name}: {one.words}" for name, one in RERANKERS.items())
    return (
        "re-ranking after the search; the methods' default numbers were tuned by their authors for "
        f"other networks, not for yours. {methods}"
    )


def _number_help(number: str) -> str:
    """Says what a number means to each method; methods with the same meaning are named together."""
    takers = {}
    for name, one in RERANKERS.items():
        if number in one.numbers:
            taken = one.numbers[number]
            takers.setdefault(f"{taken.words} (default {taken.default:g})", []).append(name)
    told = [f"{' and '.join(names)}: {words}" for words, names in takers.items()]
    return ". ".join([*told, "-1: the default"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """How the rankings of a search are refined; by default they are not.

    The default numbers were tuned by the methods' authors for other networks: alpha_qe by Radenović
    et al. (TPAMI 2019), superglobal by Shao et al. (ICCV 2023), k_reciprocal by Zhong et al. (CVPR
    2017, for persons, over the whole index, so its m is ours). alpha_dba has no published numbers
    (3 is alpha_qe's alpha, 10 is usual).
    """

    rerank: str = option(_methods_help(), "none", choices=("none", *RERANKERS))
    rerank_k: int = option(_number_help("k"), _UNSET, unit="photos")
    rerank_alpha: float = option(_number_help("alpha"), float(_UNSET))
    rerank_m: int = option(_number_help("m"), _UNSET, unit="photos")
    rerank_beta: float = option(_number_help("beta"), float(_UNSET))

    def __post_init__(self):
        numbers = self._defaults()
        for name, value in self._given().items():
            if name not in numbers:
                takes = " and ".join(f"--rerank_{x}" for x in numbers) or "no numbers"
                raise InputError(
                    f"--rerank_{name}={value} does not belong to --rerank={self.rerank}, which "
                    f"takes {takes}; omit it, or choose another --rerank"
                )
            number = numbers[name]
            if not number.least <= value <= number.most or value == float("inf"):
                upto = "" if number.most == float("inf") else f" and at most {number.most}"
                raise InputError(f"--rerank_{name}={value} must be at least {number.least}{upto}")

    def _defaults(self) -> dict[str, Number]:
        return {} if self.rerank == "none" else RERANKERS[self.rerank].numbers

    def _given(self) -> dict[str, float]:
        values = {"k": self.rerank_k, "alpha": self.rerank_alpha}
        values |= {"m": self.rerank_m, "beta": self.rerank_beta}
        return {name: value for name, value in values.items() if value != _UNSET}

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the chosen method, given or default, by name."""
        given = self._given()
        return {name: given.get(name, one.default) for name, one in self._defaults().items()}


# --- applied -------------------------------------------------------------------------


def apply(settings: RerankConfig, queries: np.ndarray, index: Rows | np.ndarray) -> Reranked:
    """Re-ranks a search.

    Args:
      settings: the method and its numbers.
      queries: float32 (Q, D), unit rows.
      index: (N, D), unit rows; rows on disk stay there. alpha_dba puts a copy in TMPDIR.

    Raises:
      InputError: when a descriptor does not have unit norm, or the index is empty.
    """
    if settings.rerank == "none":
        return Reranked(queries, index, None)
    if not len(index):
        raise InputError("the index has no descriptors")
    queries = np.asarray(queries, np.float32)
    # Weights are powers of cosines.
    norms.check_rows(queries, "the queries", remedy=_REMEDY)
    norms.check_rows(index, "the index", remedy=_REMEDY)
    return RERANKERS[settings.rerank].apply(queries, index, **settings.numbers())
