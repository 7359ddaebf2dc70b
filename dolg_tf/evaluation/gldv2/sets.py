"""Descriptor sets of GLDv2's photos: whether they fit together, Kaggle's ids, the landmarks."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dolg_tf.data.records.label_lists import ListsConfig, read_photos
from dolg_tf.retrieval import descriptors, joining
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import directory
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)


class Sets(NamedTuple):
    """Descriptor sets that were described in the same way."""

    queries: DescriptorSet
    index: DescriptorSet
    non_landmarks: DescriptorSet | None = None


class QueryRows(NamedTuple):
    """Queries to predict for."""

    ids: list[str]  # Kaggle's
    rows: np.ndarray  # int64 (Q,), in the set; -1: unreadable when it was extracted


class Landmarks(NamedTuple):
    """The landmarks of training photos."""

    labels: np.ndarray  # int32 (N,), one per photo
    names: list[str]  # the landmark of each label, ascending


def _kaggle_id(id_: str) -> str:
    """Returns Kaggle's id of one photo."""
    return id_.rpartition("/")[2]


def kaggle_ids(photos: DescriptorSet) -> list[str]:
    """Returns Kaggle's id of each photo: the last part of `a/b/c/ID`.

    Raises:
      InputError: when two photos share an id, or an id contains blanks.
    """
    found = {}
    for id_ in photos.ids:
        name = _kaggle_id(id_)
        if name.split() != [name]:
            raise InputError(
                f"{photos.source}: {id_!r} contains blanks, which separate ids in the CSV"
            )
        other = found.setdefault(name, id_)
        if other is not id_:
            raise InputError(
                f"{photos.source}: {other!r} and {id_!r} are both {name!r} in the CSV; rename one "
                "photo and extract again"
            )
    return list(found)


def read_sets(queries: str, index: str, non_landmarks: str = "", normalize: bool = False) -> Sets:
    """Reads queries, index and, where a path is given, non-landmarks; see `descriptors.read`.

    Raises:
      InputError: when a set is empty, has no ids, or comes from another network or other scales
        (products of descriptors of two networks mean nothing); or when a non-landmark is in
        another set too, where it would be most similar to itself.
    """
    sets = [descriptors.read(path, normalize) for path in (queries, index, non_landmarks) if path]
    for found in sets:
        if found.ids is None:
            raise InputError(f"{found.source}: an .npy has no ids; give a descriptor set")
        if not len(found):
            raise InputError(f"{found.source} has no descriptors; extract it again")
    directory.check_same_space(map(directory.how_made, sets))
    if non_landmarks:
        *others, last = sets
        names = {_kaggle_id(id_) for id_ in last.ids}
        for found in others:
            both = [id_ for id_ in found.ids if _kaggle_id(id_) in names]
            if both:
                raise InputError(
                    f"{len(both)} photos of {found.source} are also in "
                    f"--non_landmarks={non_landmarks}, the first is {both[0]!r}; take other "
                    "non-landmarks"
                )
    return Sets(*sets)


def find_queries(queries: DescriptorSet, wanted: Sequence[str] | None) -> QueryRows:
    """Finds the rows of the queries to predict for.

    Args:
      queries: the set.
      wanted: Kaggle's ids; None: all of the set, followed by those of its bad photos.

    Raises:
      InputError: when a wanted query is neither in the set nor among its bad photos.
    """
    names = kaggle_ids(queries)
    bad = (_kaggle_id(str(photo["id"])) for photo in queries.meta["bad"])
    known = list(dict.fromkeys([*names, *bad]))
    wanted = known if wanted is None else list(wanted)
    rows = joining.find_rows(map(_kaggle_id, wanted), known, queries.source)
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        raise InputError(
            f"{queries.source} lacks {missing.size} of the {len(wanted)} wanted queries, the first "
            f"is {wanted[missing[0]]!r}, its ids are like {known[0]!r}; extract all of them"
        )
    rows[rows >= len(names)] = -1
    unreadable = np.flatnonzero(rows < 0)
    if unreadable.size:
        log.warning(
            "%d queries could not be read, the first is %r: no prediction",
            *(unreadable.size, wanted[unreadable[0]]),
        )
    others = len(names) - (len(rows) - unreadable.size)
    if others:
        log.info("%d photos of %s are not among the queries", others, queries.source)
    return QueryRows(wanted, rows)


def read_landmarks(lists: ListsConfig, index: DescriptorSet) -> Landmarks:
    """Reads the landmarks of training photos.

    Args:
      lists: GLDv2's lists of ids, or the user's own list of paths.
      index: the set of training photos.

    Raises:
      InputError: when a photo is not in the list, or a landmark contains blanks.
    """
    listed, landmarks = read_photos(lists)
    source = lists.labels_csv or lists.train_clean_csv or lists.train_csv
    landmarks = [str(landmark) for landmark in landmarks]
    for landmark in landmarks:
        if landmark.split() != [landmark]:
            raise InputError(
                f"{source}: the landmark {landmark!r} contains blanks, which the CSV of "
                "predictions cannot hold; write it without them"
            )
    if lists.labels_csv:
        rows = joining.find_rows(index.ids, [name.decode() for name in listed.ids], source)
    else:
        rows = _gldv2_rows(index.ids, listed.ids)
    missing = np.flatnonzero(rows < 0)
    if missing.size:
        raise InputError(
            f"{missing.size} of {len(index)} photos of {index.source} have no landmark in "
            f"{source}, the first is {index.ids[missing[0]]!r}, its photos are like "
            f"{listed.ids[0].decode()!r}; give the list they were extracted from"
        )
    return Landmarks(listed.labels[rows], landmarks)


def _gldv2_rows(ids: Sequence[str], listed: np.ndarray) -> np.ndarray:
    """Returns where GLDv2's list, of millions of photos, has each id; -1: nowhere."""
    names = np.array([_kaggle_id(id_).encode() for id_ in ids])
    order = np.argsort(listed)
    places = np.searchsorted(listed, names, sorter=order)
    rows = order[np.minimum(places, len(order) - 1)]
    return np.where(listed[rows] == names, rows, -1)
