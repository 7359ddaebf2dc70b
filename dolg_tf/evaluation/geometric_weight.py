"""The weight of inliers in a sum with the score, fitted on labelled queries.

Photos behind those that are verified keep their places whatever the weight, so a ranking is taken
once, and each weight of a grid only reorders its beginning. The weight is that with the highest
mAP; what it gives on queries that it was not fitted on is measured by halves: each half's queries
are scored with the weight that the other half chooses.
"""

import dataclasses
import logging

import numpy as np

from dolg_tf.evaluation import local_photos, metrics
from dolg_tf.evaluation.labelled_pairs import without_queries
from dolg_tf.evaluation.local_photos import LocalConfig
from dolg_tf.evaluation.revisited.score import level_ranks, places_in
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.geometric import InlierCounts, total
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.rows import Rows
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.stage.config import InputError, option, to_dict

log = logging.getLogger(__name__)

# Of an inlier against inner products; four steps to a power of ten.
WEIGHTS = (0.0, *(float(f"{10 ** (step / 4):.3g}") for step in range(-18, -3)))
_LEVEL = "medium"  # easy and hard photos count, junk is taken off
_FLAT = 0.005  # of mAP, by which weights are called as good as the best
_QUERIES = 500  # that are enough for one number


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightConfig(RerankConfig, LocalConfig):
    """The re-ranking whose weight is fitted, beside a threshold; by default none is."""

    query_local: str = option(
        "local feature set of the queries: fits the weight of geometric verification; empty: that "
        "of the index, if the queries are the same set",
        "",
    )
    index_local: str = option("local feature set of the index; empty: that of --index", "")

    def __post_init__(self):
        super().__post_init__()
        if self.rerank_order == "delg" or self.rerank_weight >= 0:
            raise InputError(
                "--rerank_order=delg takes no weight, and --rerank_weight is what is fitted; omit "
                "it"
            )

    def fitting(self) -> RerankConfig | None:
        """Returns the re-ranking whose weight is fitted; None: none is.

        Raises:
          InputError: when it takes no local features.
        """
        if self.rerank == "none" and not (self.query_local or self.index_local):
            return None
        values = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(RerankConfig)
        }
        if self.rerank == "none":
            values["rerank"] = "geometric"
        chosen = RerankConfig(**values)
        if not chosen.local:
            raise InputError(
                f"--rerank={self.rerank} has no weight to fit; add geometric, or omit it"
            )
        return chosen

    def local_sets(self, of_index: LocalFeatureSet | None, one_set: bool) -> dict:
        """Returns the local feature sets of "query" and "index".

        Args:
          of_index: that of the index; None: it has none, or there is no index.
          one_set: whether queries and searched photos are one descriptor set.

        Raises:
          InputError: when one is missing or damaged.
        """
        searched = local_photos.read(self.index_local) if self.index_local else of_index
        if searched is None:
            raise InputError("give --index_local, or an --index that has local features")
        if self.query_local:
            return {"query": local_photos.read(self.query_local), "index": searched}
        if not one_set:
            raise InputError("give --query_local, the local feature set of the queries")
        return {"query": searched, "index": searched}


@dataclasses.dataclass(frozen=True)
class _Head:
    """The beginning of a query's ranking before verification, and where its photos stand.

    Attributes:
      scores: float64 (M,), falling.
      inliers: int64 (M,), 0 where a photo was not verified.
      places: by label, int64 (n,), in the whole ranking.
    """

    scores: np.ndarray
    inliers: np.ndarray
    places: dict[str, np.ndarray]

    def average_precision(self, weight: float, cap: float) -> float | None:
        """Returns the AP with a weight; None: the query has no positive."""
        order = np.argsort(-total(self.scores, self.inliers, weight, cap), kind="stable")
        moved = np.empty_like(order)
        moved[order] = np.arange(len(order))
        places = {
            label: np.where(found < len(moved), moved[np.minimum(found, len(moved) - 1)], found)
            for label, found in self.places.items()
        }
        ranks = level_ranks(places, _LEVEL)
        return metrics.revisited_average_precision(ranks) if len(ranks) else None


def _heads(
    task: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: RerankConfig,
    counts: InlierCounts,
) -> list[_Head]:
    """Returns the beginnings of all queries' rankings, their photos verified."""
    before = methods.by_descriptors(settings, queries, index)
    junk = [query.junk for query in task.queries]
    # With a weight of 0, verification leaves the ranking as it was.
    unmoved = dataclasses.replace(settings, rerank_order="sum", rerank_weight=0.0)
    found = methods.by_local_features(unmoved, before, counts, junk)
    inliers = np.maximum(found.inliers, 0)
    return [_Head(*one) for one in zip(found.scores, inliers, places_in(task, found), strict=True)]


