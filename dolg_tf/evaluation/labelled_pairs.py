"""Pairs of photos labelled as the same place or not: from a CSV or a ground truth."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from dolg_tf.data.photo_ids import id_among
from dolg_tf.data.records.label_lists import warn_of_equal_numbers
from dolg_tf.retrieval import joining
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.ground_truth import LABELS, GroundTruth, Query, load_ground_truth
from dolg_tf.retrieval.landmarks import read_landmarks
from dolg_tf.retrieval.meta import of_one_folder
from dolg_tf.retrieval.rows import blocks
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

_QUERIES, _ROWS = 256, 16384  # of the matrix of all pairs at a time
_NONE = np.zeros(0, np.int64)
_TRUTH = {"1": True, "true": True, "0": False, "false": False}


class Block(NamedTuple):
    """Some pairs of a query and an index photo."""

    queries: np.ndarray  # int64 (P,), numbers of the queries
    scores: np.ndarray  # float32 (P,), inner products; -inf: the pair passes no threshold
    same: np.ndarray  # bool (P,), whether both show the same place


Pairs = Callable[[], Iterable[Block]]
"""Gives the same blocks of pairs at each call."""


def _ids(found: DescriptorSet) -> tuple[str, ...]:
    if found.ids is None:
        raise InputError(f"{found.source}: the rows of an .npy have no ids; give a descriptor set")
    return found.ids


def _places(ids, among) -> np.ndarray:
    """Returns the place of each id among others, -1 for one that is not there."""
    place = {id_: row for row, id_ in enumerate(among)}
    return np.array([place.get(id_, -1) for id_ in ids], np.int64)


def listed_pairs(path: files.Path, queries: DescriptorSet, index: DescriptorSet) -> Pairs:
    """Returns the pairs of a CSV `id_a,id_b,same`: a query, an index photo, and 1 or 0.

    Raises:
      InputError: when a photo has no descriptor or is paired with itself, a pair is listed twice,
        or `same` is neither 1 nor 0.
    """
    # In two folders one name may stand for two photos, but not in one folder.
    one_folder = of_one_folder(queries.meta, index.meta)
    known = [set(_ids(found)) for found in (queries, index)]
    a, b, truth, seen = [], [], [], set()
    for where, (id_a, id_b, same) in read_table(path, ["id_a"], ["id_b"], ["same"]):
        same = same.strip().lower()
        if same not in _TRUTH:
            raise InputError(f"{where}: same is {same!r}; it must be 1 or 0")
        a.append(id_among(id_a, known[0]))
        b.append(id_among(id_b, known[1]))
        truth.append(_TRUTH[same])
        pair = (a[-1], b[-1])
        if one_folder:
            pair = (min(pair), max(pair))
            if pair[0] == pair[1]:
                raise InputError(f"{where}: {id_a!r} is paired with itself")
        if pair in seen:
            raise InputError(f"{where}: the pair {id_a!r}, {id_b!r} is listed twice")
        seen.add(pair)
    rows = []
    for ids, found in ((a, queries), (b, index)):
        rows.append(joining.find_rows(ids, _ids(found), found.source))
        missing = np.flatnonzero(rows[-1] < 0)
        if missing.size:
            raise InputError(
                f"{path}: {missing.size} of {len(ids)} pairs have a photo that is not in "
                f"{found.source}, such as {ids[missing[0]]!r}; its ids are like {found.ids[0]!r}"
            )
    return functools.partial(_list_blocks, queries, index, *rows, np.array(truth, bool))


def _list_blocks(queries, index, a, b, truth) -> Iterator[Block]:
    for start in range(0, len(a), _ROWS):
        part = slice(start, start + _ROWS)
        some, others = queries.descriptors[a[part]], index.descriptors[b[part]]
        yield Block(a[part], search.inner_products(some, others), truth[part])


def _within(rows: np.ndarray, some: slice) -> np.ndarray:
    """Returns the places of those rows that are in a slice."""
    return rows[(some.start <= rows) & (rows < some.stop)] - some.start


def _matrix_blocks(
    queries,
    index,
    kind: Callable[[slice, slice], np.ndarray],
    passing: Mapping[int, np.ndarray] | None = None,
) -> Iterator[Block]:
    """Yields the pairs of all queries and all index photos.

    Args:
      queries, index: (Q, D) and (N, D), `Rows` or arrays.
      kind: gives int8 (q, n) for a block: 1 for the same place, 0 for another, -1 for no pair.
      passing: rows of the index that may pass a threshold, by query; None: all may.
    """
    for first, some in blocks(queries, _QUERIES):
        for start, others in blocks(index, _ROWS):
            columns = slice(start, start + len(others))
            kinds = kind(slice(first, first + len(some)), columns)
            query, column = np.divmod(np.flatnonzero(kinds >= 0), len(others))
            products = some @ others.T
            if passing is not None:
                stopped = np.ones(products.shape, bool)
                for number, line in enumerate(stopped, first):
                    line[_within(passing.get(number, _NONE), columns)] = False
                products[stopped] = -np.inf
            scores = products[query, column]
            yield Block(first + query, scores, kinds[query, column] == 1)


def read_labels(path: files.Path, *sets: DescriptorSet) -> list[np.ndarray]:
    """Returns a number for the landmark of each photo of each set, -1 for one without a label.

    The CSV is as `read_landmarks` takes it. Photos without a label, and labels of photos without a
    descriptor, are counted in the log.

    Raises:
      InputError: as `read_landmarks`, or when no photo of a set has a landmark.
    """
    landmark_of = read_landmarks(path, {id_ for found in sets for id_ in _ids(found)})
    numbers = {landmark: number for number, landmark in enumerate(set(landmark_of.values()))}
    warn_of_equal_numbers(str(path), sorted(numbers))
    landmarks = np.array([numbers[landmark] for landmark in landmark_of.values()], np.int64)
    labels, known = [], np.zeros(len(landmarks), bool)
    for found in sets:
        ids = _ids(found)
        rows = joining.find_rows(landmark_of, ids, found.source)
        there = rows >= 0
        known |= there
        labels.append(np.full(len(ids), -1))
        labels[-1][rows[there]] = landmarks[there]
        lacking = np.count_nonzero(labels[-1] < 0)
        if lacking == len(ids):
            raise InputError(
                f"{path} lists no photo of {found.source}, whose first is {ids[0]!r}; its paths "
                "must be relative to the image root"
            )
        if lacking:
            log.info("%s: %d of %d photos have no label", found.source, lacking, len(ids))
    unknown = [name for name, there in zip(landmark_of, known, strict=True) if not there]
    if unknown:
        log.info(
            "%s: %d of %d labelled photos have no descriptor, such as %r",
            *(path, len(unknown), len(landmark_of), unknown[0]),
        )
    return labels


def labelled_pairs(path: files.Path, queries: DescriptorSet, index: DescriptorSet) -> Pairs:
    """Returns all pairs of photos whose landmarks are listed in a CSV, see `read_labels`.

    When both sets are the same one, each pair comes once; no photo is paired with itself. Photos
    without a label are left out.

    Raises:
      InputError: see `read_labels`.
    """
    # An approximate index has other rows than its set, but the ids are the same object.
    one_set = queries.ids is index.ids
    labels = read_labels(path, *((index,) if one_set else (queries, index)))
    own = _places(queries.ids, index.ids)

    def kind(some: slice, others: slice) -> np.ndarray:
        a, b = labels[0][some, None], labels[-1][None, others]
        row, column = own[some, None], np.arange(others.start, others.stop)
        itself = column <= row if one_set else column == row
        return np.where(itself | (a < 0) | (b < 0), -1, a == b).astype(np.int8)

    return functools.partial(_matrix_blocks, queries.descriptors, index.descriptors, kind)


def labelled_task(path: files.Path, queries: DescriptorSet, index: DescriptorSet) -> GroundTruth:
    """Returns the photos that have a label, see `read_labels`, as a ground truth.

    Photos of a query's landmark are easy, and the query itself is junk.

    Raises:
      InputError: see `read_labels`.
    """
    one_set = queries.ids is index.ids
    labels = read_labels(path, *((index,) if one_set else (queries, index)))
    kept = np.flatnonzero(labels[-1] >= 0)
    ids, landmarks = tuple(index.ids[row] for row in kept), labels[-1][kept]
    none = np.zeros(0, np.int64)
    names, found = [], []
    for id_, label in zip(queries.ids, labels[0], strict=True):
        if label >= 0:
            names.append(id_)
            found.append(Query(None, np.flatnonzero(landmarks == label), none, none))
    return without_queries(GroundTruth(str(path), ids, tuple(names), tuple(found)))


def without_queries(task: GroundTruth, *, earlier: bool = False) -> GroundTruth:
    """Returns the task with each query that is a photo of the index among its own junk.

    Args:
      task: the task.
      earlier: whether the queries before it are, too, so that two photos that are both queries and
        both searched make one pair.
    """
    own, queries = _places(task.query_ids, task.index_ids), []
    for number, query in enumerate(task.queries):
        rows = own[: number + 1] if earlier else own[number : number + 1]
        rows = rows[rows >= 0]
        lists = {label: np.setdiff1d(getattr(query, label), rows) for label in LABELS}
        lists["junk"] = np.union1d(lists["junk"], rows)
        queries.append(dataclasses.replace(query, **lists))
    return dataclasses.replace(task, queries=tuple(queries))


def task_pairs(path: files.Path, queries: DescriptorSet, index: DescriptorSet) -> Pairs:
    """Returns the pairs of a ground truth: easy and hard show the same place, junk is left out.

    Raises:
      InputError: when the ground truth is damaged or a photo has no descriptor.
    """
    if queries is index:
        _ids(index)  # the rows of an .npy belong either to the queries or to the index
    return pairs_of(without_queries(load_ground_truth(path)), queries, index)


def pairs_of(
    task: GroundTruth,
    queries: DescriptorSet,
    index: DescriptorSet,
    passing: Mapping[int, np.ndarray] | None = None,
) -> Pairs:
    """Returns the pairs of a ground truth, see `task_pairs`.

    Args:
      task: without queries among their own photos.
      queries, index: their descriptors.
      passing: numbers of the index photos that may pass a threshold, by number of the query; the
        scores of all others are -inf. None: all may.
    """

    def kind(some: slice, others: slice) -> np.ndarray:
        kinds = np.zeros((some.stop - some.start, others.stop - others.start), np.int8)
        for line, number in zip(kinds, range(some.start, some.stop), strict=True):
            query = task.queries[number]
            for value, rows in ((1, query.easy), (1, query.hard), (-1, query.junk)):
                line[_within(rows, others)] = value
        return kinds

    found = queries.select(task.query_ids), index.select(task.index_ids)
    return functools.partial(_matrix_blocks, *found, kind, passing)
