"""The CSVs of the GLDv2 challenges: solutions, predictions and sample submissions."""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dolg_tf.evaluation.metrics import GLDV2_DEPTH
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table, write_table

log = logging.getLogger(__name__)

# task: the second column of its CSVs
COLUMNS = {"retrieval": "images", "recognition": "landmarks"}
_USAGES = ("Public", "Private", "Ignored")


class Recognised(NamedTuple):
    """The landmark predicted for a query."""

    landmark: str
    score: float


Prediction = tuple[str, ...] | Recognised
"""The prediction for a query: index photos, best first; or its landmark."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """The right answers.

    Attributes:
      public: {query: its index photos, or its landmarks; () for a photo without a landmark}.
      private: the same for the other part of the queries.
      ignored: queries that are not scored.
    """

    public: Mapping[str, tuple[str, ...]]
    private: Mapping[str, tuple[str, ...]]
    ignored: frozenset[str]

    @property
    def both(self) -> dict[str, tuple[str, ...]]:
        """The scored queries of both parts."""
        return {**self.public, **self.private}


def landmark_name(text: str) -> str:
    """Returns a landmark for comparison: numbers without leading zeros, names as they are."""
    return (text.lstrip("0") or "0") if text.isdecimal() and text.isascii() else text


def _rows(path: files.Path, task: str, *more: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the place, and the values of the id, of the task's column and of more columns.

    Raises:
      InputError: when a column is missing, or an id is empty or repeated.
    """
    columns, seen = ("id", COLUMNS[task], *more), set()
    try:
        for where, values in read_table(path, *([name] for name in columns)):
            if not values[0] or values[0] in seen:
                wrong = "repeated" if values[0] else "empty"
                raise InputError(f"{where}: the id {values[0]!r} is {wrong}")
            seen.add(values[0])
            yield where, values
    except InputError as error:
        raise InputError(f"{error}; --task={task} reads {','.join(columns)}") from error


def read_solution(path: files.Path, task: str) -> Solution:
    """Reads an official solution: id,images,Usage or id,landmarks,Usage.

    Raises:
      InputError: when it belongs to the other task, an id is repeated, a Usage is unknown, or
        no query is scored.
    """
    parts, ignored = {"Public": {}, "Private": {}}, set()
    for where, (id_, truth, usage) in _rows(path, task, "Usage"):
        if usage not in _USAGES:
            raise InputError(f"{where}: Usage is {usage!r}; it must be one of {', '.join(_USAGES)}")
        if usage == "Ignored":
            ignored.add(id_)
        else:
            names = truth.split()
            parts[usage][id_] = tuple(map(landmark_name, names) if task == "recognition" else names)
    if not any(parts.values()):
        raise InputError(f"{path}: no query is Public or Private; is it the whole file?")
    return Solution(parts["Public"], parts["Private"], frozenset(ignored))


def _recognised(text: str, where: str) -> Recognised:
    try:
        name, score = text.split()
        score = float(score)
        if not math.isfinite(score):
            raise ValueError
    except ValueError as error:
        raise InputError(f"{where}: {text!r:.60} is not a landmark and its score") from error
    return Recognised(landmark_name(name), score)


def read_predictions(path: files.Path, task: str, solution: Solution) -> dict[str, Prediction]:
    """Reads a submission: id,images or id,landmarks.

    Args:
      path: the CSV.
      task: retrieval or recognition.
      solution: of the same task; its ignored queries are passed over.

    Returns:
      {query: index photos, best first} or {query: landmark and score}, for each query that has a
      prediction.

    Raises:
      InputError: when it belongs to the other task, an id is repeated or not in the solution, or
        a prediction is malformed.
    """
    scored, found, listed = solution.both, {}, set()
    for where, (id_, text) in _rows(path, task):
        if id_ in solution.ignored:
            continue
        if id_ not in scored:
            raise InputError(f"{where}: the query {id_!r} is not in the solution; is it its CSV?")
        listed.add(id_)
        if text.strip():
            found[id_] = tuple(text.split()) if task == "retrieval" else _recognised(text, where)
    _warn_of_faults(path, list(scored.keys() - listed), len(scored), found, task)
    return found


def _warn_of_faults(path, missing: list[str], scored: int, found: dict, task: str) -> None:
    """Warns of faults that do not keep a submission from being scored."""
    with pathlib.Path(path).open("rb") as file:
        file.seek(-1, 2)
        if file.read() != b"\n":
            log.warning("%s does not end in a line feed; is it the whole file?", path)
    if missing:
        log.warning(
            "%s has no row for %d of %d queries, first %r: they count as having found nothing",
            *(path, len(missing), scored, min(missing)),
        )
    long = sum(len(images) > GLDV2_DEPTH for images in found.values()) if task == "retrieval" else 0
    if long:
        log.warning(
            "%s: only the first %d photos of a query count; %d queries have more",
            path,
            GLDV2_DEPTH,
            long,
        )


def read_sample(path: files.Path, task: str) -> list[str]:
    """Returns the ids of a sample submission, in its order.

    Raises:
      InputError: when it belongs to the other task, has no row, or an id is repeated.
    """
    ids = [id_ for _, (id_, _) in _rows(path, task)]
    if not ids:
        raise InputError(f"{path}: it lists no query")
    return ids


def write_predictions(
    path: files.Path, task: str, predictions: Iterable[tuple[str, Prediction | None]]
) -> None:
    """Writes a submission, whole or not at all.

    Args:
      path: of the CSV.
      task: retrieval or recognition.
      predictions: pairs of a query and its prediction; None or () for an empty one. Scores are
        written so that they are read back bit for bit.
    """
    rows = ((id_, " ".join(map(str, prediction or ()))) for id_, prediction in predictions)
    write_table(path, ("id", COLUMNS[task]), rows)
