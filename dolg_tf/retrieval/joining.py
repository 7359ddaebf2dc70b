"""Names in a list -> rows of a descriptor set, where both were written by different hands.

A name is the id of a photo. Where it is not, it may be the id with a suffix (`.jpg`), or all names
may lack one folder that all ids have, or the reverse: then the list belongs to another image root.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dolg_tf.data.photo_ids import id_of

log = logging.getLogger(__name__)


def find_rows(names: Iterable[str], ids: Sequence[str], source) -> np.ndarray:
    """Returns the row of each name, int64 (N,); -1 for one that is not there.

    What is joined otherwise than by the id itself is told.

    Args:
      names: of photos.
      ids: one per row.
      source: of the ids, for what is told.
    """
    row_of = {id_: row for row, id_ in enumerate(ids)}
    numbers = {}  # a name that occurs twice is one name
    places = [numbers.setdefault(name, len(numbers)) for name in names]
    names = list(numbers)
    rows = np.array([row_of.get(name, -1) for name in names], np.int64)
    if names and row_of and (rows < 0).any():
        bare = _bare(row_of)
        rows = _without_suffix(names, rows, bare, source)
        if len(names) > 1 and (rows < 0).all():  # one name alone says little
            rows = _in_another_folder(names, rows, bare, source)
    return rows[places]


def _without_suffix(names: list[str], rows: np.ndarray, bare: dict, source) -> np.ndarray:
    """Returns the rows, also of names that are ids but for their suffix."""
    missing, rows = np.flatnonzero(rows < 0), rows.copy()
    rows[missing] = [bare.get(id_of(names[number]), -1) for number in missing]
    once, count = np.unique(rows, return_counts=True)
    clear = np.isin(rows[missing], once[count == 1])  # `a.jpg` and `a.png` are not both `a`
    rows[missing[~clear]] = -1
    found = missing[rows[missing] >= 0]
    if found.size:
        log.warning(
            "%s: %d of %d photos are found by their names without suffix, such as %r",
            *(source, found.size, len(names), names[found[0]]),
        )
    return rows


def _in_another_folder(names: list[str], rows: np.ndarray, bare: dict, source) -> np.ndarray:
    """Returns the rows of names that all lack one folder, or all have one too many."""
    moved, told = _moved(names[0], bare)
    if moved is None:
        return rows
    found = np.array([bare.get(moved(name), -1) for name in names], np.int64)
    if (found < 0).any() or len(np.unique(found)) < len(names):
        return rows
    log.warning("%s: all %d photos are found %s", source, len(names), told)
    return found


def _bare(row_of: dict[str, int]) -> dict[str, int]:
    """Returns the row of each id without suffix, but for those that several share."""
    bare = {}
    for id_, row in row_of.items():
        name = id_of(id_)
        bare[name] = row if name not in bare else -1
    return bare


def _moved(name: str, bare: dict[str, int]) -> tuple[Callable[[str], str] | None, str]:
    """Returns what makes a name an id in another folder, and how that is told."""
    name = id_of(name)
    above = [id_ for id_ in bare if id_.endswith(f"/{name}")]
    if len(above) == 1:
        folder = above[0].removesuffix(name)
        return (lambda other: folder + id_of(other)), f"in the folder {folder!r}"
    parts = name.split("/")
    below = ["/".join(parts[at:]) for at in range(1, len(parts)) if "/".join(parts[at:]) in bare]
    if len(below) == 1:
        folder = name.removesuffix(below[0])
        return (
            lambda other: id_of(other).removeprefix(folder) if other.startswith(folder) else ""
        ), f"without the folder {folder!r}"
    return None, ""


def of_which(names: Sequence[str], rows: np.ndarray, ids: Sequence[str]) -> str:
    """Returns what tells that names have no row: how many, the first, and what ids are like.

    Args:
      names: of photos; at least one has no row.
      rows: see `find_rows`.
      ids: one per row; at least one.
    """
    missing = np.flatnonzero(rows < 0)
    return (
        f"{missing.size} of {len(names)} photos, the first is {names[missing[0]]!r}; its ids are "
        f"like {ids[0]!r}"
    )
