"""Pairs of photos of the same landmark, from a CSV, as rows of a descriptor set."""

import itertools
import logging

import numpy as np

from dolg_tf.data.photo_ids import id_among
from dolg_tf.data.records.label_lists import SPLITS
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)

Pairs = tuple[np.ndarray, np.ndarray]  # int64 (P,) each: row of a query, row of its positive


def _rows_by_id(photos: DescriptorSet) -> dict[str, int]:
    if photos.ids is None:
        raise InputError(
            f"{photos.source}: the rows of an .npy have no ids to match with a CSV; give a "
            "descriptor set"
        )
    return {id_: row for row, id_ in enumerate(photos.ids)}


def pairs_from_csv(path: files.Path, photos: DescriptorSet) -> Pairs:
    """Reads a CSV with the columns `query` and `positive`: ids of two photos of the same landmark.

    Raises:
      InputError: when there are no pairs, or a photo has no descriptor or is paired with itself.
    """
    rows, pairs = _rows_by_id(photos), []
    for where, names in read_table(path, ["query"], ["positive"]):
        ids = [id_among(name, rows) for name in names]
        for id_ in ids:
            if id_ not in rows:
                raise InputError(f"{where}: {photos.source} has no photo {id_!r}")
        if ids[0] == ids[1]:
            raise InputError(f"{where}: {ids[0]!r} is paired with itself")
        pairs.append([rows[id_] for id_ in ids])
    return _arrays(pairs, path)


def pairs_from_labels(path: files.Path, photos: DescriptorSet) -> Pairs:
    """Pairs each photo of a landmark with its next one, in the order of a CSV.

    A landmark with n photos gives n - 1 pairs. Columns: `path` or `id`; `landmark`, `label` or
    `landmark_id`; if there is a column `split`, only rows with "train" or nothing in it count. Rows
    whose photo has no descriptor are left out, and counted in the log.

    Raises:
      InputError: when no photo has a descriptor, no landmark has two photos, or a photo is listed
        twice.
    """
    rows, landmarks, seen = _rows_by_id(photos), {}, set()
    others = missing = 0
    columns = (["path", "id"], ["landmark", "label", "landmark_id"], ["split", ""])
    for where, (name, landmark, split) in read_table(path, *columns):
        id_, landmark, split = id_among(name, rows), landmark.strip(), split.strip() or "train"
        if split not in SPLITS:
            raise InputError(f"{where}: split is {split!r}, but must be one of {', '.join(SPLITS)}")
        if split != "train":
            others += 1
            continue
        if id_ in seen:
            raise InputError(f"{where}: {id_!r} is listed twice; a photo has only one landmark")
        seen.add(id_)
        if id_ in rows:
            landmarks.setdefault(landmark, []).append(rows[id_])
        else:
            missing += 1
    if missing and not landmarks:
        raise InputError(
            f"{path}: none of its {missing} photos is in {photos.source}, whose first is "
            f"{next(iter(rows), None)!r}; use the ids of that set"
        )
    pairs = [pair for photos in landmarks.values() for pair in itertools.pairwise(photos)]
    log.info(
        "%s: %d pairs of %d landmarks; left out: %d rows of other splits, %d without descriptor",
        path,
        len(pairs),
        len(landmarks),
        others,
        missing,
    )
    among = f" in split train; {others} photos are of other splits" if others else ""
    return _arrays(pairs, path, among)


def _arrays(pairs: list, path, among: str = "") -> Pairs:
    if not pairs:
        raise InputError(f"{path}: no two photos of the same landmark{among}")
    queries, positives = np.array(pairs, np.int64).T
    return queries, positives
