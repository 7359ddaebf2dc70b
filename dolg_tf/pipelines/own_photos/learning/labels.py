"""Which photo shows which landmark, by a labels.csv or by folders, and which serves for what."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dolg_tf.data import photo_ids
from dolg_tf.data.own_photos import read_labels
from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.stage.config import InputError

LEAST_LANDMARKS, LEAST_PHOTOS = 6, 4  # landmarks of so many photos each
_LIST = "labels.csv"
_LEFT_OUT = 4  # one landmark of so many is kept out of the training, two at least
_ASKED = 5  # one photo of so many asks for the others
_MOST_ASKED = 10  # photos of a landmark that ask
MOST_PHOTOS = 5000  # that are trained on or searched: a quarter of an hour


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labelled photos.

    Attributes:
      photos: in the order of their ids.
      landmarks: of each.
      source: where the labels come from, in words.
      missing: photos that a labels.csv names and that were not found.
    """

    photos: tuple[File, ...]
    landmarks: tuple[str, ...]
    source: str
    missing: int = 0


def find_labels(roots: dict[str, pathlib.Path], photos: Sequence[File]) -> Labels:
    """Finds the labels of photos: a labels.csv in a folder of photos wins over its class folders.

    Args:
      roots: the folders of photos, by label.
      photos: that were found in them; ids begin with the folder's label, if there are several.
    """
    landmark_of, sources, missing = {}, [], 0
    photos = [photo for photo in photos if not photo_ids.fault_of(photo.id)]  # not described
    by_path = {os.path.realpath(photo.path): photo for photo in photos}
    for label, root in roots.items():
        if (root / _LIST).is_file():
            listed = [row for rows in read_labels(root / _LIST).values() for row in rows]
            sources.append(str(root / _LIST))
            for path, landmark in listed:
                photo = by_path.get(os.path.realpath(root / path))
                if photo is None:
                    missing += 1
                else:
                    landmark_of[photo.id] = landmark
            continue
        sources.append(f"folders in {root}")
        prefix = f"{label}/" if label else ""
        for photo in photos:
            if photo.id.startswith(prefix):
                folder, below, _ = photo.id.removeprefix(prefix).partition("/")
                if below:
                    landmark_of[photo.id] = folder
    found = [photo for photo in photos if photo.id in landmark_of]
    landmarks = tuple(landmark_of[photo.id] for photo in found)
    return Labels(tuple(found), landmarks, " and ".join(sources), missing)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What labelled photos serve for; rows of `Labels.photos`, int64.

    Attributes:
      train: are trained on.
      asked: ask for the others; none is trained on.
      index: those that are searched, the ones that are trained on among them.
      left_out: bool, of each photo, whether its landmark is kept out of the training.
      landmarks: numbers that are trained on, and kept out.
    """

    train: np.ndarray
    asked: np.ndarray
    index: np.ndarray
    left_out: np.ndarray
    landmarks: tuple[int, int]


def split(labels: Labels, seed: int = 0) -> Parts:
    """Chooses landmarks that are kept out of the training, and photos that ask for the others.

    Landmarks of fewer than `LEAST_PHOTOS` photos are only searched in.

    Raises:
      InputError: when too few landmarks have enough photos.
    """
    counts = collections.Counter(labels.landmarks)
    enough = sorted(name for name, count in counts.items() if count >= LEAST_PHOTOS)
    if len(enough) < LEAST_LANDMARKS:
        raise InputError(_what_is_lacking(labels, counts, len(enough)))
    rng = np.random.default_rng(seed)
    kept_out = {enough[number] for number in rng.permutation(len(enough))[: _left_out(len(enough))]}
    rows_of = collections.defaultdict(list)
    for row, name in enumerate(labels.landmarks):
        rows_of[name if counts[name] >= LEAST_PHOTOS else ""].append(row)
    most = _bound([counts[name] for name in enough], MOST_PHOTOS)
    train, asked = [], []
    index = rng.permutation(rows_of[""])[:MOST_PHOTOS].astype(np.int64).tolist()
    for name in enough:
        rows = rng.permutation(rows_of[name])[:most].tolist()
        count = min(max(1, len(rows) // _ASKED), _MOST_ASKED)
        asked += rows[:count]
        index += rows[count:]
        train += rows[count:] if name not in kept_out else []
    left_out = np.array([name in kept_out for name in labels.landmarks])
    numbers = len(enough) - len(kept_out), len(kept_out)
    return Parts(*(np.array(sorted(rows)) for rows in (train, asked, index)), left_out, numbers)


def _left_out(count: int) -> int:
    return max(2, count // _LEFT_OUT)


def _bound(counts: list[int], most: int) -> int:
    """Returns how many photos of a landmark are taken, so that all are at most `most`."""
    bound = max(counts)
    while bound > 2 and sum(min(count, bound) for count in counts) > most:
        bound -= max(1, bound // 20)
    return bound


def _what_is_lacking(labels: Labels, counts: collections.Counter, enough: int) -> str:
    told = f"{labels.source}: --learn needs {LEAST_LANDMARKS} landmarks of {LEAST_PHOTOS} photos "
    told += f"or more; of {len(counts)} landmarks, {enough} have so many"
    few = [(name, count) for name, count in sorted(counts.items()) if count < LEAST_PHOTOS]
    if few:
        told += f" ({few[0][0]!r} has {few[0][1]})"
    if labels.missing:
        told += f"; {labels.missing} photos of the list were not found among the photos"
    remedy = "sort photos into a folder for each landmark, or list them in a labels.csv with the "
    return f"{told}; {remedy}columns path and landmark"
