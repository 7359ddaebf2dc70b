"""The local feature set: what extraction writes beside the descriptor set, and matching reads.

A directory with a row per photo in `ids.txt`, `offsets.npy` int64 (N + 1), whose differences are
the photos' numbers of features, and `sizes.npy` int32 (N, 2), their heights and widths in the
pixels of the positions. The features are in shards, `positions-%05d-of-%05d.npy` float32 (F, 2),
`scales-` and `strengths-` float32 (F,) and `descriptors-` (F, D), float16 or float32, or the signs
of the D numbers as packed bits, uint8 (F, ceil(D / 8)). Those of a photo are in one shard, one
photo behind the other; or, where `starts.npy` int64 (N,) exists, from that row of all shards on:
then there may be gaps and another order, so that an index adds and removes photos without copying
the others. `sums.npy` uint32 (N,) holds the CRC-32C of each photo's features: sets are too large
to be read whole when they are opened. `meta.json` says how they were made.
"""

import dataclasses
import operator
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from dolg_tf.retrieval import descriptors, joining
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.meta import DTYPES, FORMAT_VERSIONS, check_meta, with_defaults
from dolg_tf.stage import checksums, files, workshop
from dolg_tf.stage.config import InputError

LOCAL_DTYPES = (*DTYPES, "bits")
# What two sets must share for their features to be matched; see `how_made`.
SAME_SPACE = ("model_hash", "kind", "reduction", "dimensions", "upright", "bits")
META_KEYS = (
    *("image_root", "model_hash", "scales", "crop", "max_side", "dtype", "whitening", "bad"),
    *("kind", "dimensions", "reduction", "threshold", "max_features"),
)
TABLES = ("offsets.npy", "sizes.npy", "starts.npy", "sums.npy")
REMEDY = "extract the set again"
_SHARD = re.compile(r"positions-(\d{5})-of-(\d{5})\.npy")


class Stored(NamedTuple):
    """Features as they are stored: of a shard, or of a photo in it."""

    positions: np.ndarray
    scales: np.ndarray
    strengths: np.ndarray
    descriptors: np.ndarray

    def part(self, start: int, stop: int) -> "Stored":
        """Returns those of some rows."""
        return Stored(*(array[start:stop] for array in self))

    def digest(self) -> int:
        """Returns the CRC-32C of all numbers."""
        crc = checksums.Running()
        for array in self:
            crc.add(array)
        return int(crc.digits(), 16)


@dataclasses.dataclass(frozen=True)
class LocalFeatureSet:
    """Local features of photos; those of a photo are read from the disk when it is asked for.

    Attributes:
      ids: one per row.
      meta: how they were made, as in `meta.json`.
      sizes: int32 (N, 2), height and width of each photo.
      counts: int64 (N,), the number of features of each photo.
      starts: int64 (N,), the first of them among the rows of all shards.
      sums: uint32 (N,), their checksums.
      shards: memory-mapped.
      source: where they were read from, for errors.
    """

    ids: tuple[str, ...] = dataclasses.field(repr=False)
    meta: dict
    sizes: np.ndarray = dataclasses.field(repr=False)
    counts: np.ndarray = dataclasses.field(repr=False)
    starts: np.ndarray = dataclasses.field(repr=False)
    sums: np.ndarray = dataclasses.field(repr=False)
    shards: tuple[Stored, ...] = dataclasses.field(repr=False)
    source: str = "local feature set"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> LocalFeatures:
        """Returns the features of a photo; none where it has none.

        Raises:
          InputError: when they are damaged.
        """
        stored = self.stored(row)
        return LocalFeatures(
            np.array(stored.positions),
            np.array(stored.scales),
            np.array(stored.strengths),
            unpacked(stored.descriptors, self.meta["dtype"], self.meta["dimensions"]),
            (int(self.sizes[row, 0]), int(self.sizes[row, 1])),
        )

    def stored(self, row: int) -> Stored:
        """Returns the features of a photo as they are stored, after comparing their checksum.

        Raises:
          InputError: when they are damaged.
        """
        row = operator.index(row)
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        if not self.counts[row]:
            return empty(self.meta["dtype"], self.meta["dimensions"])
        shard, start = self.place(row)
        found = self.shards[shard].part(start, start + int(self.counts[row]))
        if found.digest() != self.sums[row]:
            raise InputError(
                f"{self.source}: the features of {self.ids[row]!r} are damaged, their checksum is "
                f"wrong; {REMEDY}"
            )
        return found

    def place(self, row: int) -> tuple[int, int]:
        """Returns the shard of a photo that has features, and the first of its rows there."""
        bases = self.bases()
        shard = int(np.searchsorted(bases, self.starts[row], side="right")) - 1
        return shard, int(self.starts[row] - bases[shard])

    def bases(self) -> np.ndarray:
        """Returns the row among those of all shards at which each begins, and the end."""
        return np.cumsum([0, *(len(shard.strengths) for shard in self.shards)], dtype=np.int64)

    def rows_of(self, ids: Iterable[str]) -> np.ndarray:
        """Returns the row of each photo, int64; names of another hand are joined as descriptors'.

        Raises:
          InputError: when one is missing.
        """
        ids = tuple(ids)
        if ids == self.ids:
            return np.arange(len(ids))
        rows = joining.find_rows(ids, self.ids, self.source)
        if (rows < 0).any():
            raise InputError(
                f"{self.source} lacks {joining.of_which(ids, rows, self.ids)}; extract the photos "
                "with their local features, by `dolg extract --local`"
            )
        return rows


