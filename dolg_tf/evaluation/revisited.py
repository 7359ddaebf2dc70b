"""Scores of the Revisited Oxford/Paris protocol: easy, medium and hard.

Reference: Radenović et al., "Revisiting Oxford and Paris", CVPR 2018.
"""

import dataclasses
import logging

import numpy as np

from dolg_tf import config, files
from dolg_tf.config import InputError, option
from dolg_tf.evaluation import metrics
from dolg_tf.retrieval import descriptors, search
from dolg_tf.retrieval.ground_truth import GroundTruth, load_ground_truth
from dolg_tf.retrieval.rows import Rows

log = logging.getLogger(__name__)

# level: (labels that count as positives, labels taken out of the ranking)
LEVELS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
CUTOFFS = (1, 5, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RevisitedConfig:
    """Which descriptors are scored against which ground truth."""

    ground_truth: str = option("gnd_*.pkl or gnd_*.mat: queries, index and what matches")
    query_descriptors: str = option("descriptor set or .npy (rows as in qimlist) of the queries")
    index_descriptors: str = option("descriptor set or .npy (rows as in imlist) of the index")
    distractor_descriptors: str = option(
        "descriptor set or .npy of photos that match no query; empty: none", ""
    )
    output: str = option("report.json to write")


# --- rankings -> scores --------------------------------------------------------------


def score(ground_truth: GroundTruth, ranks: np.ndarray) -> dict:
    """Returns the scores of rankings, as fractions.

    Args:
      ground_truth: the task.
      ranks: int (Q, N), for each query all rows of the index, best first; rows from
        `len(ground_truth.index_ids)` on are distractors.

    Returns:
      {"easy"|"medium"|"hard": {"mAP", "mP@1", "mP@5", "mP@10", "AP": [one a query],
      "mAP_interval": [low, high]}}; None stands for a query without positives and for the mean
      of none.
    """
    found = []
    for query, ranking in zip(ground_truth.queries, np.asarray(ranks), strict=True):
        place = np.empty(len(ranking), np.int64)
        place[ranking] = np.arange(len(ranking))
        found.append({label: place[getattr(query, label)] for label in ("easy", "hard", "junk")})
    return score_places(found)


def score_places(places: list[dict[str, np.ndarray]]) -> dict:
    """Returns the scores, see `score`, from the places of the photos that count.

    Args:
      places: for each query {"easy", "hard", "junk": int (n,), places from 0 in its ranking}.
    """
    return {level: _score_level(places, *labels) for level, labels in LEVELS.items()}


def _score_level(places, positive: tuple[str, ...], junk: tuple[str, ...]) -> dict:
    precision = {k: [] for k in CUTOFFS}
    ap = []
    for query in places:
        ranks = np.sort(np.concatenate([query[label] for label in positive]))
        ranks = metrics.remove_junk(ranks, np.concatenate([query[label] for label in junk]))
        ap.append(metrics.average_precision(ranks) if len(ranks) else None)
        for k in CUTOFFS:
            precision[k].append(metrics.precision_at(ranks, k) if len(ranks) else None)
    return {
        "mAP": metrics.mean(ap),
        **{f"mP@{k}": metrics.mean(precision[k]) for k in CUTOFFS},
        "AP": ap,
        "mAP_interval": metrics.bootstrap_interval(ap),
    }


# --- descriptors -> scores -----------------------------------------------------------


def _check_same_model(sets: list[descriptors.DescriptorSet]) -> None:
    """Descriptors of two networks live in two spaces: their products mean nothing."""
    for key in ("model_hash", "whitening"):
        values = {found.source: found.meta[key] for found in sets if key in found.meta}
        if len(set(map(repr, values.values()))) > 1:
            told = ", ".join(f"{source}: {value}" for source, value in values.items())
            raise InputError(f"descriptors differ in {key} ({told}); extract all with one model")


def _protocol(task: GroundTruth, queries, index_set, distractors: int) -> dict:
    """Returns under what conditions the scores were taken; None where an `.npy` does not say."""
    crop = queries.meta.get("crop")
    return {
        "ground_truth": task.name,
        "queries": len(task.query_ids),
        "index": len(task.index_ids),
        "distractors": distractors,
        "query_crop": {True: "box", False: "none", None: None}[crop],
        "model_hash": queries.meta.get("model_hash"),
        "query_scales": queries.meta.get("scales"),
        "index_scales": index_set.meta.get("scales"),
        "query_max_side": queries.meta.get("max_side"),
        "index_max_side": index_set.meta.get("max_side"),
        "whitening": queries.meta.get("whitening"),
    }


def table(scores: dict) -> str:
    """Returns the scores as a small text table, in percent; a dash where nothing was scored."""

    def percent(value):
        return f"{'-' if value is None else format(100 * value, '.2f'):>7}"

    names = ("mAP", *(f"mP@{k}" for k in CUTOFFS))
    lines = [" " * 8 + "".join(f"{name:>7}" for name in names) + "   95 % of mAP"]
    for level in LEVELS:
        row = scores[level]
        line = f"{level:<8}" + "".join(percent(row[name]) for name in names)
        if row["mAP_interval"] is not None:
            low, high = row["mAP_interval"]
            line += f"   {100 * low:.2f}-{100 * high:.2f}"
        lines.append(line)
    return "\n".join(lines)


def evaluate(settings: RevisitedConfig) -> dict:
    """Searches and scores: descriptors in, report.json out.

    Returns:
      What it wrote: `score` and "protocol".

    Raises:
      InputError: when a photo has no descriptor or the sets are of different models.
    """
    task = load_ground_truth(settings.ground_truth)
    queries = descriptors.read(settings.query_descriptors)
    index_set = descriptors.read(settings.index_descriptors)
    if queries.ids is None and len(queries) != len(task.query_ids):
        raise InputError(
            f"{queries.source} has {len(queries)} rows for {len(task.query_ids)} queries"
        )
    rows = [index_set.select(task.index_ids)]
    others = len(index_set) - len(task.index_ids)
    if others and index_set.ids is None:
        rows.append(index_set.descriptors[len(task.index_ids) :])
    elif others:
        log.info("%d photos of %s are not in the ground truth", others, index_set.source)
    sets = [queries, index_set]
    if settings.distractor_descriptors:
        sets.append(descriptors.read(settings.distractor_descriptors))
        rows.append(sets[-1].descriptors)
    _check_same_model(sets)
    if len({part.shape[1] for part in rows}) != 1:
        raise InputError("index and distractors have descriptors of different lengths")
    together = Rows(rows)
    _, ranks = search.search(together, queries.select(task.query_ids))
    report = score(task, ranks)
    log.info("%s\n%s", task.name, table(report))
    report["protocol"] = _protocol(task, queries, index_set, len(together) - len(task.index_ids))
    files.write_json(settings.output, report)
    return report


if __name__ == "__main__":
    config.main(evaluate, RevisitedConfig)
