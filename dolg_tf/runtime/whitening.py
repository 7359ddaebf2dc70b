"""A whitening on disk: unit((descriptor - mean) @ projection).

The file is a .npz without pickles: `mean` (D,) and `projection` (D, K), float, K at most D, and
`model_hash` of the descriptors it was learned on, if that is known. Other arrays are not read.
`dolg whiten` learns and applies it; an export takes it into the model.
"""

import dataclasses
import pathlib

import numpy as np

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

_SMALL = 4096  # bytes: a header, or a hash


@dataclasses.dataclass(frozen=True)
class Whitening:
    """Mean (D,) and projection (D, K), float32, and the SHA-256 of their file.

    `model_hash` is that of the descriptors it was learned on, "" where the file does not say.
    """

    mean: np.ndarray
    projection: np.ndarray
    sha256: str
    model_hash: str = ""

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Returns descriptors (N, D) whitened: unit rows (N, K), zeros for what equals the mean."""
        found = (rows - self.mean) @ self.projection
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)

    def check_model(
        self, path: files.Path, source: files.Path, *hashes: str, flag: str = "--whitening"
    ) -> None:
        """Checks that it was learned on descriptors of this model, where the file says on which.

        Args:
          path: of the whitening, for the error.
          source: whose descriptors are to be whitened, for the error.
          hashes: of that model; the error names the first.
          flag: that gave the path, for the error.

        Raises:
          InputError: when it was learned on those of another.
        """
        if self.model_hash not in ("", *hashes):
            raise InputError(
                f"{flag}={path} was learned on descriptors of model {self.model_hash}, "
                f"{source} is of {hashes[0]}; learn it again on descriptors of this model"
            )


def write_whitening(
    path: files.Path, mean: np.ndarray, projection: np.ndarray, model_hash: str
) -> None:
    """Writes a whitening, whole or not at all; the same numbers make the same bytes.

    Args:
      path: ends in .npz.
      mean: float (D,), written as float32.
      projection: float (D, K), written as float32.
      model_hash: of the descriptors it was learned on; "": not known.
    """
    arrays = {"mean": np.asarray(mean, "f4"), "projection": np.asarray(projection, "f4")}
    with files.atomic_path(path) as temporary:
        np.savez(temporary, **arrays, model_hash=np.array(model_hash))


def load_whitening(path: files.Path, size: int, flag: str = "--whitening") -> Whitening:
    """Reads a whitening.

    Args:
      path: the .npz file.
      size: D, of the descriptors.
      flag: that gave the path, for errors.

    Raises:
      InputError: when there is no such file, or its arrays are missing, of other shapes, or not
        finite numbers.
    """
    path = pathlib.Path(path)
    files.refuse_other_than_file(path)
    try:
        with path.open("rb") as file, _archive(file) as stored:
            arrays = [_read_array(stored, name, size) for name in ("mean", "projection")]
            model_hash = ""
            if "model_hash" in stored.files and _bytes_of(stored, "model_hash") <= _SMALL:
                model_hash = str(stored["model_hash"])
    except (*files.DAMAGED_ARRAYS, OSError) as error:
        raise InputError(
            f"{flag}={path}: no .npz with the arrays mean and projection ({error})"
        ) from error
    mean, projection = arrays
    fits = mean.shape == (size,) and projection.ndim == 2 and projection.shape[0] == size
    if not (fits and 0 < projection.shape[1] <= size):
        raise InputError(
            f"{flag}={path}: mean {mean.shape} and projection {projection.shape} do not fit "
            f"descriptors of {size}; they must be ({size},) and ({size}, K) with K up to {size}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(projection).all()):
        raise InputError(f"{flag}={path}: holds a NaN or an infinity; learn it again")
    return Whitening(mean, projection, files.sha256(path), model_hash)


def _archive(file):
    """Returns an .npz as it is read, and refuses a single array."""
    found = np.load(file, allow_pickle=False)
    if isinstance(found, np.ndarray):
        raise ValueError("it is a single array")
    return found


def _bytes_of(stored, name: str) -> int:
    """Returns the size of an array's entry in an .npz, unpacked."""
    return stored.zip.getinfo(f"{name}.npy").file_size


def _read_array(stored, name: str, size: int) -> np.ndarray:
    """Returns a real array of at most (size, size) numbers as float32."""
    most = 8 * size * size + _SMALL
    if _bytes_of(stored, name) > most:
        raise ValueError(f"{name} has {_bytes_of(stored, name)} bytes, {size} x {size} is the most")
    array = stored[name]
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} is of {array.dtype}, not of real numbers")
    with np.errstate(over="ignore"):  # infinity is refused
        return np.asarray(array, np.float32)
