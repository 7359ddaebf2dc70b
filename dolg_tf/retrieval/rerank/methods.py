"""Re-ranking of a search by methods that flags choose: one, or several in turn."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from dolg_tf.retrieval import norms
from dolg_tf.retrieval.rerank import geometric
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.rerank.table import RERANKERS, Number
from dolg_tf.retrieval.rows import Rows
from dolg_tf.retrieval.verification.pairs import DEFAULT, VerifyConfig
from dolg_tf.stage.config import InputError, from_dict, option, to_dict

log = logging.getLogger(__name__)

_UNSET = -1
_REMEDY = "divide the rows by their norms (--normalize), and leave out zero rows"


# --- flags ---------------------------------------------------------------------------


def _methods_help() -> str:
    methods = "; ".join(f"{name}: {one.words}" for name, one in RERANKERS.items())
    return (
        "re-ranking after the search, or several separated by commas; the methods' default numbers "
        f"were tuned by their authors for other networks, not for yours. none: none; {methods}"
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


def _order_help() -> str:
    orders = "; ".join(f"{name}: {words}" for name, words in geometric.ORDERS.items())
    return (
        f"geometric: how inliers order. {orders}; auto: as `dolg calibrate` has fitted it for the "
        "index, or else delg"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RerankConfig:
    """How the rankings of a search are refined; by default they are not.

    The default numbers were tuned by the methods' authors for other networks: alpha_qe by Radenović
    et al. (TPAMI 2019), superglobal by Shao et al. (ICCV 2023), k_reciprocal by Zhong et al. (CVPR
    2017, for persons, over the whole index, so its m is ours), geometric by Cao et al. (ECCV 2020;
    weight and cap are ours). alpha_dba has no published numbers (3 is alpha_qe's alpha, 10 is
    usual).
    """

    rerank: str = option(_methods_help(), "none")
    rerank_k: int = option(_number_help("k"), _UNSET, unit="photos")
    rerank_alpha: float = option(_number_help("alpha"), float(_UNSET))
    rerank_m: int = option(_number_help("m"), _UNSET, unit="photos")
    rerank_beta: float = option(_number_help("beta"), float(_UNSET))
    rerank_verify: int = option(_number_help("verify"), _UNSET, unit="photos")
    rerank_order: str = option(_order_help(), "auto", choices=("auto", *geometric.ORDERS))
    rerank_weight: float = option(_number_help("weight"), float(_UNSET))
    rerank_cap: int = option(_number_help("cap"), _UNSET, unit="inliers")

    def __post_init__(self):
        self._check_methods()
        for name, value in self._given().items():
            takers = [method for method in self.methods if name in self._numbers(method)]
            if not takers:
                raise InputError(self._not_taken(name, value))
            if len(takers) > 1:
                raise InputError(
                    f"--rerank_{name}={value} could be of {' or '.join(takers)}; omit it, so that "
                    "each has its default, or take one of them"
                )
            number = self._numbers(takers[0])[name]
            if not number.least <= value <= number.most or value == float("inf"):
                upto = "" if number.most == float("inf") else f" and at most {number.most}"
                raise InputError(f"--rerank_{name}={value} must be at least {number.least}{upto}")

    def _check_methods(self) -> None:
        """Refuses unknown methods, and those that cannot follow one another."""
        for method in self.methods:
            if method not in RERANKERS:
                raise InputError(
                    f"--rerank={self.rerank}: {method!r} is none of none, {', '.join(RERANKERS)}"
                )
        for method, after in zip(self.methods, self.methods[1:], strict=False):
            if RERANKERS[method].local or (RERANKERS[method].orders and not RERANKERS[after].local):
                raise InputError(
                    f"--rerank={self.rerank}: {after} cannot follow {method}, which orders the "
                    "best photos; put it first, or omit it"
                )
        if len(set(self.methods)) < len(self.methods):
            raise InputError(f"--rerank={self.rerank} names a method twice; omit one")
        if self.rerank_order != "auto" and not self.local:
            raise InputError(
                f"--rerank_order={self.rerank_order} does not belong to --rerank={self.rerank}; "
                "omit it, or add geometric"
            )

    def _not_taken(self, name: str, value: float) -> str:
        takes = [f"--rerank_{x}" for method in self.methods for x in self._numbers(method)]
        if any(name in RERANKERS[method].numbers for method in self.methods):
            return (
                f"--rerank_{name}={value} does not belong to --rerank_order={self.order}; omit it, "
                "or take --rerank_order=sum"
            )
        return (
            f"--rerank_{name}={value} does not belong to --rerank={self.rerank}, which takes "
            f"{' and '.join(takes) or 'no numbers'}; omit it, or choose another --rerank"
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods, in turn."""
        return () if self.rerank == "none" else tuple(self.rerank.split(","))

    @property
    def local(self) -> bool:
        """Whether local features are needed."""
        return any(RERANKERS[method].local for method in self.methods)

    @property
    def before(self) -> dict[str, dict[str, float]]:
        """The numbers of the methods that take descriptors alone, by method."""
        return {name: self.numbers_of(name) for name in self.methods if not RERANKERS[name].local}

    @property
    def order(self) -> str:
        """How inliers order."""
        return "delg" if self.rerank_order == "auto" else self.rerank_order

    def _numbers(self, method: str) -> dict[str, Number]:
        numbers = RERANKERS[method].numbers.items()
        return {name: one for name, one in numbers if one.order in ("", self.order)}

    def _given(self) -> dict[str, float]:
        values = {"k": self.rerank_k, "alpha": self.rerank_alpha}
        values |= {"m": self.rerank_m, "beta": self.rerank_beta, "verify": self.rerank_verify}
        values |= {"weight": self.rerank_weight, "cap": self.rerank_cap}
        return {name: value for name, value in values.items() if value != _UNSET}

    def numbers_of(self, method: str) -> dict[str, float]:
        """Returns the numbers of one of the methods, given or default, by name."""
        given = self._given()
        return {name: given.get(name, one.default) for name, one in self._numbers(method).items()}

    def numbers(self) -> dict[str, float]:
        """Returns the numbers of all methods, given or default, by name.

        One that several methods take has the method before its name.
        """
        found = {}
        for method in self.methods:
            for name, value in self.numbers_of(method).items():
                shared = [x for x in self.methods if name in self._numbers(x)]
                found[name if len(shared) == 1 else f"{method}_{name}"] = value
        return found

    def report(self) -> dict:
        """Returns what a report says of them: "method", "order" and the numbers."""
        order = {"order": self.order} if self.local else {}
        return {"method": self.rerank, **order, **self.numbers()}