def how_made(found: LocalFeatureSet) -> tuple[str, dict]:
    """Returns the source of a set and what `SAME_SPACE` names, for comparing it with another's."""
    return found.source, {**found.meta, "bits": found.meta["dtype"] == "bits"}


def check_output(path: files.Path, overwrite: bool) -> None:
    """Makes sure that a set may be put in place.

    Raises:
      InputError: when something is there, unless it is a finished set and `overwrite` is true.
    """
    files.check_output(path, overwrite, "meta.json", "offsets.npy", "sums.npy")


# --- descriptors as they are stored -----------------------------------------------------


def empty(dtype: str, dimensions: int) -> Stored:
    """Returns no features."""
    width, kind = (-(-dimensions // 8), "u1") if dtype == "bits" else (dimensions, dtype)
    return Stored(
        np.empty((0, 2), "f4"), np.empty(0, "f4"), np.empty(0, "f4"), np.empty((0, width), kind)
    )


def packed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Returns descriptors (F, D) as they are stored; a bit says whether a number is above 0."""
    return np.packbits(rows > 0, axis=1) if dtype == "bits" else np.asarray(rows, dtype)


def unpacked(stored: np.ndarray, dtype: str, dimensions: int) -> np.ndarray:
    """Returns stored descriptors as float32 (F, D); bits as +-1 / sqrt(D), of unit norm."""
    if dtype != "bits":
        return np.array(stored, np.float32)
    signs = np.unpackbits(stored, axis=1, count=dimensions)
    return (2 * signs.astype(np.float32) - 1) / np.float32(dimensions**0.5)


# --- reading -----------------------------------------------------------------------------


def read(path: files.Path) -> LocalFeatureSet:
    """Opens a local feature set; the features stay on disk, memory-mapped.

    Raises:
      InputError: when a file is missing or damaged, or counts disagree. The features themselves
        are checked when they are read.
    """
    path = pathlib.Path(path)
    if not workshop.recover(path) or not path.is_dir():
        raise InputError(f"{path}: no such local feature set; `dolg extract --local` writes one")
    if not (path / "offsets.npy").exists():
        raise InputError(
            f"{path}: not a local feature set, it has no offsets.npy; `dolg extract --local` "
            "writes one, named OUTPUT.local"
        )
    meta, sums = checksums.read_json(path / "meta.json", FORMAT_VERSIONS, REMEDY)
    _check_meta(meta, path / "meta.json")
    names = ["ids.txt", *(name for name in TABLES if (path / name).exists())]
    missing = {"ids.txt", *TABLES} - {"starts.npy"} - set(sums) or set(names) ^ set(sums)
    if missing:
        raise InputError(f"{path}: {min(missing)} is missing or does not belong there; {REMEDY}")
    checksums.check(path, sums, REMEDY)
    tables = {name: _load(path / name) for name in names[1:]}
    shards = _read_shards(path, meta)
    found = LocalFeatureSet(
        descriptors.read_ids(path / "ids.txt"),
        with_defaults(meta),
        tables["sizes.npy"],
        np.diff(tables["offsets.npy"]),
        tables.get("starts.npy", tables["offsets.npy"][:-1]),
        tables["sums.npy"],
        shards,
        str(path),
    )
    _check_places(found)
    return found


def _check_meta(meta: Mapping, source: pathlib.Path) -> None:
    check_meta({**meta, "dtype": DTYPES[0]}, META_KEYS, source, REMEDY)
    rules = {
        "dtype": meta.get("dtype") in LOCAL_DTYPES,
        "kind": isinstance(meta["kind"], str | None),
        "dimensions": type(meta["dimensions"]) is int and 0 <= meta["dimensions"] < 1 << 16,
        "reduction": isinstance(meta["reduction"], str | None),
        "threshold": isinstance(meta["threshold"], int | float | None),
        "max_features": isinstance(meta["max_features"], int | None),
    }
    for key, fits in rules.items():
        if not fits:
            raise InputError(f"{source}: {key} is {meta.get(key)!r:.60}; {REMEDY}")


def _load(path: pathlib.Path, mapped: bool = False) -> np.ndarray:
    files.refuse_other_than_file(path)
    try:
        found = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        if isinstance(found, np.ndarray) and found.ndim:
            return found
    except OSError as error:
        reason = error.strerror or error
    except files.DAMAGED_ARRAYS as error:
        reason = error
    else:
        reason = "not an array"
    raise InputError(f"{path}: not a complete .npy of numbers ({reason}); {REMEDY}")


def shard_name(part: str, shard: int, count: int) -> str:
    """Returns a file name such as `positions-00003-of-00012.npy`."""
    return f"{part}-{shard:05d}-of-{count:05d}.npy"


def _read_shards(path: pathlib.Path, meta: Mapping) -> tuple[Stored, ...]:
    there = sorted(file.name for file in path.glob("positions-*.npy"))
    numbers = [_SHARD.fullmatch(name) for name in there]
    count = len(there)
    if [found and (int(found[1]), int(found[2])) for found in numbers] != [
        (shard, count) for shard in range(count)
    ]:
        raise InputError(f"{path}: not all shards are there, or too many; {REMEDY}")
    like = empty(meta["dtype"], meta["dimensions"])
    shards = []
    for shard in range(count):
        names = [path / shard_name(part, shard, count) for part in Stored._fields]
        arrays = Stored(*(_load(name, mapped=True) for name in names))
        for name, array, expected in zip(names, arrays, like, strict=True):
            shape = (len(arrays.strengths), *expected.shape[1:])
            if array.dtype != expected.dtype or array.shape != shape:
                raise InputError(
                    f"{name}: {array.dtype} {array.shape}, not {expected.dtype} {shape}; {REMEDY}"
                )
        shards.append(arrays)
    return tuple(shards)


def _check_places(found: LocalFeatureSet) -> None:
    """Makes sure that each photo's features are in a shard, and that the tables are of one length.

    Raises:
      InputError: when they are not.
    """
    count = len(found)
    shapes = {
        "sizes.npy": (found.sizes, np.int32, (count, 2)),
        "offsets.npy": (found.counts, np.int64, (count,)),
        "starts.npy": (found.starts, np.int64, (count,)),
        "sums.npy": (found.sums, np.uint32, (count,)),
    }
    for name, (array, dtype, shape) in shapes.items():
        if array.dtype != dtype or array.shape != shape:
            raise InputError(
                f"{found.source}/{name}: {array.dtype} {array.shape} for {count} ids; {REMEDY}"
            )
    counts, starts, bases = found.counts, found.starts, found.bases()
    if count and (counts.min() < 0 or starts.min() < 0 or found.sizes.min() < 0):
        raise InputError(f"{found.source}: offsets or sizes below 0; {REMEDY}")
    has = np.flatnonzero(counts)
    shard = np.searchsorted(bases, starts[has], side="right") - 1
    inside = shard < len(found.shards)
    ends = bases[np.minimum(shard + 1, len(bases) - 1)]
    wrong = has[~(inside & (counts[has] <= ends - starts[has]))]
    if wrong.size:
        raise InputError(
            f"{found.source}: the features of {found.ids[wrong[0]]!r} are outside the shards; "
            f"{REMEDY}"
        )
