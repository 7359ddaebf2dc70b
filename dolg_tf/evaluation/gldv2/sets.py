"""Descriptor sets of GLDv2's photos: that they go together, Kaggle's ids, the landmarks."""

import logging
from collections.abc import Sequence

import numpy as np

from dolg_tf.data.records.lists import ListsConfig, read_photos
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import directory
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


def _kaggle_id(id_: str) -> str:
    """Returns the id that Kaggle knows a photo by: the last part of `a/b/c/ID`."""
    return id_.rpartition("/")[2]


def kaggle_ids(photos: DescriptorSet) -> list[str]:
    """Returns Kaggle's id of each photo: the last part of `a/b/c/ID`.

    Raises:
      InputError: when two photos have one id, or an id has blanks.
    """
    found = {}
    for id_ in photos.ids:
        name = _kaggle_id(id_)
        if name.split() != [name]:
            raise InputError(f"{photos.source}: {id_!r} has blanks, which separate ids in the CSV")
        other = found.setdefault(name, id_)
        if other is not id_:
            raise InputError(
                f"{photos.source}: {other!r} and {id_!r} are both {name!r} in the CSV; rename one "
                "photo and extract again"
            )
    return list(found)


def read_sets(queries: str, index: str, non_landmarks: str = "") -> list[DescriptorSet]:
    """Reads queries, index and, when there is a path, non-landmarks.

    Raises:
      InputError: when one is empty, has no ids, or is of another network or scales: descriptors of
        two networks live in two spaces, their products mean nothing; or when a non-landmark is in
        another set too, where it would be most similar to itself.
    """
    sets = [descriptors.read(path) for path in (queries, index, non_landmarks) if path]
    for found in sets:
        if found.ids is None:
            raise InputError(f"{found.source}: an .npy has no ids; give a descriptor set")
        if not len(found):
            raise InputError(f"{found.source} has no descriptors; extract it again")
    directory.check_same_space(map(directory.how_made, sets))
    if non_landmarks:
        names = {_kaggle_id(id_) for id_ in sets[2].ids}
        for found in sets[:2]:
            both = [id_ for id_ in found.ids if _kaggle_id(id_) in names]
            if both:
                raise InputError(
                    f"{len(both)} photos of {found.source} are in --non_landmarks={non_landmarks} "
                    f"too, the first is {both[0]!r}; take other non-landmarks"
                )
    return sets


def find_queries(
    queries: DescriptorSet, wanted: Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Returns Kaggle's ids of the queries to predict for, and the row of each.

    Args:
      queries: the set.
      wanted: the ids; None: all of the set, and behind them those of its bad photos.

    Returns:
      (ids, rows): int64 (Q,); row -1 is a photo that could not be read when it was extracted.

    Raises:
      InputError: when a wanted query is neither in the set nor among its bad photos.
    """
    names = kaggle_ids(queries)
    row_of = {name: row for row, name in enumerate(names)}
    bad = dict.fromkeys(_kaggle_id(str(photo["id"])) for photo in queries.meta["bad"])
    if wanted is None:
        wanted = [*names, *(name for name in bad if name not in row_of)]
    missing = [name for name in wanted if name not in row_of and name not in bad]
    if missing:
        raise InputError(
            f"{queries.source} lacks {len(missing)} of the {len(wanted)} queries that are asked "
            f"for, the first is {missing[0]!r}; extract all of them"
        )
    rows = np.array([row_of.get(name, -1) for name in wanted], np.int64)
    unreadable = np.flatnonzero(rows < 0)
    if unreadable.size:
        log.warning(
            "%d queries could not be read, the first is %r: no prediction",
            *(unreadable.size, wanted[unreadable[0]]),
        )
    others = len(names) - (len(rows) - unreadable.size)
    if others:
        log.info("%d photos of %s are not asked for", others, queries.source)
    return list(wanted), rows


def read_landmarks(lists: ListsConfig, index: DescriptorSet) -> tuple[np.ndarray, list[str]]:
    """Returns the landmarks of training photos.

    Args:
      lists: GLDv2's, which list ids; or a person's own, which lists paths.
      index: the set of training photos.

    Returns:
      (labels, landmarks): int32 (N,), of each photo; and the landmark of each label, ascending.

    Raises:
      InputError: when a photo is not in the list, or a landmark has blanks.
    """
    listed, landmarks = read_photos(lists)
    source = lists.labels_csv or lists.train_clean_csv or lists.train_csv
    landmarks = [str(landmark) for landmark in landmarks]
    for landmark in landmarks:
        if landmark.split() != [landmark]:
            raise InputError(
                f"{source}: the landmark {landmark!r} has blanks, which the CSV of predictions "
                "cannot hold; write it without"
            )
    names = index.ids if lists.labels_csv else map(_kaggle_id, index.ids)
    names = np.array([name.encode() for name in names])
    order = np.argsort(listed.ids)
    places = np.searchsorted(listed.ids, names, sorter=order)
    rows = order[np.minimum(places, len(order) - 1)]
    missing = np.flatnonzero(listed.ids[rows] != names)
    if missing.size:
        raise InputError(
            f"{missing.size} of {len(index)} photos of {index.source} have no landmark in "
            f"{source}, the first is {index.ids[missing[0]]!r}; give the list that they were "
            "extracted from"
        )
    return listed.labels[rows], landmarks
