"""An index is searched: photos or their descriptors in, a CSV of the nearest photos out.

    dolg index query --index=INDEX --saved_model=DIR --images=DIR \\
        --output=found.csv
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.index import photos
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

_SAID = 20  # queries whose answers are logged


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryConfig(NormConfig):
    """What is searched for, and in which index."""

    index: str = option("index (a directory)")
    output: str = option("CSV to write: query, rank, id, score and, for a calibrated index, match")
    descriptors: str = option("descriptor set of the queries; empty: --images are the queries", "")
    saved_model: str = option("SavedModel that describes the photos", "")
    images: str = option("photos to search for: a photo, a folder, or a CSV with a column path", "")
    k: int = option("photos found per query", 10)
    max_bad: int = option("unreadable photos to tolerate", 0, unit="photos")
    overwrite: bool = option("replace an existing CSV", False)

    def __post_init__(self):
        at_least(self, k=1, max_bad=0)
        if bool(self.descriptors) == bool(self.images) or bool(self.images) != bool(
            self.saved_model
        ):
            raise InputError("give either --descriptors, or --images and --saved_model")


def query(settings: QueryConfig) -> None:
    """Searches an index: photos or their descriptors in, a CSV of the nearest photos out.

    For a calibrated index, the CSV says of each photo whether it is a match.

    Raises:
      InputError: when the index is damaged, or the queries were described differently.
    """
    files.check_output(settings.output, settings.overwrite)
    index = Index.open(settings.index)
    if settings.descriptors:
        queries = descriptors.read(settings.descriptors, settings.normalize)
    else:
        queries = photos.describe_queries(
            index, settings.saved_model, pathlib.Path(settings.images), settings.max_bad
        )
    index.check_same(queries)
    found = index.search(np.asarray(queries.descriptors), settings.k)
    lines = _lines(index, queries.ids, found)
    write_table(settings.output, next(lines), lines)
    _say(index, queries.ids, found)


def _lines(index: Index, names, found: Neighbours) -> Iterator[list]:
    """Yields the lines of the CSV."""
    calibrated = index.threshold is not None
    yield ["query", "rank", "id", "score"] + ["match"] * calibrated
    for name, scores, rows in zip(names, *found, strict=True):
        for place, (score, row) in enumerate(zip(scores, rows, strict=True), 1):
            if row >= 0:
                line = [name, place, index.ids[row], f"{score:.9g}"]
                match = ["match" if index.matches(score) else "no match"] if calibrated else []
                yield line + match


def _say(index: Index, names, found: Neighbours) -> None:
    calibrated, best = index.threshold is not None, found.scores[:, 0]
    for name, score, row in list(zip(names, best, found.rows[:, 0], strict=True))[:_SAID]:
        if row < 0:
            log.info("%s: nothing found in the cells visited", name)
            continue
        no = calibrated and not index.matches(score)
        nearest = "no match; the nearest is " if no else ""
        log.info("%s: %s%s, score %.4f", name, nearest, index.ids[row], score)
    if calibrated:
        matches = np.count_nonzero(index.matches(best))
        log.info("%d of %d queries have a match", matches, len(best))
