"""A whitening inside the exported model: unit((descriptor - mean) @ projection).

The file is a .npz without pickles: `mean` (D,) and `projection` (D, K), float, K at most D. Other
arrays in it are not read.
"""

import dataclasses
import hashlib
import pathlib
import zipfile

import numpy as np

from dolg_tf import files
from dolg_tf.config import InputError


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Mean (D,) and projection (D, K), float32, and the SHA-256 of their file."""

    mean: np.ndarray
    projection: np.ndarray
    sha256: str

    def apply(self, descriptors):
        """Returns unit rows: float32 (B, D) -> (B, K)."""
        import tensorflow as tf

        return tf.math.l2_normalize((descriptors - self.mean) @ self.projection, axis=-1)


def load_whitening(path: files.Path, size: int) -> Whitening:
    """Reads a whitening.

    Args:
      path: the .npz file.
      size: D, of the network's descriptor.

    Raises:
      InputError: when there is no such file, or its arrays are missing, of other shapes, or not
        finite numbers.
    """
    path, arrays = pathlib.Path(path), []
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in ("mean", "projection"):
                arrays.append(np.asarray(stored[name], np.float32))
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"--whitening={path}: no .npz with the arrays mean and projection ({error})"
        ) from error
    mean, projection = arrays
    fits = mean.shape == (size,) and projection.ndim == 2 and projection.shape[0] == size
    if not (fits and 0 < projection.shape[1] <= size):
        raise InputError(
            f"--whitening={path}: mean {mean.shape} and projection {projection.shape} do not fit "
            f"descriptors of {size}; they must be ({size},) and ({size}, K) with K up to {size}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(projection).all()):
        raise InputError(f"--whitening={path}: holds a NaN or an infinity; learn it again")
    return Whitening(mean, projection, hashlib.sha256(path.read_bytes()).hexdigest())