def _best(table: np.ndarray) -> int:
    """Returns the number of the weight with the highest mean of (Q, W); the lowest among equals."""
    return int(np.argmax(table.mean(0).round(9)))


def fit(
    task: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: RerankConfig,
    counts: InlierCounts,
    seed: int = 0,
) -> dict:
    """Fits the weight.

    Args:
      task: the labelled queries.
      queries: float32 (Q, D), unit rows, as `task.query_ids`.
      index: (N, D), unit rows, as `task.index_ids`.
      settings: methods, of which the last takes local features; its weight and order do not count.
      counts: of the same queries and index.
      seed: of the halves.

    Returns:
      "rerank", "order" (sum), "weight", "cap", "verify" and "before" (the numbers of the methods
      before), for `methods.as_fitted`; "settings" of the verification; "queries", their number;
      "mAP" with the weight, on the queries that it was fitted on, and "mAP_other_half";
      "mAP_without", of the ranking before; "as_good", the lowest and the highest weight whose mAP
      is lower by 0.005 at most; "curve", a list of [weight, mAP].

    Raises:
      InputError: when fewer than four queries have a positive.
    """
    cap = dataclasses.replace(settings, rerank_order="sum").numbers_of("geometric")["cap"]
    heads = _heads(task, queries, index, settings, counts)
    rows = [[head.average_precision(weight, cap) for weight in WEIGHTS] for head in heads]
    table = np.array([row for row in rows if row[0] is not None])
    if len(table) < 4:
        raise InputError(
            f"{len(table)} queries have a photo of the same place among the index photos; a weight "
            "needs four or more, and is uncertain below a hundred"
        )
    order = np.random.default_rng(seed).permutation(len(table))
    halves = order[::2], order[1::2]
    crossed = [table[half, _best(table[other])] for half, other in (halves, halves[::-1])]
    means, chosen = table.mean(0), _best(table)
    as_good = np.flatnonzero(means >= means[chosen] - _FLAT)
    return {
        "rerank": settings.rerank,
        "order": "sum",
        "weight": WEIGHTS[chosen],
        "cap": int(cap),
        "verify": int(settings.numbers()["verify"]),
        "before": settings.before,
        "settings": to_dict(counts.settings),
        "queries": len(table),
        "mAP_without": float(means[0]),
        "mAP": float(means[chosen]),
        "mAP_other_half": float(np.concatenate(crossed).mean()),
        "as_good": [WEIGHTS[as_good[0]], WEIGHTS[as_good[-1]]],
        "curve": [[weight, float(mean)] for weight, mean in zip(WEIGHTS, means, strict=True)],
    }


def fit_sets(
    task: GroundTruth,
    queries: DescriptorSet,
    index: DescriptorSet,
    settings: RerankConfig,
    sets: dict[str, LocalFeatureSet],
    verification: VerifyConfig,
) -> tuple[dict, GroundTruth, InlierCounts]:
    """Fits the weight on sets, joined by id; of very many queries, on some.

    Args:
      task, settings: see `fit`. A query that is a photo of the index does not count for itself.
      queries, index: their descriptors.
      sets: their local features, by "query" and "index".
      verification: how pairs are verified.

    Returns:
      See `fit`; the queries that were taken; and the inliers of their best photos.

    Raises:
      InputError: when a photo has no local features, or see `fit`.
    """
    task = without_queries(task)
    if len(task.queries) > _QUERIES:
        log.info("the weight is fitted on %d of %d queries", _QUERIES, len(task.queries))
        some = np.sort(np.random.default_rng(0).permutation(len(task.queries))[:_QUERIES])
        names, asked = ([found[i] for i in some] for found in (task.query_ids, task.queries))
        task = dataclasses.replace(task, query_ids=tuple(names), queries=tuple(asked))
    ids = {"query": task.query_ids, "index": task.index_ids}
    counts = local_photos.join(sets, ids, verification.resolved())
    rows = np.asarray(queries.select(task.query_ids))
    return fit(task, rows, index.select(task.index_ids), settings, counts), task, counts


def say(fitted: dict) -> None:
    """Logs what was fitted."""
    log.info(
        "geometric verification, %d queries: mAP %.2f without, %.2f with a weight of %g, %.2f "
        "where the other half of the queries chose it; from %g to %g it is within 0.5 of the best",
        fitted["queries"],
        *(100 * fitted[name] for name in ("mAP_without", "mAP")),
        fitted["weight"],
        100 * fitted["mAP_other_half"],
        *fitted["as_good"],
    )
    if fitted["mAP_other_half"] <= fitted["mAP_without"]:
        log.warning(
            "geometric verification gains nothing on queries that the weight was not fitted on; "
            "larger photos, or more labelled queries, may change that"
        )
