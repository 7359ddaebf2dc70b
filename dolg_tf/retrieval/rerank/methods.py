"""Re-ranking without the photos: what may follow a search, chosen by flags.

Every method has numbers that its authors tuned for other networks and other data than yours, so
the default is none, and a score with re-ranking says with which.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dolg_tf.retrieval.descriptors import Rows, blocks
from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.rerank import k_reciprocal, superglobal
from dolg_tf.retrieval.rerank.expansion import alpha_dba, alpha_qe
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError, option

# Each method's numbers, as published; see `RerankConfig` for whose they are.
_DEFAULTS = {
    "none": {},
    "alpha_qe": {"k": 50, "alpha": 3.0},
    "alpha_dba": {"k": 10, "alpha": 3.0},
    "superglobal": {"m": 400, "k": 9, "beta": 0.15},
    "k_reciprocal": {"m": 400, "k": 20, "beta": 0.3},
}
_K2 = 6  # of k-reciprocal encoding, as published
_UNSET = -1
_NORM_TOLERANCE = 0.01  # float16 rounds a norm by 5e-4
_CHECK_ROWS = 65536


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """How the rankings of a search are refined; the default is not at all.

    The numbers that stand where none is given were tuned by the methods' authors for other
    networks: alpha_qe by Radenović et al. (TPAMI 2019), superglobal by Shao et al. (ICCV 2023),
    k_reciprocal by Zhong et al. (CVPR 2017, for persons, over the whole index, so its m is
    ours); alpha_dba has no published ones (3 is alpha_qe's alpha, 10 is usual).
    """

    rerank: str = option(
        "re-ranking after the search; the methods' default numbers were tuned by their authors "
        "for other networks, not for yours. alpha_qe: each query is averaged with its best "
        "photos; alpha_dba: each index photo with its best others, which compares each with "
        "each; superglobal: the best photos refine each other and the query; k_reciprocal: by "
        "shared neighbours among the best photos",
        "none",
        choices=tuple(_DEFAULTS),
    )
    rerank_k: int = option(
        "neighbours: alpha_qe 50, alpha_dba 10, superglobal K 9, k_reciprocal k1 20; -1: the "
        "method's default",
        _UNSET,
        unit="photos",
    )
    rerank_alpha: float = option(
        "alpha_qe and alpha_dba, 3: a neighbour's weight is its score to this power; 0: all weigh "
        "the same (average query expansion); -1: the default",
        float(_UNSET),
    )
    rerank_m: int = option(
        "superglobal and k_reciprocal, 400: how many of the best photos are put in a new order; "
        "-1: the default",
        _UNSET,
        unit="photos",
    )
    rerank_beta: float = option(
        "superglobal, 0.15: weight of a photo's neighbours; k_reciprocal, 0.3: share (lambda) of "
        "the original distance; -1: the method's default",
        float(_UNSET),
    )

    def __post_init__(self):
        least = {"k": 1, "alpha": 0, "m": 1, "beta": 0}
        most = {"beta": 1} if self.rerank == "k_reciprocal" else {}
        numbers = _DEFAULTS[self.rerank]
        for name, low in least.items():
            value = getattr(self, f"rerank_{name}")
            if value == _UNSET:
                continue
            if name not in numbers:
                takes = " and ".join(f"--rerank_{x}" for x in numbers) or "no numbers"
                raise InputError(
                    f"--rerank_{name}={value} is no number of --rerank={self.rerank}, which takes "
                    f"{takes}; leave it away, or choose another --rerank"
                )
            if not low <= value <= most.get(name, float("inf")) or value == float("inf"):
                upto = f" and at most {most[name]}" if name in most else ""
                raise InputError(f"--rerank_{name}={value} must be at least {low}{upto}")

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of the chosen method, given or default: such as {"k", "alpha"}."""
        given = {name: getattr(self, f"rerank_{name}") for name in _DEFAULTS[self.rerank]}
        defaults = _DEFAULTS[self.rerank]
        return {name: defaults[name] if x == _UNSET else x for name, x in given.items()}


@dataclasses.dataclass(frozen=True)
class Reranked:
    """What rankings follow from: `head` first, then all other rows of the index by score.

    Attributes:
      queries: float32 (Q, D).
      index: (N, D), `Rows` or an array.
      head: int64 (Q, M), the first M rows of each ranking; None: there is none. The rows behind
        are ranked by the inner product of `queries` and `index`, equals by row, the lower first.
    """

    queries: np.ndarray
    index: Rows | np.ndarray
    head: np.ndarray | None


def _check_unit(rows, what: str) -> None:
    """Weights are powers of cosines: rows of other norms would weigh anything."""
    for start, block in blocks(rows, _CHECK_ROWS):
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE))
        if wrong.size:
            raise InputError(
                f"row {start + wrong[0]} of the {what} has norm {norms[wrong[0]]:.4g}; re-ranking "
                "needs descriptors of norm 1: divide them by their norms, leave out zero rows"
            )


def _head(queries: np.ndarray, index, m: int, reorder: Callable) -> np.ndarray:
    """Returns int64 (Q, min(m, N)): the best rows of each query, put in order by `reorder`."""
    _, head = search(index, queries, m)
    for query in progress.track(range(len(queries)), len(queries), "rerank", "queries"):
        candidates = np.asarray(index[head[query]], np.float32)
        head[query] = head[query][reorder(queries[query], candidates)]
    return head


def apply(settings: RerankConfig, queries: np.ndarray, index: Rows | np.ndarray) -> Reranked:
    """Re-ranks as the settings say.

    Args:
      settings: the method and its numbers.
      queries: float32 (Q, D), unit rows.
      index: (N, D), unit rows; what is on disk stays there. alpha_dba puts a copy of it in TMPDIR.

    Raises:
      InputError: when a descriptor is not of norm 1, or the index is empty.
    """
    if settings.rerank == "none":
        return Reranked(queries, index, None)
    if not len(index):
        raise InputError("the index has no descriptors")
    queries = np.asarray(queries, np.float32)
    _check_unit(queries, "queries")
    _check_unit(index, "index")
    numbers = settings.numbers()
    if settings.rerank == "alpha_qe":
        return Reranked(alpha_qe(queries, index, **numbers), index, None)
    if settings.rerank == "alpha_dba":
        return Reranked(queries, alpha_dba(index, **numbers), None)
    m, k, beta = numbers["m"], numbers["k"], numbers["beta"]
    if settings.rerank == "superglobal":
        reorder = functools.partial(superglobal.reorder, k=k, beta=beta)
    else:
        reorder = functools.partial(k_reciprocal.reorder, k1=k, k2=_K2, original=beta)
    return Reranked(queries, index, _head(queries, index, m, reorder))
