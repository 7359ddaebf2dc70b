"""The CSVs of the GLDv2 challenges: solutions, predictions and sample submissions."""

import collections
import dataclasses
import logging
import math
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from dolg_tf.data.photo_ids import id_of
from dolg_tf.evaluation.metrics import GLDV2_DEPTH
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table, write_table

log = logging.getLogger(__name__)

# task: the second column of its CSVs
COLUMNS = {"retrieval": "images", "recognition": "landmarks"}
_USAGES = ("Public", "Private", "Ignored")
_WHOLE = re.compile(r"0*([0-9]+)(?:\.0*)?")


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
    """Returns a landmark for comparison: `1` for `01` and `1.0` too, names as they are."""
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def photo_name(text: str) -> str:
    """Returns a photo for comparison: without folder and suffix."""
    return id_of(text).rpartition("/")[2] if "." in text or "/" in text else text


def _photo_names(names: Collection[str], path) -> Mapping[str, str]:
    """Returns what the photos of a solution are called: as Kaggle does, if that is clear."""
    short = {name: photo_name(name) for name in names}
    changed = [name for name, other in short.items() if name != other]
    if not changed:
        return short
    if len(set(short.values())) < len(short):
        return {name: name for name in short}
    log.warning(
        "%s: %d of %d photos are taken without folder and suffix, such as %r",
        *(path, len(changed), len(short), changed[0]),
    )
    return short


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
    queries = _photo_names([*parts["Public"], *parts["Private"], *ignored], path)
    photos = {}
    if task == "retrieval":
        listed = (name for part in parts.values() for names in part.values() for name in names)
        photos = _photo_names(dict.fromkeys(listed), path)
    public, private = (
        {
            queries[id_]: tuple(photos.get(name, name) for name in names)
            for id_, names in part.items()
        }
        for part in parts.values()
    )
    return Solution(public, private, frozenset(queries[id_] for id_ in ignored))


class _Joined:
    """Takes the names of predictions as the solution writes them, and counts the others."""

    def __init__(self, path: files.Path):
        self._path, self._others = path, collections.Counter()
        self._first = {}  # of each kind

    def photo(self, name: str, known: Collection[str]) -> str:
        """Returns a photo's name as it is known, or as it is written."""
        short = name if name in known else photo_name(name)
        if short not in known:
            return name
        if short != name:
            self._count("photos", name)
        return short

    def landmark(self, written: str) -> str:
        name = landmark_name(written)
        if name != written:
            self._count("landmarks", written)
        return name

    def _count(self, kind: str, name: str) -> None:
        self._others[kind] += 1
        self._first.setdefault(kind, name)

    def say(self) -> None:
        """Tells how many names were written otherwise."""
        for kind, rule in (("photos", "without folder and suffix"), ("landmarks", "as numbers")):
            if count := self._others[kind]:
                told = (self._path, count, kind, rule, self._first[kind])
                log.warning("%s: %d %s are taken %s, such as %r", *told)


def _recognised(text: str, where: str) -> tuple[str, float]:
    try:
        name, score = text.split()
        score = float(score)
        if not math.isfinite(score):
            raise ValueError
    except ValueError as error:
        raise InputError(f"{where}: {text!r:.60} is not a landmark and its score") from error
    return name, score


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
    photos = {name for names in scored.values() for name in names}
    queries, joined = scored.keys() | solution.ignored, _Joined(path)
    for where, (written, text) in _rows(path, task):
        id_ = joined.photo(written, queries)
        if id_ in solution.ignored:
            continue
        if id_ not in scored:
            raise InputError(
                f"{where}: the query {written!r} is not in the solution, whose ids are like "
                f"{next(iter(scored))!r}; is it its CSV?"
            )
        if id_ in listed:
            raise InputError(f"{where}: the id {written!r} is there with and without suffix")
        listed.add(id_)
        if text.strip() and task == "retrieval":
            found[id_] = tuple(joined.photo(name, photos) for name in text.split())
        elif text.strip():
            name, value = _recognised(text, where)
            found[id_] = Recognised(joined.landmark(name), value)
    joined.say()
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


def warn_of_strangers(
    solution: Solution, task: str, predicted: Mapping[str, Prediction], source: files.Path
) -> None:
    """Warns when nothing that is predicted occurs in the solution: the score is 0 then.

    Args:
      solution: of the task.
      task: retrieval or recognition.
      predicted: {query: prediction}.
      source: of the predictions.
    """
    right = {name for names in solution.both.values() for name in names}
    made = [made for made in predicted.values() if made]
    if task == "recognition":
        named = [landmark_name(one.landmark) for one in made]
    else:
        named = [photo for one in made for photo in one]
    if right and named and right.isdisjoint(named):
        log.warning(
            "%s: 0 of %d %s in it are in the solution, so that the score is 0: the first is %r, "
            "the solution's are like %r",
            *(source, len(named), COLUMNS[task], named[0], min(right)),
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
