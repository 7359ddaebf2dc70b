"""An index is searched: photos or their descriptors in, a CSV of the nearest photos out.

    dolg index query --index=INDEX --saved_model=DIR --images=DIR \\
        --output=found.csv
    dolg index query --index=INDEX --saved_model=DIR --images=DIR \\
        --rerank=geometric --output=found.csv
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact.search import share_found
from dolg_tf.retrieval.index import engines, photos, reranking
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.engines import EngineConfig
from dolg_tf.retrieval.index.local import of_queries
from dolg_tf.retrieval.index.reranking import Answers, Chosen
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError, at_least, option
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)

_SAID = 20  # queries whose answers are logged


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryConfig(VerifyConfig, RerankConfig, NormConfig, EngineConfig):
    """What is searched for, in which index, and how the answers are ordered."""

    index: str = option("index (a directory)")
    output: str = option(
        "CSV to write: query, rank, id, score; for a calibrated index match, and with "
        "--rerank=geometric inliers"
    )
    descriptors: str = option("descriptor set of the queries; empty: --images are the queries", "")
    query_local: str = option(
        "local feature set of the queries that --descriptors describes, for --rerank=geometric", ""
    )
    saved_model: str = option("SavedModel that describes the photos", "")
    images: str = option("photos to search for: a photo, a folder, or a CSV with a column path", "")
    k: int = option("photos found per query", 10)
    max_bad: int = option("unreadable photos to tolerate", 0, unit="photos")
    recall: bool = option(
        "compare the answers of --engine with those of exact search, and say how many agree", False
    )
    overwrite: bool = option("replace an existing CSV", False)

    def __post_init__(self):
        RerankConfig.__post_init__(self)
        VerifyConfig.__post_init__(self)
        EngineConfig.__post_init__(self)
        at_least(self, k=1, max_bad=0)
        if bool(self.descriptors) == bool(self.images) or bool(self.images) != bool(
            self.saved_model
        ):
            raise InputError("give either --descriptors, or --images and --saved_model")
        if self.engine and self.rerank != "none":
            raise InputError(
                f"--rerank={self.rerank} with --engine={self.engine}: an engine answers in the "
                "order of its scores; omit one of the two"
            )
        if self.recall and not self.engine:
            raise InputError("--recall is of the answers of --engine; omit it, or give that")
        if self.local and self.descriptors and not self.query_local:
            raise InputError(
                f"--rerank={self.rerank} needs the local features of the queries: --query_local, "
                "as `dolg extract --local` writes them beside --descriptors"
            )
        if self.query_local and not (self.local and self.descriptors):
            raise InputError(
                f"--query_local={self.query_local} belongs to --descriptors and "
                "--rerank=geometric; omit it, or give those"
            )


def query(settings: QueryConfig) -> None:
    """Searches an index: photos or their descriptors in, a CSV of the nearest photos out.

    For a calibrated index, the CSV says of each photo whether it is a match; for one calibrated
    with --min_inliers, if photos are verified as they were for it. With --rerank, answers are in
    another order than that of their scores.

    Raises:
      InputError: when the index is damaged or lacks what --rerank takes, or the queries were
        described differently.
    """
    files.check_output(settings.output, settings.overwrite)
    index = Index.open(settings.index)
    reranking.check(settings, index)
    queries, features = _queries(settings, index)
    index.check_same(queries)
    rows = np.asarray(queries.descriptors)
    if settings.engine:
        _query_engine(settings, index, queries.ids, rows)
        return
    fitted = (index.meta["calibration"] or {}).get("geometric")
    chosen = methods.as_fitted(settings, settings, fitted)
    counted = not index.min_inliers or methods.verifies_as_fitted(*chosen, fitted)
    if not counted:
        log.warning(
            "%s: matches are not told: they need %d inliers too, counted by --rerank=%s with the "
            "settings that `dolg calibrate` had",
            *(index.path, index.min_inliers, fitted["rerank"]),
        )
    found = reranking.answer(index, rows, settings.k, *chosen, features)
    matches = index.matches(found.scores, found.inliers if counted else None)
    lines = _lines(index, queries.ids, found, matches)
    write_table(settings.output, next(lines), lines)
    _say(index, queries.ids, found, matches)


def _query_engine(settings: QueryConfig, index: Index, names, rows: np.ndarray) -> None:
    copied = engines.find(settings, index, rows, settings.k)
    if settings.recall:
        exact = index.search(rows, settings.k).rows
        share = 100 * share_found(exact, copied.rows)
        log.info("%.2f%% of the %d best photos are those of exact search", share, exact.shape[1])
    found = Answers(copied.rows, copied.scores)
    matches = index.matches(found.scores)
    lines = _lines(index, names, found, matches, copied.landmarks)
    write_table(settings.output, next(lines), lines)
    _say(index, names, found, matches)


def _queries(settings: QueryConfig, index: Index) -> tuple[DescriptorSet, Chosen | None]:
    """Returns the descriptors of the queries and, where they are needed, their local features."""
    if settings.descriptors:
        queries = descriptors.read(settings.descriptors, settings.normalize)
        if not settings.local or queries.ids is None:  # which is refused
            return queries, None
        return queries, Chosen(*of_queries(index, settings.query_local, queries))
    found, features = photos.describe_queries(
        index,
        settings.saved_model,
        pathlib.Path(settings.images),
        settings.max_bad,
        local=settings.local,
    )
    return found, None if features is None else Chosen(features, features.rows_of(found.ids))


def _lines(
    index: Index,
    names,
    found: Answers,
    matches: np.ndarray | None,
    landmarks: list[list[str]] | None = None,
) -> Iterator[list]:
    """Yields the lines of the CSV."""
    calibrated, verified = matches is not None, found.inliers is not None
    head = ["query", "rank", "id", "score", *["match"] * calibrated, *["inliers"] * verified]
    yield [*head, *["landmark"] * (landmarks is not None)]
    for query, name in enumerate(names):
        there = np.flatnonzero(found.rows[query] >= 0)
        for place in there.tolist():
            row, score = found.rows[query, place], found.scores[query, place]
            line = [name, place + 1, index.ids[row], f"{score:.9g}"]
            if calibrated:
                line.append("match" if matches[query, place] else "no match")
            if verified:
                count = found.inliers[query, place]
                line.append("" if count < 0 else int(count))
            if landmarks is not None:
                line.append(landmarks[query][place])
            yield line


def _say(index: Index, names, found: Answers, matches: np.ndarray | None) -> None:
    for query, name in enumerate(names[:_SAID]):
        row, score = found.rows[query, 0], found.scores[query, 0]
        if row < 0:
            log.info("%s: nothing found in the cells visited", name)
            continue
        no = matches is not None and not matches[query, 0]
        nearest = "no match; the nearest is " if no else ""
        inliers = "" if found.inliers is None else f", {found.inliers[query, 0]} inliers"
        log.info("%s: %s%s, score %.4f%s", name, nearest, index.ids[row], score, inliers)
    if matches is not None:
        log.info("%d of %d queries have a match", matches.any(axis=1).sum(), len(names))
