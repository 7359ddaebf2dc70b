"""Norms of descriptors: scores are inner products, so rows must be finite and of unit L2 norm.

A row of another norm is not merely scaled: a long one is near to every query, and a row of zeros
is nowhere. Whoever scores rows reads them through here, by `descriptors.read`.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from dolg_tf.stage import checksums, files
from dolg_tf.stage.config import InputError, option

TOLERANCE = 0.01  # float16 rounds a norm by 5e-4, one that was divided in bfloat16 by 4e-3
_BLOCK = 4096  # rows
REMEDY = "extract them again, or give --normalize to divide each row by its norm"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormConfig:
    """What is done about descriptors of other norms, as other tools write them."""

    normalize: bool = option(
        "divide each descriptor by its L2 norm, for rows that another tool wrote at other lengths; "
        "without it they are refused",
        False,
    )


def norms_of(rows, source, each: Callable[[np.ndarray], None] | None = None) -> np.ndarray:
    """Returns the L2 norms of rows, float32 (N,), not finite where a row is not.

    Args:
      rows: float (N, D), read block by block.
      source: of the rows, for the error.
      each: is given each block as it is stored.

    Raises:
      InputError: when they are no rows of floats.
    """
    dtype = getattr(rows, "dtype", np.dtype(np.float32))
    if len(rows.shape) != 2 or dtype.kind != "f":
        raise InputError(f"{source}: {dtype} {rows.shape}; descriptors are float32 (N, D)")
    norms = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):
        stored = rows[start : start + _BLOCK]
        if each is not None:
            each(stored)
        norms[start : start + len(stored)] = _lengths(stored)
    return norms


def _lengths(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        block = np.asarray(rows, np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        # Squares that float32 cannot hold.
        odd = np.flatnonzero(~((norms > 1e-12) & np.isfinite(norms)))
        if odd.size:
            norms[odd] = np.linalg.norm(block[odd].astype(np.float64), axis=1)
        return norms


def check_finite(norms: np.ndarray, source, first: int = 0) -> None:
    """Makes sure that all norms are finite.

    Args:
      norms: (N,).
      source: of the rows, for the error.
      first: number of the first row, for the error.

    Raises:
      InputError: naming the first row whose norm is not.
    """
    wrong = np.flatnonzero(~np.isfinite(norms))
    if wrong.size:
        raise InputError(f"{source}: row {first + int(wrong[0])} is not finite; extract it again")


def check_unit(
    norms: np.ndarray,
    source,
    name: Callable[[int], str] = "row {}".format,
    remedy: str = REMEDY,
    tolerance: float = TOLERANCE,
) -> None:
    """Makes sure that all norms are 1.

    Args:
      norms: (N,).
      source: of the rows, for the error.
      name: what the error calls a row.
      remedy: what the error proposes.
      tolerance: largest difference from 1.

    Raises:
      InputError: saying how many are not, the range of the norms and the first row.
    """
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= tolerance))
    if wrong.size:
        raise InputError(
            f"{source}: {wrong.size:,} of {len(norms):,} rows are not of unit norm (norms from "
            f"{norms.min():.4g} to {norms.max():.4g}, the first is {name(int(wrong[0]))}), and "
            f"scores are inner products; {remedy}"
        )


def check_rows(
    rows, source, first: int = 0, remedy: str = REMEDY, tolerance: float = TOLERANCE
) -> None:
    """Makes sure that rows can be scored.

    Args:
      rows: float (N, D), read block by block.
      source: of the rows, for the error.
      first: number of the first row, for the error.
      remedy, tolerance: see `check_unit`.

    Raises:
      InputError: naming the first row that is not finite or not of unit norm.
    """
    found = norms_of(rows, source)
    check_finite(found, source, first)
    check_unit(found, source, lambda row: f"row {first + row}", remedy, tolerance)


def check_none_zero(norms: np.ndarray, source, name: Callable[[int], str] = "row {}".format):
    """Makes sure that each row can be divided by its norm.

    Raises:
      InputError: naming the first row of zeros.
    """
    wrong = np.flatnonzero(~(norms >= np.finfo(np.float32).tiny))
    if wrong.size:
        raise InputError(
            f"{source}: {wrong.size:,} of {len(norms):,} rows are zero, the first is "
            f"{name(int(wrong[0]))}; they have no direction, so leave them out"
        )


def read_npy(path: pathlib.Path, expected: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of an `.npy`, which stay on disk, and their norms.

    Args:
      path: the file.
      expected: its checksum; None: it has none.

    Raises:
      InputError: when it is damaged, or a row is not finite.
    """
    files.refuse_other_than_file(path)
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except files.DAMAGED_ARRAYS as error:
        raise InputError(f"{path}: not a complete .npy of numbers ({error})") from error
    if not isinstance(rows, np.ndarray):
        raise InputError(f"{path}: an archive of arrays; descriptors are a single .npy")
    if expected is None:
        norms = norms_of(rows, path)
    else:
        crc = checksums.Running()
        with path.open("rb") as file:
            crc.add(file.read(rows.offset))
        norms = norms_of(rows, path, crc.add)  # one reading for both
        if crc.digits() != expected:
            raise checksums.wrong(path, "extract the set again")
    check_finite(norms, path)
    return rows, norms


class Normalized:
    """Rows divided by their norms when they are read.

    Args:
      rows: float (N, D), memory-mapped for example.
      norms: (N,), none 0.
    """

    ndim = 2

    def __init__(self, rows: np.ndarray, norms: np.ndarray):
        self._rows, self._norms = rows, norms
        self.shape, self.dtype = rows.shape, np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._norms)

    def __getitem__(self, key) -> "Normalized":
        """Returns the rows of a slice or of an array of numbers; a slice reads nothing."""
        return Normalized(self._rows[key], self._norms[key])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        # In float64, where neither a huge row overflows nor a tiny one vanishes.
        rows = np.asarray(self._rows, np.float64) / self._norms[:, None].astype(np.float64)
        return rows.astype(np.float32 if dtype is None else dtype)
