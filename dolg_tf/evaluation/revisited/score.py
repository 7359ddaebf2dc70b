"""Scores by the Revisited Oxford/Paris protocol: easy, medium and hard.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator

import numpy as np

from dolg_tf.evaluation import local_photos, metrics
from dolg_tf.evaluation.local_photos import LocalConfig, LocalSet
from dolg_tf.evaluation.revisited.inputs import Descriptors, Inputs, read_inputs
from dolg_tf.evaluation.revisited.scores import (
    CUTOFFS,
    LEVELS,
    LevelScores,
    RevisitedScores,
    summary,
)
from dolg_tf.evaluation.revisited.searched import read_searched
from dolg_tf.retrieval.exact.places import count_places
from dolg_tf.retrieval.ground_truth import LABELS, GroundTruth, load_ground_truth
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.reranked import Reranked
from dolg_tf.retrieval.rows import Rows
from dolg_tf.retrieval.scores import Scores
from dolg_tf.retrieval.verification.pairs import DEFAULT, VerifyConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

_DESCRIPTORS = ("query_descriptors", "index_descriptors", "distractor_descriptors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevisitedConfig(methods.RerankConfig, LocalConfig, NormConfig):
    """The descriptors that are scored, and the ground truth."""

    ground_truth: str = option("gnd_*.pkl or gnd_*.mat: queries, index and matches")
    query_descriptors: str = option(
        "descriptor set of the queries, or .npy with rows as in qimlist", ""
    )
    index_descriptors: str = option(
        "descriptor set of the index, or .npy with rows as in imlist, then distractors", ""
    )
    scores: str = option(
        "instead of descriptors, scores (a directory) of all photos for each query, as `dolg asmk "
        "query` writes them; photos that the ground truth does not name are distractors",
        "",
    )
    distractor_descriptors: str = option(
        "descriptor set or .npy of photos that match no query; empty: none", ""
    )
    distractor_local: str = option("local feature set of the distractors, likewise", "")
    memory_gb: float = option(
        "memory that scoring may take, besides the descriptors mapped from disk", 4.0, unit="GB"
    )
    output: str = option("report.json to write")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.memory_gb < float("inf"):
            raise InputError(f"--memory_gb={self.memory_gb} must be above 0")
        for name in _DESCRIPTORS:
            if self.scores and getattr(self, name):
                raise InputError(f"--{name} beside --scores: give descriptors or scores; omit one")
            if not self.scores and not getattr(self, name) and name in _DESCRIPTORS[:2]:
                raise InputError(f"--{name} is missing; give it, or --scores in place of both")
        if self.scores and self.normalize:
            raise InputError("--normalize is for descriptors; omit it with --scores")
        if self.scores:
            _check_scores_rerank(self)


# --- rankings -> scores --------------------------------------------------------------


def score_places(places: Iterable[dict[str, np.ndarray]]) -> RevisitedScores:
    """Returns the scores of rankings from the places of the photos that count.

    Args:
      places: per query {"easy", "hard", "junk": int (n,), places in its ranking, from 0}.
    """
    ap = {level: [] for level in LEVELS}
    precision = {level: {k: [] for k in CUTOFFS} for level in LEVELS}
    for query in places:
        for level in LEVELS:
            ranks = level_ranks(query, level)
            found = metrics.revisited_average_precision(ranks) if len(ranks) else None
            ap[level].append(found)
            for k in CUTOFFS if len(ranks) else ():
                precision[level][k].append(metrics.revisited_precision_at(ranks, k))
    return RevisitedScores(**{level: _level(ap[level], precision[level]) for level in LEVELS})


def _level(ap: list[float | None], precision: dict[int, list[float]]) -> LevelScores:
    means = {k: metrics.mean(found) for k, found in precision.items()}
    return LevelScores(metrics.mean(ap), means, ap, metrics.bootstrap_interval(ap))


def level_ranks(places: dict[str, np.ndarray], level: str) -> np.ndarray:
    """Returns int64 (P,), ascending: the ranks of a query's positives once junk is taken out.

    Args:
      places: those of one query, see `score_places`.
      level: easy, medium or hard.
    """
    positive, junk = LEVELS[level]
    ranks = np.sort(np.concatenate([places[label] for label in positive]))
    return metrics.remove_junk(ranks, np.concatenate([places[label] for label in junk]))


# --- descriptors -> scores -----------------------------------------------------------


def label_places(
    ground_truth: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: methods.RerankConfig | None = None,
    memory_gb: float = 4.0,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the places of the photos that count, for `score_places`.

    The search is exact, by inner product, and sorts nothing.

    Args:
      ground_truth: the task.
      queries: float32 (Q, D), rows as `ground_truth.query_ids`.
      index: (N, D), rows as `ground_truth.index_ids`, then distractors.
      settings: re-ranking; None: none.
      memory_gb: see `places.count_places`.
    """
    found = methods.apply(settings or methods.RerankConfig(), queries, index)
    return places_in(ground_truth, found, memory_gb)


