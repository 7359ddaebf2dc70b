"""The landmarks of photos, from a CSV."""

import logging
from collections.abc import Container, Sequence

from dolg_tf.data.photo_ids import id_among
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)


def read_landmarks(path: files.Path, ids: Container[str]) -> dict[str, str]:
    """Returns the landmark of each photo that a CSV lists, by the photo's id.

    Args:
      path: CSV with the columns `path` or `id`, and `landmark`, `label` or `landmark_id`.
      ids: known ones, which say whether a suffix belongs to an id.

    Raises:
      InputError: when a cell is empty, or a photo has two landmarks.
    """
    landmark_of = {}
    for where, (name, landmark) in read_table(
        path, ["path", "id"], ["landmark", "label", "landmark_id"]
    ):
        landmark = landmark.strip()
        if not name or not landmark:
            raise InputError(f"{where}: an empty {'landmark' if name else 'path'}")
        known = landmark_of.setdefault(id_among(name, ids), landmark)
        if known != landmark:
            raise InputError(f"{where}: {name!r} has two landmarks, {known!r} and {landmark!r}")
    return landmark_of


def landmarks_of(path: files.Path, ids: Sequence[str]) -> list[str]:
    """Returns the landmark of each photo of an index, "" where the CSV names none.

    Raises:
      InputError: as `read_landmarks`, or when it names none of them.
    """
    landmark_of = read_landmarks(path, frozenset(ids))
    found = [landmark_of.get(id_, "") for id_ in ids]
    named = sum(map(bool, found))
    if not named:
        raise InputError(f"--labels_csv={path}: names no photo of the index")
    log.info("%s: landmarks of %d of %d photos", path, named, len(ids))
    return found
