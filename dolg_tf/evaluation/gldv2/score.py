"""Scores of GLDv2: retrieval mAP@100 and recognition GAP, from a submission or descriptors.

    dolg evaluate gldv2 --task=retrieval --predictions=submission.csv \
        --solution=retrieval_solution_v2.1.csv --output=report.json

Reference: Weyand et al., "Google Landmarks Dataset v2", CVPR 2020.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping

import numpy as np

from dolg_tf.evaluation import metrics
from dolg_tf.evaluation.gldv2 import kaggle_csv
from dolg_tf.evaluation.gldv2.kaggle_csv import Prediction
from dolg_tf.evaluation.gldv2.predictions import PredictionsConfig, predictions
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.index.directory import SAME_SPACE
from dolg_tf.retrieval.meta import FORMAT_VERSIONS
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

CUTOFFS = (1, 5, 10, 100)
PARTS = ("public", "private", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gldv2Config(PredictionsConfig):
    """The predictions that are scored: a submission, or descriptors of queries and index."""

    solution: str = option("GLDv2's solution: id,images,Usage or id,landmarks,Usage")
    output: str = option("report.json to write")
    predictions: str = option(
        "submission to score: id,images or id,landmarks; empty: descriptors", ""
    )
    query_descriptors: str = option("descriptor set of the queries (GLDv2's test photos)", "")
    index_descriptors: str = option(
        "descriptor set of the index; for recognition of the training photos", ""
    )

    def __post_init__(self):
        super().__post_init__()
        sets = (self.query_descriptors, self.index_descriptors)
        if bool(self.predictions) == any(sets) or any(sets) != all(sets):
            raise InputError(
                "give --predictions, or else --query_descriptors and --index_descriptors"
            )
        options = (self.train_csv, self.train_clean_csv, self.labels_csv, self.non_landmarks)
        if self.predictions and any(options):
            raise InputError(
                "--predictions takes no labels and no --non_landmarks, which turn descriptors into "
                "predictions"
            )


# --- predictions -> scores -----------------------------------------------------------


def score_retrieval(
    truth: Mapping[str, tuple[str, ...]], predicted: Mapping[str, Prediction]
) -> dict:
    """Returns the scores of rankings, as fractions; positions count from 1.

    Args:
      truth: {query: the index photos that should be found}.
      predicted: {query: index photos, best first}; a query that is missing has found nothing.
    """
    ap, positions = [], []
    precisions = {k: [] for k in CUTOFFS}
    for query, relevant in truth.items():
        hits = metrics.find_hits(predicted.get(query, ()), set(relevant))
        ap.append(metrics.gldv2_average_precision(hits, len(relevant)))
        positions.append(metrics.first_position(hits))
        for k in CUTOFFS:
            precisions[k].append(metrics.gldv2_precision_at(hits, k))
    return {
        "queries": len(truth),
        "without_prediction": sum(not predicted.get(query) for query in truth),
        "without_positives": sum(not relevant for relevant in truth.values()),
        "mAP@100": metrics.mean(ap),
        "mAP@100_interval": metrics.bootstrap_interval(ap),
        **{f"mP@{k}": metrics.mean(precisions[k]) for k in CUTOFFS},
        "mean_position": metrics.mean(positions),
        "median_position": float(np.median(positions)) if positions else None,
        "AP": ap,
    }


def score_recognition(
    truth: Mapping[str, tuple[str, ...]], predicted: Mapping[str, Prediction]
) -> dict:
    """Returns the scores of recognised landmarks, as fractions.

    Args:
      truth: {query: its landmarks, any of which is right; () for a photo without a landmark}.
      predicted: {query: its `Recognised`}; a query that is missing has no prediction.
    """
    answered = [query for query in truth if predicted.get(query)]
    scores = np.array([predicted[query].score for query in answered], np.float64)
    order = metrics.confidence_order(answered, scores)
    answered = [answered[i] for i in order]
    silent = [query for query in truth if not predicted.get(query)]
    names = [kaggle_csv.landmark_name(predicted[query].landmark) for query in answered]
    correct = np.array(
        [name in truth[query] for name, query in zip(names, answered, strict=True)], bool
    )
    positive = np.array([bool(truth[query]) for query in answered + silent], bool)
    positives = int(positive.sum())
    top1 = np.concatenate([correct, np.zeros(len(silent), bool)])
    top1_of_positives = top1[positive].astype(float).tolist()
    return {
        "queries": len(truth),
        "without_prediction": len(silent),
        "with_landmark": positives,
        "GAP": metrics.global_average_precision(correct, positives),
        "GAP_interval": metrics.gap_interval(top1, positive, len(answered)),
        "GAP_of_landmark_queries": metrics.global_average_precision(
            correct[positive[: len(correct)]], positives
        ),
        "top1": metrics.mean(top1_of_positives),
        "top1_interval": metrics.bootstrap_interval(top1_of_positives),
    }


SCORERS = {"retrieval": score_retrieval, "recognition": score_recognition}


def score(solution: kaggle_csv.Solution, task: str, predicted: Mapping[str, Prediction]) -> dict:
    """Returns {"public"|"private"|"both": scores, "ignored": number of queries left out}."""
    parts = {part: SCORERS[task](getattr(solution, part), predicted) for part in PARTS}
    return {**parts, "ignored": len(solution.ignored)}


# --- command -------------------------------------------------------------------------


def table(report: Mapping) -> str:
    """Returns the scores as a small text table: in percent, positions as they are."""
    names = [name for name in report["both"] if not name.endswith("_interval") and name != "AP"]
    lines = [f"{'':<24}" + "".join(f"{part:>24}" for part in PARTS)]
    for name in names:
        line = f"{name:<24}"
        for part in PARTS:
            value, interval = report[part][name], report[part].get(f"{name}_interval")
            if value is None:
                text = "-"
            elif isinstance(value, int):
                text = f"{value:,}"
            elif name.endswith("_position"):
                text = f"{value:.1f}"
            else:
                text = f"{100 * value:.2f}"
                if interval:
                    text += f" ({100 * interval[0]:.2f}-{100 * interval[1]:.2f})"
            line += f"{text:>24}"
        lines.append(line)
    return "\n".join(lines)


def _protocol(settings: Gldv2Config) -> dict:
    names, made = ["task", "solution"], {}
    if settings.predictions:
        names.append("predictions")
    else:
        names += ["query_descriptors", "index_descriptors"]
        path = pathlib.Path(settings.query_descriptors) / "meta.json"
        about = descriptors.with_defaults(files.read_json(path, FORMAT_VERSIONS))
        made = {key: about[key] for key in SAME_SPACE}  # the index has the same
        if settings.task == "recognition":
            names += ["train_csv", "train_clean_csv", "labels_csv"]
            names += ["top_k", "non_landmarks", "non_landmarks_k"]
    return {name: getattr(settings, name) for name in names} | made


def evaluate(settings: Gldv2Config) -> dict:
    """Scores predictions of a GLDv2 task: those of a submission, or made here from descriptors.

    The Public and the Private part of the solution are scored alone and together; ignored queries
    are left out and not searched.

    Returns:
      The contents of report.json: those of `score`, and "protocol".

    Raises:
      InputError: when a file is damaged or belongs to the other task, or files do not fit together.
    """
    files.check_output(settings.output, overwrite=True)
    solution = kaggle_csv.read_solution(settings.solution, settings.task)
    if settings.predictions:
        found = kaggle_csv.read_predictions(settings.predictions, settings.task, solution)
        return _finish(settings, solution, found)
    with predictions(settings, list(solution.both), settings.output) as found:
        return _finish(settings, solution, {query: made for query, made in found if made})


def _finish(settings: Gldv2Config, solution: kaggle_csv.Solution, predicted: Mapping) -> dict:
    source = settings.predictions or settings.index_descriptors
    kaggle_csv.warn_of_strangers(solution, settings.task, predicted, source)
    report = score(solution, settings.task, predicted)
    log.info(table(report) + f"\n{report['ignored']} ignored queries are left out")
    report["protocol"] = _protocol(settings)
    files.write_json(settings.output, report)
    return report
