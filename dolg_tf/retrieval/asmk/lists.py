"""The inverted file: for each word, the images that have it and what is stored of them there.

A directory with `offsets.npy`, int64 (K + 1): the entries of word c are those from offsets[c] to
offsets[c + 1]; `rows.npy`, int32 (E,), the image of an entry, ascending within a word; `codes.npy`,
uint8 or float32 (E, W), see `kernel`; `norms.npy`, float64 (N,), the root of the summed weights of
an image's words; `codebook.npz`; `ids.txt`, an image a line; and `meta.json`. All arrays are
memory-mapped: a search reads the lists of its words alone.
"""

import dataclasses
import pathlib

import numpy as np

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.asmk import words
from dolg_tf.retrieval.asmk.kernel import VARIANTS, Kernel
from dolg_tf.retrieval.asmk.words import Codebook
from dolg_tf.stage import checksums, files, workshop
from dolg_tf.stage.config import InputError

FORMAT_VERSION = 1
CONTENTS = "ASMK index"
REMEDY = "build the index again"
_BLOCK = 1 << 22  # entries that are checked at once
# Read whole whenever the index is opened, so their checksums are compared then. Those of the
# others, which may be larger than memory, `dolg verify` compares.
_SMALL = ("ids.txt", "offsets.npy", "norms.npy", "codebook.npz")
_MAPPED = ("rows.npy", "codes.npy")
_KEYS = {
    "contents": str,
    "variant": str,
    "binary": bool,
    "idf": bool,
    "regions": bool,
    "assignments": int,
    "photos": int,
    "counted": int,
    "words": int,
    "entries": int,
    "dimensions": int,
}


@dataclasses.dataclass(frozen=True)
class Inverted:
    """An inverted file that is open for searching.

    Attributes:
      path: the directory.
      ids: of the images.
      meta: the contents of `meta.json`.
      codebook: its visual words.
      offsets, rows, codes, norms: as in the directory.
    """

    path: pathlib.Path
    ids: tuple[str, ...] = dataclasses.field(repr=False)
    meta: dict
    codebook: Codebook
    offsets: np.ndarray
    rows: np.ndarray
    codes: np.ndarray
    norms: np.ndarray

    @classmethod
    def open(cls, path: files.Path) -> "Inverted":
        """Opens an inverted file.

        Raises:
          InputError: when it is missing, damaged or from another release.
        """
        path = pathlib.Path(path)
        meta, sums = read_meta(path)
        checksums.check(path, {name: sums.get(name, "") for name in _SMALL}, REMEDY)
        ids = descriptors.read_ids(path / "ids.txt")
        offsets, norms, rows, codes = (
            _array(path / name) for name in ("offsets.npy", "norms.npy", *_MAPPED)
        )
        kernel, count = kernel_of(meta), meta["entries"]
        found = [(a.shape, a.dtype) for a in (offsets, norms, rows, codes)]
        wanted = [
            ((meta["words"] + 1,), np.int64),
            ((meta["photos"],), np.float64),
            ((count,), np.int32),
            ((count, kernel.width), kernel.dtype),
        ]
        codebook = words.read_codebook(path / "codebook.npz")
        found.append(codebook.centroids.shape)
        wanted.append((meta["words"], meta["dimensions"]))
        fit = found == wanted and len(ids) == meta["photos"]
        if not fit or offsets[0] or offsets[-1] != count or (np.diff(offsets) < 0).any():
            raise InputError(f"{path}: its files do not fit each other; {REMEDY}")
        return cls(path, ids, meta, codebook, offsets, rows, codes, norms)

    def __len__(self) -> int:
        return len(self.ids)

    def check_lists(self) -> None:
        """Reads all lists.

        Raises:
          InputError: when a checksum differs, or a list has an image twice or an unknown one.
        """
        _, sums = read_meta(self.path)
        checksums.check(self.path, {name: sums.get(name, "") for name in _MAPPED}, REMEDY)
        first = np.zeros(len(self.rows) + 1, bool)
        first[self.offsets] = True
        for start in range(0, len(self.rows), _BLOCK):
            rows = np.asarray(self.rows[start : start + _BLOCK + 1])  # and the first of the next
            steps = np.diff(rows) <= 0
            if rows.min() < 0 or rows.max() >= len(self):
                raise InputError(f"{self.path / 'rows.npy'}: an image that is not there; {REMEDY}")
            if (steps & ~first[start + 1 : start + len(rows)]).any():
                raise InputError(f"{self.path / 'rows.npy'}: images do not ascend; {REMEDY}")


def kernel_of(meta: dict, alpha: float = 3.0, threshold: float = 0.0) -> Kernel:
    """Returns the kernel of an index."""
    return Kernel(meta["variant"], meta["dimensions"], meta["binary"], alpha, threshold)


def read_meta(path: pathlib.Path) -> tuple[dict, dict[str, str]]:
    """Returns the contents of `meta.json`, and the checksums of the files.

    Raises:
      InputError: when it is missing, damaged or of something else.
    """
    file = path / "meta.json"
    if not workshop.recover(file):
        raise InputError(f"{path}: no ASMK index; `dolg asmk build` writes one")
    meta, sums = checksums.read_json(file, FORMAT_VERSION, REMEDY)
    if meta.get("contents") != CONTENTS:
        raise InputError(f"{path} is not an ASMK index; `dolg asmk build` writes one")
    for key, kind in _KEYS.items():
        if type(meta.get(key)) is not kind:
            raise InputError(f"{file}: {key} is {meta.get(key)!r:.60}; {REMEDY}")
    if meta["variant"] not in VARIANTS or min(meta["photos"], meta["dimensions"]) < 1:
        raise InputError(f"{file}: damaged; {REMEDY}")
    return meta, sums


def _array(path: pathlib.Path) -> np.ndarray:
    files.refuse_other_than_file(path)
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (*files.DAMAGED_ARRAYS, OSError):
        try:  # an empty array cannot be mapped
            found = np.load(path, allow_pickle=False)
        except (*files.DAMAGED_ARRAYS, OSError) as error:
            raise InputError(f"{path}: missing or damaged ({error}); {REMEDY}") from error
    return found.view(np.ndarray)  # slices of memmap objects are slow


class Writer:
    """Writes one `.npy` row by row, its length being known."""

    def __init__(self, path: pathlib.Path, shape: tuple[int, ...], dtype):
        self._file = path.open("wb")
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
        np.lib.format.write_array_header_1_0(self._file, about | {"shape": shape})
        self._dtype = dtype

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def add(self, rows: np.ndarray) -> None:
        """Adds rows."""
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)
