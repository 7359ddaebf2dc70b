"""Scores of the Revisited Oxford/Paris protocol: easy, medium and hard.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import dataclasses
import logging

import numpy as np

from dolg_tf.evaluation import metrics
from dolg_tf.evaluation.revisited import published
from dolg_tf.evaluation.revisited.inputs import NOT_CUT, read_inputs
from dolg_tf.retrieval.descriptors import Rows
from dolg_tf.retrieval.exact.places import count_places
from dolg_tf.retrieval.ground_truth import LABELS, GroundTruth, load_ground_truth
from dolg_tf.retrieval.rerank import methods
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

# level: (labels that count as positives, labels taken out of the ranking)
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
class RevisitedConfig(methods.RerankConfig):
    """Which descriptors are scored against which ground truth."""

    ground_truth: str = option("gnd_*.pkl or gnd_*.mat: queries, index and what matches")
    query_descriptors: str = option("descriptor set or .npy (rows as in qimlist) of the queries")
    index_descriptors: str = option(
        "descriptor set or .npy (rows as in imlist, then distractors) of the index"
    )
    distractor_descriptors: str = option(
        "descriptor set or .npy of photos that match no query; empty: none", ""
    )
    memory_gb: float = option(
        "memory that scoring may take, beside the descriptors mapped from disk", 4.0, unit="GB"
    )
    output: str = option("report.json to write")

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.memory_gb < float("inf"):
            raise InputError(f"--memory_gb={self.memory_gb} must be above 0")


# --- rankings -> scores --------------------------------------------------------------


def score_places(places: list[dict[str, np.ndarray]]) -> dict:
    """Returns the scores of rankings, as fractions, from the places of the photos that count.

    Args:
      places: for each query {"easy", "hard", "junk": int (n,), places from 0 in its ranking}.

    Returns:
      {"easy"|"medium"|"hard": {"mAP", "mP@1", "mP@5", "mP@10", "AP": [one a query],
      "mAP_interval": [low, high]}}; None stands for a query without positives and for the mean
      of none.
    """
    return {level: _score_level(places, level) for level in LEVELS}


def level_ranks(places: dict[str, np.ndarray], level: str) -> np.ndarray:
    """Returns int64 (P,), ascending: where a query's positives stand once junk is taken out.

    Args:
      places: of one query, see `score_places`.
      level: easy, medium or hard.
    """
    positive, junk = LEVELS[level]
    ranks = np.sort(np.concatenate([places[label] for label in positive]))
    return metrics.remove_junk(ranks, np.concatenate([places[label] for label in junk]))


def _score_level(places: list[dict[str, np.ndarray]], level: str) -> dict:
    precision = {k: [] for k in CUTOFFS}
    ap = []
    for query in places:
        ranks = level_ranks(query, level)
        ap.append(metrics.revisited_average_precision(ranks) if len(ranks) else None)
        for k in CUTOFFS:
            precision[k].append(metrics.revisited_precision_at(ranks, k) if len(ranks) else None)
    return {
        "mAP": metrics.mean(ap),
        **{f"mP@{k}": metrics.mean(precision[k]) for k in CUTOFFS},
        "AP": ap,
        "mAP_interval": metrics.bootstrap_interval(ap),
    }


# --- descriptors -> scores -----------------------------------------------------------


def label_places(
    ground_truth: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: methods.RerankConfig | None = None,
    memory_gb: float = 4.0,
) -> list[dict[str, np.ndarray]]:
    """Returns where the photos that count stand in the rankings, for `score_places`.

    Exact search by inner product, without sorting.

    Args:
      ground_truth: the task.
      queries: float32 (Q, D), rows as `ground_truth.query_ids`.
      index: (N, D), rows as `ground_truth.index_ids`, then distractors.
      settings: of the re-ranking; None: none.
      memory_gb: see `places.count_places`.
    """
    found = methods.apply(settings or methods.RerankConfig(), queries, index)
    labelled = [[getattr(query, label) for label in LABELS] for query in ground_truth.queries]
    places = count_places(
        found.index,
        found.queries,
        [np.concatenate(rows) for rows in labelled],
        found.head,
        memory_gb,
    )
    split = [
        np.split(these, np.cumsum([*map(len, labels)])[:-1])
        for these, labels in zip(places, labelled, strict=True)
    ]
    return [dict(zip(LABELS, these, strict=True)) for these in split]


def score_descriptors(
    ground_truth: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    settings: methods.RerankConfig | None = None,
    memory_gb: float = 4.0,
) -> dict:
    """Returns the scores, see `score_places`, of what `label_places` takes."""
    return score_places(label_places(ground_truth, queries, index, settings, memory_gb))


def evaluate(settings: RevisitedConfig) -> dict:
    """Searches and scores: descriptors in, report.json out.

    Returns:
      What it wrote: `score_places` of the whole index, under "without_distractors" the same without
      them where there are any, and under "protocol" how the scores were taken.

    Raises:
      InputError: when a photo has no descriptor or the sets are of different models.
    """
    files.check_output(settings.output, overwrite=True)
    task = load_ground_truth(settings.ground_truth)
    inputs = read_inputs(
        task,
        settings.ground_truth,
        settings.query_descriptors,
        settings.index_descriptors,
        settings.distractor_descriptors,
    )
    protocol = inputs.protocol | {"rerank": {"method": settings.rerank, **settings.numbers()}}

    def run(index) -> dict:
        scores = score_descriptors(task, inputs.queries, index, settings, settings.memory_gb)
        log.info("\n%s", summary(task, scores, protocol, len(index) - len(inputs.index)))
        return scores

    report = run(inputs.index)
    if len(inputs.distractors):
        # Re-ranking looks at the whole index, so neither follows from the other.
        together = run(Rows([inputs.index, inputs.distractors]))
        report = {**together, "without_distractors": report}
    report["protocol"] = protocol
    files.write_json(settings.output, report)
    return report


# --- scores -> text ------------------------------------------------------------------


def summary(task: GroundTruth, scores: dict, protocol: dict, distractors: int) -> str:
    """Returns what is printed of one evaluation: conditions, scores, and published ones.

    Args:
      task: the ground truth.
      scores: of `score_places`.
      protocol: of the report.
      distractors: photos that were searched beside those of the ground truth.
    """
    title = f"{task.name}: {len(task.query_ids):,} queries, {len(task.index_ids):,} photos"
    if distractors:
        title += f" and {distractors:,} distractors"
    title += "; " + _CROPS[protocol["query_crop"]]
    numbers = dict(protocol["rerank"])
    if (method := numbers.pop("method")) != "none":
        title += ", ".join(["; re-ranked: " + method, *(f"{k} {x:g}" for k, x in numbers.items())])
    lines = [title]
    lines += [f"note: {remark}" for remark in protocol["remarks"]]
    lines.append(table(scores))
    dataset = published.dataset_of(task)
    if dataset is not None:
        lines += ["", *_beside_published(scores, protocol, (dataset, distractors))]
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return f"{'-' if value is None else format(100 * value, '.2f'):>7}"


def table(scores: dict) -> str:
    """Returns the scores as a small text table, in percent; a dash where nothing was scored."""
    names = ("mAP", *(f"mP@{k}" for k in CUTOFFS))
    lines = [" " * 8 + "".join(f"{name:>7}" for name in names) + "   95 % of mAP"]
    for level in LEVELS:
        row = scores[level]
        line = f"{level:<8}" + "".join(_percent(row[name]) for name in names)
        if row["mAP_interval"] is not None:
            low, high = row["mAP_interval"]
            line += f"   {100 * low:.2f}-{100 * high:.2f}"
        lines.append(line)
    return "\n".join(lines)


def _beside_published(scores: dict, protocol: dict, key: tuple[str, int]) -> list[str]:
    """Returns the published rows of one data set and number of distractors, and one's own."""
    rows = [row for row in published.ROWS if key in row.percent]
    if not rows:
        return [
            f"nothing is published with {key[1]:,} distractors; R1M has {published.DISTRACTORS:,}"
        ]
    crops = {True: "cut", False: "NOT cut", "box": "cut", "none": "NOT cut", None: "not known"}
    lines = [f"{'mAP in percent':<22} medium   hard  {'queries':<9}  source"]
    for row in rows:
        medium, hard = row.percent[key]
        cells = f"{medium:>7.2f}{hard:>7.2f}  {crops[row.cropped]:<9}"
        lines.append(f"{row.method:<22}{cells}  {row.source}")
    own = "".join(_percent(scores[level]["mAP"]) for level in ("medium", "hard"))
    lines.append(f"{'yours':<22}{own}  {crops[protocol['query_crop']]:<9}")
    return [line.rstrip() for line in lines]
