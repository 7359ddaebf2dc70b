"""Visual words: the centroids of a codebook, their file, and the nearest ones of a descriptor."""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np

from dolg_tf.retrieval.local import feature_set
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

_DISTANCES = 1 << 25  # that are in memory at once: 128 MB
_MOST_ROWS = 1 << 14
# What local features must share with those that words were learned on. Whether their photos were
# turned by their EXIF orientation is no matter there.
SPACE = tuple(key for key in feature_set.SAME_SPACE if key != "upright")
_LARGEST = 1 << 33  # bytes of a codebook: 2^24 words of 128 numbers


@dataclasses.dataclass(frozen=True)
class Codebook:
    """Visual words.

    Attributes:
      centroids: float32 (K, D).
      space: what the features say of themselves that it was learned on: the keys `SPACE`; empty:
        that is not known.
    """

    centroids: np.ndarray
    space: dict

    def __len__(self) -> int:
        return len(self.centroids)

    def nearest(self, descriptors: np.ndarray, count: int) -> np.ndarray:
        """Finds the nearest words by exact search.

        Distances are of float32 products, so words that differ by their rounding may change places.

        Args:
          descriptors: float (N, D).
          count: m, words per descriptor.

        Returns:
          int32 (N, m), the nearest first, the lower number first among equals.
        """
        centroids = self.centroids
        found = np.empty((len(descriptors), count), np.int32)
        half = np.einsum("kd,kd->k", centroids, centroids) / 2
        rows = max(1, min(_MOST_ROWS, _DISTANCES // len(centroids)))
        for start in range(0, len(descriptors), rows):
            block = np.asarray(descriptors[start : start + rows], np.float32)
            # x.c - |c|^2 / 2 is largest where |x - c|^2 is smallest.
            nearness = block @ centroids.T
            nearness -= half
            each = np.arange(len(block))
            for place in range(count):
                best = nearness.argmax(axis=1)
                found[start : start + rows, place] = best
                nearness[each, best] = -np.inf
        return found


def check_same(made: Mapping[str, Mapping], keys: Iterable[str] = SPACE) -> None:
    """Makes sure that things belong together: codebook, index, sets of local features.

    Args:
      made: what each says of its descriptors, by its name in the error.
      keys: what must be equal.

    Raises:
      InputError: naming the first key that differs.
    """
    (first, one), *others = made.items()
    for name, other in others:
        for key in keys:
            if one.get(key) != other.get(key):
                raise InputError(
                    f"{first} has {key} {one.get(key)!r:.80}, {name} has {other.get(key)!r:.80}: "
                    "their local features cannot be compared; extract them with one model"
                )


def write_codebook(path: files.Path, codebook: Codebook) -> None:
    """Writes a codebook, whole or not at all: an .npz of `centroids` and, as JSON, `about`."""
    about = np.array(json.dumps(codebook.space, sort_keys=True))
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, centroids=codebook.centroids.astype(np.float32), about=about)


def read_codebook(path: files.Path) -> Codebook:
    """Reads a codebook; one without `about`, made elsewhere, is of unknown features.

    Raises:
      InputError: when there is none, or it is damaged.
    """
    path = pathlib.Path(path)
    workshop.recover(path)
    files.refuse_other_than_file(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; `dolg asmk codebook` writes a codebook")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _LARGEST:
                raise ValueError(f"more than {_LARGEST} bytes")
        with np.load(path, allow_pickle=False) as stored:
            centroids = stored["centroids"]
            about = json.loads(str(stored["about"])) if "about" in stored.files else {}
    except (*files.DAMAGED_ARRAYS, OSError) as error:
        raise InputError(f"{path}: not a codebook, or damaged ({error}); learn it again") from error
    sound = centroids.ndim == 2 and centroids.dtype == np.float32 and centroids.size
    if not (sound and np.isfinite(centroids).all() and isinstance(about, dict)):
        raise InputError(f"{path}: centroids are not finite float32 (K, D); learn it again")
    return Codebook(centroids, about)
