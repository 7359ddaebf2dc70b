"""Photos that are searched for, and what is nearest to them among the others."""

import collections
import dataclasses
import filecmp
import logging
import os
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.data import photo_folders
from dolg_tf.pipelines.own_photos.adapt import Searched
from dolg_tf.pipelines.own_photos.describe import describe_images, readable
from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.retrieval.exact.search import inner_products, search
from dolg_tf.retrieval.extract import ahead
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.extract.model import Describe
from dolg_tf.retrieval.rerank.expansion import expand
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

COLUMNS = ("query", "rank", "id", "score")  # of a table of answers, without "match"
_BLOCK = 256  # queries searched for at a time, at most
_PAIRS = 1 << 21  # answers that are found at a time
_ROWS = 8192  # rows read at a time


@dataclasses.dataclass(frozen=True)
class Query:
    """A photo that is searched for: its name, relative to where it was listed, and its file."""

    name: str
    path: str


def list_queries(query: str) -> list[Query]:
    """Returns the photos of a folder, of a CSV with a column path, or the one that is named.

    Raises:
      InputError: when there are none.
    """
    source = pathlib.Path(query)
    if source.is_dir():
        faults: list[tuple[str, str]] = []
        found = [Query(*one) for one in photo_folders.Walk(source, (), faults).named("")]
        for folder, reason in faults:
            log.warning("unreadable: %s: %s", folder, reason)
    elif source.suffix.lower() == ".csv":
        finder = photo_folders.Finder(source.parent)
        table = read_table(source, ["path"])
        found = [Query(name, finder.find(name, where)[1]) for where, (name,) in table]
    elif source.is_file():
        found = [Query(source.name, query)]
    else:
        raise InputError(f"--query={query}: no such photo, folder or CSV")
    if not found:
        raise InputError(f"--query={query}: no photos there")
    return found


def check_output(path: pathlib.Path) -> None:
    """Makes sure that a file of answers replaces no other table, such as that of the queries.

    Raises:
      InputError: when something else is there.
    """
    if path.is_file() and path.stat().st_size:
        try:
            next(read_table(path, *([name] for name in COLUMNS)), None)
        except InputError as error:
            raise InputError(
                f"--output={path} is not replaced, since it holds no answers ({error}); name "
                "another file"
            ) from error
    else:
        files.check_output(path, overwrite=True)


def describe_queries(
    queries: list[Query], describe: Describe, how: Preparation
) -> tuple[list[Query], np.ndarray]:
    """Returns the readable queries, and their descriptors as the network gives them, (Q, C).

    Raises:
      InputError: when none of them can be read.
    """
    photos = (readable(query.name, query.path, {}) for query in queries)
    images = progress.track(ahead.decode_ahead(photos, how), len(queries), "queries")
    rows, reasons = describe_images(images, [query.path for query in queries], describe)
    faults = [f"{queries[row].path}: {reason}" for row, reason in reasons.items()]
    for fault in faults:
        log.warning("unreadable: %s", fault)
    if not len(rows):
        raise InputError(f"--query: none of {len(queries)} can be read; {faults[0]}")
    return [query for row, query in enumerate(queries) if row not in reasons], rows


def own_rows(queries: list[Query], ids, photos: dict[str, File]) -> list[np.ndarray]:
    """Returns the rows of each query that are the query itself: the same file, or the same bytes.

    Args:
      queries: what is searched for.
      ids: of the rows.
      photos: the photos by id.
    """
    by_size = collections.defaultdict(list)
    for row, id_ in enumerate(ids):
        if id_ in photos:
            by_size[photos[id_].size].append(row)
    found = []
    for query in queries:
        likely = by_size.get(os.stat(query.path).st_size, ())  # noqa: PTH116
        same = [row for row in likely if _same(query.path, photos[ids[row]].path)]
        found.append(np.array(same, np.int64))
    return found


def _same(one: str, other: str) -> bool:
    try:
        return pathlib.Path(one).samefile(other) or filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


@dataclasses.dataclass(frozen=True)
class Answer:
    """The photos nearest to a query, best first.

    Attributes:
      query: what was searched for.
      rows: int64 (N,).
      scores: float32 (N,), of query and photo alone.
      nearness: float32 (N,), by which they were ranked.
      inliers: int64 (N,), local features that agree; -1: not verified. None: none was.
    """

    query: Query
    rows: np.ndarray
    scores: np.ndarray
    nearness: np.ndarray
    inliers: np.ndarray | None = None


def answers(
    searched: Searched, queries: list[Query], raw: np.ndarray, own: list[np.ndarray], k: int
) -> Iterator[Answer]:
    """Yields the photos nearest to each query, in the order of the queries.

    Args:
      searched: the photos.
      queries: what is searched for.
      raw: their descriptors as the network gives them, (Q, C).
      own: rows that are no answer to each, see `own_rows`.
      k: answers to each, at most.
    """
    photos, index, k = searched.searchable, searched.index.descriptors, min(k, len(searched.index))
    rows = photos.adapt(raw).astype(np.float32)
    block = max(1, min(_BLOCK, _PAIRS // k))
    for start in range(0, len(queries), block):
        part = slice(start, start + block)
        asked = rows[part]
        if photos.expansion is not None:
            near, scores = _nearest(index, asked, own[part], photos.expansion.photos)
            asked = expand(asked, index[near.clip(0)], scores, photos.expansion.alpha)
        nearest = _nearest(index, asked, own[part], k)
        for query, row, found, near in zip(queries[part], rows[part], *nearest, strict=True):
            there = found[found >= 0]
            # A score compares query and photo alone: the threshold was fitted to such.
            yield Answer(query, there, _scores(index, row, there), near[found >= 0])


def _scores(index, row: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Returns the scores (N,) of a descriptor (D,) and rows of the index, int (N,)."""
    parts = [
        inner_products(row, index[there[start : start + _ROWS]])
        for start in range(0, len(there), _ROWS)
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _nearest(
    rows, queries: np.ndarray, own: list[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and scores, (Q, k), best first; where there are fewer, -1 and 0."""
    best = search(rows, queries, k + max(map(len, own)))
    found = np.full((len(queries), k), -1, np.int64)
    scores = np.zeros((len(queries), k), np.float32)
    for place, mine in enumerate(own):
        others = np.flatnonzero(~np.isin(best.rows[place], mine))[:k]
        found[place, : len(others)] = best.rows[place][others]
        scores[place, : len(others)] = best.scores[place][others]
    return found, scores
