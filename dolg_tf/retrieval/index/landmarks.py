"""The landmarks of an index's photos, from a CSV."""

import logging
from collections.abc import Sequence

from dolg_tf.data.photo_ids import id_among
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table

log = logging.getLogger(__name__)


def read_landmarks(path: str, ids: Sequence[str]) -> list[str]:
    """Returns the landmark of each photo, "" where the CSV names none.

    Args:
      path: CSV with the columns path (or id) and landmark.
      ids: of the photos.

    Raises:
      InputError: when it names none of them, or a photo twice with different landmarks.
    """
    row_of, found = {id_: row for row, id_ in enumerate(ids)}, [""] * len(ids)
    for where, (name, landmark) in read_table(path, ["path", "id"], ["landmark"]):
        row = row_of.get(id_among(name, row_of))
        if row is None:
            continue
        if found[row] not in ("", landmark):
            raise InputError(f"{where}: {name!r} is of {found[row]!r} and of {landmark!r}")
        found[row] = landmark
    named = sum(map(bool, found))
    if not named:
        raise InputError(f"--labels_csv={path}: names no photo of the index")
    log.info("%s: landmarks of %d of %d photos", path, named, len(ids))
    return found
