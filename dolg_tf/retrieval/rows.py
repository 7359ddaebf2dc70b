"""Rows of descriptors that stay on disk, in one or more arrays."""

from collections.abc import Iterator, Sequence

import numpy as np


class Rows:
    """Rows of one or more arrays, one after the other; arrays on disk stay there.

    Rows are read as aligned float32, whether float32 or float16 is stored: behind a 45-byte file
    header no row is aligned, and NumPy multiplies unaligned rows ten times as slowly. A NumPy array
    can stand in wherever only slices, rows by number and the shape are needed.

    Args:
      arrays: float (N_i, D) with the same D, or other `Rows`; memory-mapped shards, for example.
        They must not change.

    Attributes:
      longest: at least the norm of each row; None until all rows have been read and found finite.
    """

    ndim = 2
    longest: float | None = None

    def __init__(self, arrays: Sequence):
        flat = []
        for array in arrays:
            flat += array.arrays if isinstance(array, Rows) else [array]
        if len({array.shape[1:] for array in flat}) != 1 or flat[0].ndim != 2:
            raise ValueError(f"rows of different shapes: {[array.shape for array in flat]}")
        self.arrays = tuple(flat)
        self._starts = np.cumsum([0, *(len(array) for array in flat)])
        self.shape = (int(self._starts[-1]), flat[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        """Returns float32 rows, for a slice of step 1 or an array of row numbers from 0."""
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            if step != 1:
                raise IndexError(f"slices have step 1, not {step}")
            return self._between(start, max(start, stop))
        rows = np.asarray(key, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        found = np.empty((*rows.shape, self.shape[1]), np.float32)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places):
            there = places == place
            found[there] = self.arrays[place][rows[there] - self._starts[place]]
        return found

    def copy_to(self, out: np.ndarray, start: int) -> None:
        """Copies the rows from `start` on into float32 (B, D), without another copy on the way."""
        at = 0
        for part in self._stored(start, start + len(out)):
            out[at : at + len(part)] = part
            at += len(part)

    def _stored(self, start: int, stop: int) -> list:
        """Returns rows as they are stored, by array."""
        parts = []
        for offset, array in zip(self._starts, self.arrays, strict=False):
            part = array[max(start - offset, 0) : max(stop - offset, 0)]
            if len(part):
                parts.append(part)
        return parts

    def _between(self, start: int, stop: int) -> np.ndarray:
        parts = self._stored(start, stop)
        if len(parts) == 1:
            return np.require(parts[0], np.float32, "A")
        return np.concatenate([np.empty((0, self.shape[1]), np.float32), *parts], dtype=np.float32)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


class Reordered:
    """Rows in another order, or some of them: read by slices and by number.

    Args:
      rows: (N, D), `Rows` or an array.
      order: int (M,), rows.
    """

    ndim = 2

    def __init__(self, rows, order: np.ndarray):
        self._rows, self._order = rows, order
        self.shape = (len(order), rows.shape[1])

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, key) -> np.ndarray:
        return self._rows[self._order[key]]


def blocks(rows, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, float32 (up to `size`, D)) of `Rows` or an array, in order."""
    for start in range(0, len(rows), size):
        yield start, np.asarray(rows[start : start + size], np.float32)
