"""Scores of a search elsewhere, such as ASMK's, as inputs of a score on Revisited Oxford/Paris.

The search has compared each query with each photo already. Here a photo's row is its scores for all
queries, and a query's row is one of the identity matrix: their inner product is the score, bit for
bit, so that rankings, ties and geometric verification are those of descriptors.
"""

import numpy as np

from dolg_tf.evaluation.revisited import inputs
from dolg_tf.retrieval import joining, scores
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

_MADE_BY = ("method", "alpha", "threshold", "assignments")
_INDEX = ("variant", "words", "binary", "idf", "regions")


def read_searched(
    task: GroundTruth, ground_truth: files.Path | None, found: files.Path | scores.Scores
) -> inputs.Inputs:
    """Reads the scores of a task; the matrix stays on disk.

    Photos that the ground truth does not name were searched too, and are distractors.

    Args:
      task: the ground truth.
      ground_truth: its file; None: it came from no file.
      found: the scores, or their directory.

    Raises:
      InputError: when a query or photo has no scores, or a score is not finite.
    """
    found = found if isinstance(found, scores.Scores) else scores.read(found)
    queries = _rows(task.query_ids, found.queries, found)
    columns = _rows(task.index_ids, found.ids, found)
    for query in queries:
        if not np.isfinite(found.scores[query]).all():
            raise InputError(f"{found.source}: not all scores of {found.queries[query]} are finite")
    others = np.setdiff1d(np.arange(len(found.ids)), columns)
    index = Rows([_columns(found.scores, queries, columns)])
    distractors = Rows([_columns(found.scores, queries, others)])
    protocol = {
        "ground_truth": task.name,
        "queries": len(task.query_ids),
        "index": len(task.index_ids),
        "distractors": len(others),
        "query_crop": {True: "box", False: "none", None: None}[found.meta.get("crop")],
        "image_variant": inputs.image_variant(ground_truth),
        "search": _search(found.meta),
    }
    for key in ("model_hash", "upright", "query_scale"):
        protocol[key] = found.meta.get(key)
    protocol["remarks"] = inputs.remarks_on_task(task) + inputs.remarks(protocol)
    return inputs.Inputs(
        np.eye(len(queries), dtype=np.float32),
        index,
        distractors,
        protocol,
        found.meta.get("image_root") or "",
        tuple(found.ids[column] for column in others),
    )


def _rows(names, ids, found: scores.Scores) -> np.ndarray:
    rows = joining.find_rows(names, ids, found.source)
    if (rows < 0).any():
        raise InputError(
            f"{found.source} lacks {joining.of_which(names, rows, ids)}; search again, with the "
            "photos of this ground truth"
        )
    return rows


def _columns(matrix: np.ndarray, queries: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns float32 (N, Q) of scores (Q, N); a run of columns of all queries stays on disk."""
    if np.array_equal(queries, np.arange(len(matrix))) and len(columns):
        first, last = columns[0], columns[-1] + 1
        if np.array_equal(columns, np.arange(first, last)):
            return matrix[:, first:last].T
    found = np.empty((len(columns), len(queries)), np.float32)
    for place, query in enumerate(queries):
        found[:, place] = matrix[query][columns]
    return found


def _search(meta: dict) -> dict:
    """Returns how the scores were made, plain JSON values."""
    index = meta.get("index")
    index = index if isinstance(index, dict) else {}
    made = {key: meta[key] for key in _MADE_BY if key in meta}
    return made | {key: index[key] for key in _INDEX if key in index}