def as_fitted(
    settings: RerankConfig, verification: VerifyConfig, fitted: dict | None
) -> tuple[RerankConfig, VerifyConfig]:
    """Returns settings as `dolg calibrate` fitted them, where they leave the order to it.

    Those of verification come without "auto".

    Args:
      settings, verification: as they were given.
      fitted: the "geometric" of an index's calibration; None: there is none.

    Raises:
      InputError: when what was fitted is damaged.
    """
    plain = verification.resolved(delg=settings.order == "delg")
    if fitted is None or not settings.local or settings.rerank_order != "auto":
        return settings, plain
    made = from_dict(VerifyConfig, fitted["settings"], "the calibration of the index")
    given = VerifyConfig(**{name: getattr(verification, name) for name in to_dict(made)})
    same = settings.rerank == fitted["rerank"] and settings.before == fitted.get("before", {})
    if not same or given not in (DEFAULT, made):
        log.warning(
            "the weight of inliers was fitted with --rerank=%s and other settings, and is not "
            "used; fit it again by `dolg calibrate`",
            fitted["rerank"],
        )
        return settings, plain
    numbers = {f"rerank_{name}": fitted[name] for name in ("order", "weight", "cap")}
    if settings.rerank_verify == _UNSET:
        numbers["rerank_verify"] = fitted["verify"]
    return dataclasses.replace(settings, **numbers), made


def verifies_as_fitted(settings: RerankConfig, verification: VerifyConfig, fitted: dict) -> bool:
    """Returns whether inliers are counted as they were for the `min_inliers` of a calibration.

    Args:
      settings, verification: as `as_fitted` returns them.
      fitted: the "geometric" of the calibration.
    """
    if settings.rerank != fitted["rerank"] or settings.numbers()["verify"] != fitted["verify"]:
        return False
    return to_dict(verification) == fitted["settings"]


# --- applied -------------------------------------------------------------------------


def apply(
    settings: RerankConfig,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    counts: geometric.InlierCounts | None = None,
) -> Reranked:
    """Re-ranks a search.

    Args:
      settings: the methods and their numbers.
      queries: float32 (Q, D), unit rows.
      index: (N, D), unit rows; rows on disk stay there. alpha_dba puts a copy in TMPDIR.
      counts: of the same queries and index, for a method that takes local features.

    Raises:
      InputError: when a descriptor does not have unit norm, the index is empty, or local features
        are needed and not given.
    """
    if settings.local and counts is None:
        raise InputError(
            f"--rerank={settings.rerank} needs the local features of queries and index photos: "
            "--query_local and --index_local"
        )
    found = by_descriptors(settings, queries, index)
    return by_local_features(settings, found, counts) if settings.local else found


def by_descriptors(
    settings: RerankConfig, queries: np.ndarray, index: Rows | np.ndarray
) -> Reranked:
    """Applies the methods that take descriptors alone; see `apply`."""
    found = Reranked(queries, index)
    if settings.rerank == "none":
        return found
    if not len(index):
        raise InputError("the index has no descriptors")
    queries = np.asarray(queries, np.float32)
    found = Reranked(queries, index)
    applied = [method for method in settings.methods if not RERANKERS[method].local]
    if applied:  # weights are powers of cosines
        norms.check_rows(queries, "the queries", remedy=_REMEDY)
        norms.check_rows(index, "the index", remedy=_REMEDY)
    for method in applied:
        numbers = settings.numbers_of(method)
        found = RERANKERS[method].apply(found.queries, found.index, **numbers)
    return found


def by_local_features(
    settings: RerankConfig,
    found: Reranked,
    counts: geometric.InlierCounts,
    junk: Sequence[np.ndarray] | None = None,
) -> Reranked:
    """Applies the last method, which takes local features, to rankings by the others.

    Args:
      settings: the methods and their numbers.
      found: what `by_descriptors` gave.
      counts: of the same queries and index.
      junk: see `geometric.rerank`.
    """
    method = settings.methods[-1]
    numbers = settings.numbers_of(method)
    return RERANKERS[method].apply(found, counts, junk, order=settings.order, **numbers)
