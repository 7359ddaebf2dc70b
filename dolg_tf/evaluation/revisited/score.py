"""Scores by the Revisited Oxford/Paris protocol: easy, medium and hard.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import dataclasses
import logging
from collections.abc import Iterable, Iterator

import numpy as np

from dolg_tf.evaluation import metrics
from dolg_tf.evaluation.revisited import published
from dolg_tf.evaluation.revisited.inputs import NOT_CUT, Descriptors, read_inputs
from dolg_tf.evaluation.revisited.published import percent
from dolg_tf.retrieval.exact.places import count_places
from dolg_tf.retrieval.ground_truth import LABELS, GroundTruth, load_ground_truth
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import files
from dolg_tf.stage.command import one_line
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

# level: (labels that count as positives, labels that are taken out of the ranking)
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
CUTOFFS = (1, 5, 10)
_CROPS = {
    "box": "queries cut to their boxes",
    "none": NOT_CUT,
    None: "not known whether queries were cut to their boxes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevisitedConfig(methods.RerankConfig, NormConfig):
    """The descriptors that are scored, and the ground truth."""

    ground_truth: str = option("gnd_*.pkl or gnd_*.mat: queries, index and matches")
    query_descriptors: str = option(
        "descriptor set of the queries, or .npy with rows as in qimlist"
    )
    index_descriptors: str = option(
        "descriptor set of the index, or .npy with rows as in imlist, then distractors"
    )
    distractor_descriptors: str = option(
        "descriptor set or .npy of photos that match no query; empty: none", ""
    )
    memory_gb: float = option(
        "memory that scoring may take, besides the descriptors mapped from disk", 4.0, unit="GB"
    )
    output: str = option("report.json to write")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.memory_gb < float("inf"):
            raise InputError(f"--memory_gb={self.memory_gb} must be above 0")


# --- rankings -> scores --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LevelScores:
    """The scores of one level, as fractions; None where no query has a positive.

    Attributes:
      mAP: mean of `AP` over the queries that have a positive.
      mP: {1: mP@1, 5: mP@5, 10: mP@10}, mean precision among the first k photos.
      AP: average precision per query; None for a query without positives.
      mAP_interval: [low, high], the 95 % bootstrap interval of `mAP` over queries.
    """

    mAP: float | None
    mP: dict[int, float | None]
    AP: list[float | None]
    mAP_interval: list[float] | None

    def report(self) -> dict:
        """Returns {"mAP", "mP@1", "mP@5", "mP@10", "AP", "mAP_interval"}, plain JSON values."""
        precisions = {f"mP@{k}": value for k, value in self.mP.items()}
        return {"mAP": self.mAP, **precisions, "AP": self.AP, "mAP_interval": self.mAP_interval}


@dataclasses.dataclass(frozen=True)
class RevisitedScores:
    """The scores of one evaluation. `scores["medium"]` is `scores.medium`; `print` shows a table.

    Attributes:
      easy, medium, hard: the scores of each level.
      protocol: the conditions, see `evaluate_revisited`; empty when only rankings were scored.
      without_distractors: the scores of the same search without distractors; None: there are none.
    """

    easy: LevelScores
    medium: LevelScores
    hard: LevelScores
    protocol: dict = dataclasses.field(default_factory=dict)
    without_distractors: "RevisitedScores | None" = None

    def __getitem__(self, level: str) -> LevelScores:
        """Returns the scores of a level: easy, medium or hard."""
        if level not in LEVELS:
            raise KeyError(f"{level!r} is not one of {', '.join(LEVELS)}")
        return getattr(self, level)

    def __str__(self) -> str:
        return table(self)

    def report(self) -> dict:
        """Returns the contents of report.json, plain JSON values."""
        found = {level: self[level].report() for level in LEVELS}
        if self.without_distractors is not None:
            found["without_distractors"] = self.without_distractors.report()
        return {**found, "protocol": self.protocol} if self.protocol else found


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
) -> RevisitedScores:
    """Returns the scores of a search; the arguments are those of `label_places`."""
    return score_places(label_places(ground_truth, queries, index, settings, memory_gb))


def evaluate_revisited(
    ground_truth: files.Path | GroundTruth,
    query_descriptors: Descriptors,
    index_descriptors: Descriptors,
    distractor_descriptors: Descriptors | None = None,
    *,
    rerank: methods.RerankConfig | None = None,
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
      rerank: the re-ranking method and its numbers; None: none.
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
        or distractors are photos of the index.

    Example:
      scores = evaluate_revisited("gnd_roxford5k.pkl", "queries", "index")
      print(scores.medium.mAP, scores.hard.mP[10])

    Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
    """
    settings, path = rerank or methods.RerankConfig(), None
    if not isinstance(ground_truth, GroundTruth):
        path, ground_truth = ground_truth, load_ground_truth(ground_truth)
    inputs = read_inputs(
        ground_truth,
        path,
        query_descriptors,
        index_descriptors,
        distractor_descriptors,
        normalize=normalize,
    )
    protocol = inputs.protocol | {"rerank": settings.report()}

    def run(index) -> RevisitedScores:
        scores = score_descriptors(ground_truth, inputs.queries, index, settings, memory_gb)
        distractors = len(index) - len(inputs.index)
        log.info("\n" + summary(ground_truth, scores, protocol, distractors))
        return scores

    alone = run(inputs.index)
    if not len(inputs.distractors):
        return dataclasses.replace(alone, protocol=protocol)
    # Re-ranking looks at the whole index, so neither follows from the other.
    together = run(Rows([inputs.index, inputs.distractors]))
    return dataclasses.replace(together, protocol=protocol, without_distractors=alone)


