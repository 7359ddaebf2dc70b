"""Regions of photos, from a CSV: boxes of their pixels, or photos of a set that show parts of them.

DELF describes each region anew, from its crop: up to as many features as the whole photo, at scales
of their own. That is the CSV's form with the columns `id` and `region`, whose regions are crops in
the same set. With `id, top, left, bottom, right` a region has those features of the whole photo
that lie in the box: no second extraction, but fewer features.
"""

import dataclasses

import numpy as np

from dolg_tf.stage import files, tables
from dolg_tf.stage.config import InputError

_BOX = ("top", "left", "bottom", "right")


@dataclasses.dataclass(frozen=True)
class Regions:
    """Regions of photos besides the whole photo.

    Attributes:
      boxes: top, left, bottom and right by the photo's id, in pixels; bounds included.
      crops: ids of crops, by the photo's id.
    """

    boxes: dict[str, list[tuple[float, ...]]]
    crops: dict[str, list[str]]


def read_regions(path: files.Path) -> Regions:
    """Reads the regions of photos.

    Raises:
      InputError: when the file is missing or not such a CSV, or a box is empty.
    """
    found = Regions({}, {})
    rows = tables.read_table(path, ("id",), ("region", ""), *((name, "") for name in _BOX))
    for where, (id_, region, *sides) in rows:
        if bool(region) == any(sides):
            raise InputError(f"{where}: give either region, or {', '.join(_BOX)}")
        if region:
            found.crops.setdefault(id_, []).append(region)
        else:
            found.boxes.setdefault(id_, []).append(_box(where, sides))
    return found


def _box(where: str, sides: list[str]) -> tuple[float, ...]:
    try:
        top, left, bottom, right = (float(side) for side in sides)
    except ValueError as error:
        raise InputError(f"{where}: {', '.join(_BOX)} are {sides}, not four numbers") from error
    if not (top < bottom and left < right):  # not a NaN either
        raise InputError(f"{where}: the box {sides} has no pixels; top must be above bottom")
    return top, left, bottom, right


def within(positions: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """Tells which positions (N, 2), y and x, lie in a box."""
    top, left, bottom, right = box
    y, x = positions.T
    return (top <= y) & (y <= bottom) & (left <= x) & (x <= right)