def places_in(
    ground_truth: GroundTruth, found: Reranked, memory_gb: float = 4.0
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the places that the photos that count have in rankings."""
    labelled = {}  # a query that the ground truth shares is there once
    for query in ground_truth.queries:
        if id(query) not in labelled:
            labelled[id(query)] = np.concatenate([getattr(query, label) for label in LABELS])
    asked = [labelled[id(query)] for query in ground_truth.queries]
    places = count_places(found.index, found.queries, asked, found.head, memory_gb)
    for query, these in zip(ground_truth.queries, places, strict=True):
        ends = np.cumsum([len(getattr(query, label)) for label in LABELS])
        yield dict(zip(LABELS, np.split(these, ends[:-1]), strict=True))


def score_descriptors(
    ground_truth: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: methods.RerankConfig | None = None,
    memory_gb: float = 4.0,
    counts: InlierCounts | None = None,
) -> RevisitedScores:
    """Returns the scores of a search.

    Args:
      ground_truth, queries, index, settings, memory_gb: see `label_places`.
      counts: for a re-ranking that takes local features. The photos that a level does not count are
        not among those that are verified for it, so each level has a ranking of its own.
    """
    settings = settings or methods.RerankConfig()
    if not settings.local:
        return score_places(label_places(ground_truth, queries, index, settings, memory_gb))
    before, levels = methods.by_descriptors(settings, queries, index), {}
    for level, (_, ignored) in LEVELS.items():
        junk = [
            np.concatenate([getattr(query, label) for label in ignored])
            for query in ground_truth.queries
        ]
        found = methods.by_local_features(settings, before, counts, junk)
        levels[level] = score_places(places_in(ground_truth, found, memory_gb))[level]
    return RevisitedScores(**levels)


def evaluate_revisited(
    ground_truth: files.Path | GroundTruth,
    query_descriptors: Descriptors,
    index_descriptors: Descriptors,
    distractor_descriptors: Descriptors | None = None,
    *,
    rerank: methods.RerankConfig | None = None,
    query_local: LocalSet | None = None,
    index_local: LocalSet | None = None,
    distractor_local: LocalSet | None = None,
    verification: VerifyConfig = DEFAULT,
    memory_gb: float = 4.0,
    normalize: bool = False,
) -> RevisitedScores:
    """Searches exactly by inner product and scores by the Revisited Oxford/Paris protocol.

    Descriptors must have unit L2 norm. Sets stay on disk: a million distractors need no memory
    beyond `memory_gb`.

    Args:
      ground_truth: path of a gnd_*.pkl or gnd_*.mat, or a ground truth from `load_ground_truth`.
      query_descriptors: a descriptor set (its path, or one that was read), joined by id; or rows in
        the order of `qimlist` (the path of an `.npy`, or a float array (Q, D)).
      index_descriptors: the same for the index. Rows are in the order of `imlist`; those after its
        last photo are distractors.
      distractor_descriptors: the same for more photos that match no query; None: none.
      rerank: the re-ranking methods and their numbers; None: none.
      query_local, index_local, distractor_local: local feature sets (a path, or one that was read),
        joined by id, for the method "geometric".
      verification: how it matches and verifies.
      memory_gb: GB that scoring may take, besides the descriptors mapped from disk.
      normalize: whether descriptors are divided by their norms; else those of other norms are
        refused.

    Returns:
      The scores over the whole index; with distractors also those `without_distractors`. The
      `protocol` says what was searched and how it was described, with None for what an array does
      not tell.

    Raises:
      InputError: when a file is missing or damaged, a photo has no descriptor, a row is not
        finite or not of unit norm, the sets come from different models or have different widths,
        or distractors are photos of the index; or when local features are needed and missing, or
        given and not needed.

    Example:
      scores = evaluate_revisited("gnd_roxford5k.pkl", "queries", "index")
      print(scores.medium.mAP, scores.hard.mP[10])

    Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
    """
    settings = rerank or methods.RerankConfig()
    local = {"query_local": query_local, "index_local": index_local}
    if distractor_descriptors is not None or distractor_local is not None:
        local["distractor_local"] = distractor_local
    local_photos.check_flags(settings, verification, **local)
    task, path = _read_task(ground_truth)
    sets = (query_descriptors, index_descriptors, distractor_descriptors)
    inputs = read_inputs(task, path, *sets, normalize=normalize)
    return _evaluate(task, inputs, settings, local, verification, memory_gb)


def evaluate_scores(
    ground_truth: files.Path | GroundTruth,
    found: files.Path | Scores,
    *,
    rerank: methods.RerankConfig | None = None,
    query_local: LocalSet | None = None,
    index_local: LocalSet | None = None,
    distractor_local: LocalSet | None = None,
    verification: VerifyConfig = DEFAULT,
    memory_gb: float = 4.0,
) -> RevisitedScores:
    """Scores a search that was made elsewhere, such as ASMK's; equals come by their place in it.

    Args:
      ground_truth, query_local, index_local, distractor_local, verification, memory_gb: see
        `evaluate_revisited`.
      found: the scores of all photos for each query (a directory, or as `scores.read` returns it).
        Photos that the ground truth does not name are distractors.
      rerank: "geometric" with its numbers; None: none.

    Returns:
      As `evaluate_revisited`; `protocol["search"]` says how the scores were made.

    Raises:
      InputError: when a query or a photo has no scores, a file is damaged, or local features are
        needed and missing.
    """
    settings = rerank or methods.RerankConfig()
    _check_scores_rerank(settings)
    task, path = _read_task(ground_truth)
    inputs = read_searched(task, path, found)
    local = {"query_local": query_local, "index_local": index_local}
    if distractor_local is not None or (settings.local and len(inputs.distractors)):
        # One search, one set: distractors were indexed with the others.
        local["distractor_local"] = distractor_local or index_local
    local_photos.check_flags(settings, verification, **local)
    return _evaluate(task, inputs, settings, local, verification, memory_gb)


def _check_scores_rerank(settings: methods.RerankConfig) -> None:
    """Refuses methods that need descriptors."""
    if settings.methods not in ((), ("geometric",)):
        raise InputError(
            f"--rerank={settings.rerank} needs descriptors, and --scores has none; of all methods "
            "it takes geometric alone"
        )


def _read_task(ground_truth: files.Path | GroundTruth) -> tuple[GroundTruth, files.Path | None]:
    """Returns the ground truth and its file, None where it came from none."""
    if isinstance(ground_truth, GroundTruth):
        return ground_truth, None
    return load_ground_truth(ground_truth), ground_truth


def _evaluate(
    ground_truth: GroundTruth,
    inputs: Inputs,
    settings: methods.RerankConfig,
    local: dict[str, LocalSet | None],
    verification: VerifyConfig,
    memory_gb: float,
) -> RevisitedScores:
    """Returns the scores of inputs, with distractors also those without."""
    protocol, counts = inputs.protocol | {"rerank": settings.report()}, None
    if settings.local:
        verification = verification.resolved(delg=settings.order == "delg")
        sets = {name.removesuffix("_local"): local_photos.read(x) for name, x in local.items()}
        counts, told = _local_inputs(ground_truth, inputs, sets, verification)
        protocol |= told

    def run(index) -> RevisitedScores:
        scores = score_descriptors(ground_truth, inputs.queries, index, settings, memory_gb, counts)
        distractors = len(index) - len(inputs.index)
        log.info("\n" + summary(ground_truth, scores, protocol, distractors))
        return scores

    alone = run(inputs.index)
    if not len(inputs.distractors):
        return dataclasses.replace(alone, protocol=protocol)
    # Re-ranking looks at the whole index, so neither follows from the other.
    together = run(Rows([inputs.index, inputs.distractors]))
    return dataclasses.replace(together, protocol=protocol, without_distractors=alone)


def _local_inputs(
    task: GroundTruth,
    inputs: Inputs,
    sets: dict[str, LocalFeatureSet],
    verification: VerifyConfig,
) -> tuple[InlierCounts, dict]:
    """Joins local features with the descriptors of a task.

    Returns:
      The counts, and what they add to the protocol.

    Raises:
      InputError: when distractors have no names, or see `local_photos.join`.
    """
    ids = {"query": task.query_ids, "index": task.index_ids}
    if len(inputs.distractors):
        if inputs.distractor_ids is None:
            raise InputError(
                "distractors in an .npy have no names by which local features could be joined; "
                "give them as a descriptor set, by --distractor_descriptors"
            )
        ids["distractor"] = inputs.distractor_ids
    counts = local_photos.join(sets, ids, verification)
    made = inputs.protocol["model_hash"], inputs.protocol["query_crop"]
    return counts, {
        "verification": local_photos.protocol(sets, verification),
        "remarks": inputs.protocol["remarks"] + local_photos.remarks(sets, *made),
    }


def evaluate(settings: RevisitedConfig, verification: VerifyConfig = DEFAULT) -> dict:
    """Searches and scores: descriptors in, report.json out.

    Returns:
      The contents of report.json: `RevisitedScores.report` of `evaluate_revisited`.

    Raises:
      InputError: see `evaluate_revisited`.
    """
    files.check_output(settings.output, overwrite=True)
    common = {
        "rerank": settings,
        "query_local": settings.query_local or None,
        "index_local": settings.index_local or None,
        "distractor_local": settings.distractor_local or None,
        "verification": verification,
        "memory_gb": settings.memory_gb,
    }
    if settings.scores:
        scores = evaluate_scores(settings.ground_truth, settings.scores, **common)
    else:
        scores = evaluate_revisited(
            settings.ground_truth,
            settings.query_descriptors,
            settings.index_descriptors,
            settings.distractor_descriptors or None,
            normalize=settings.normalize,
            **common,
        )
    report = scores.report()
    files.write_json(settings.output, report)
    return report