def evaluate(settings: RevisitedConfig) -> dict:
    """Searches and scores: descriptors in, report.json out.

    Returns:
      The contents of report.json: `RevisitedScores.report` of `evaluate_revisited`.

    Raises:
      InputError: see `evaluate_revisited`.
    """
    files.check_output(settings.output, overwrite=True)
    scores = evaluate_revisited(
        settings.ground_truth,
        settings.query_descriptors,
        settings.index_descriptors,
        settings.distractor_descriptors or None,
        rerank=settings,
        memory_gb=settings.memory_gb,
        normalize=settings.normalize,
    )
    report = scores.report()
    files.write_json(settings.output, report)
    return report


# --- scores -> text ------------------------------------------------------------------


def summary(task: GroundTruth, scores: RevisitedScores, protocol: dict, distractors: int) -> str:
    """Returns what one evaluation prints: its conditions, its scores and published ones.

    Args:
      task: the ground truth.
      scores: its scores.
      protocol: of the report.
      distractors: how many photos were searched besides those of the ground truth.
    """
    title = f"{task.name}: {len(task.query_ids):,} queries, {len(task.index_ids):,} photos"
    if distractors:
        title += f" and {distractors:,} distractors"
    title += "; " + _CROPS[protocol["query_crop"]]
    numbers = dict(protocol["rerank"])
    if (method := numbers.pop("method")) != "none":
        title += ", ".join(["; re-ranked: " + method, *(f"{k} {x:g}" for k, x in numbers.items())])
    lines = [title, *(f"note: {remark}" for remark in protocol["remarks"])]
    lines = [one_line(line) for line in lines]
    lines.append(table(scores))
    dataset = published.dataset_of(task)
    if dataset is not None:
        own = (scores.medium.mAP, scores.hard.mAP)
        lines += ["", *published.beside(own, protocol["query_crop"], dataset, distractors)]
    return "\n".join(lines)


def table(scores: RevisitedScores) -> str:
    """Returns the scores as a small text table, in percent, with a dash where there are none."""
    names = ("mAP", *(f"mP@{k}" for k in CUTOFFS))
    lines = [" " * 8 + "".join(f"{name:>7}" for name in names) + "   95 % of mAP"]
    for level in LEVELS:
        row = scores[level]
        values = (row.mAP, *(row.mP[k] for k in CUTOFFS))
        line = f"{level:<8}" + "".join(map(percent, values))
        if row.mAP_interval is not None:
            low, high = row.mAP_interval
            line += f"   {100 * low:.2f}-{100 * high:.2f}"
        lines.append(line)
    return "\n".join(lines)
