"""Local feature sets are written photo by photo."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dolg_tf.retrieval import descriptors, norms
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.feature_set import Stored, shard_name
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.meta import format_version
from dolg_tf.stage import checksums, files
from dolg_tf.stage.config import InputError

SHARD_FEATURES = 1 << 26  # 17 GB of 128 numbers in float16


def write(
    path: files.Path,
    photos: Iterable[tuple[str, LocalFeatures]],
    meta: Mapping,
    shard_features: int = SHARD_FEATURES,
) -> None:
    """Writes a local feature set, whole or not at all, with one photo in memory at a time.

    Args:
      path: the directory; anything there is replaced.
      photos: id and features of each.
      meta: for `meta.json`, see `feature_set.META_KEYS`. It may lack `dtype` (then float16), and
        `dimensions` (then those of the features).
      shard_features: most in a shard, unless a single photo has more.

    Raises:
      InputError: when an id occurs twice, or features are not finite, not of unit norm or of
        another length.
    """
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        with SetWriter(temporary, meta, shard_features) as writer:
            for id_, features in photos:
                writer.add(id_, features)
            writer.finish()


class SetWriter:
    """Writes a set into a new folder, photo by photo.

    Args:
      folder: empty, but for the shards of `linked`, `positions-00000.npy` and so on.
      meta, shard_features: see `write`.
      linked: the number of shards in the folder, and of their rows.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        meta: Mapping,
        shard_features: int = SHARD_FEATURES,
        linked: tuple[int, int] = (0, 0),
    ):
        self._folder, self._most = folder, shard_features
        self._meta = {"dtype": "float16", **meta}
        # HOW's, as ASMK needs them; reduced ones have unit norm.
        self._of_any_length = meta.get("kind") == "how" and not meta.get("reduction")
        self._width = meta.get("dimensions")  # of the descriptors; None: there are none yet
        self._ids: list[str] = []
        self._starts: list[int] = []
        self._counts: list[int] = []
        self._sizes: list[tuple[int, int]] = []
        self._sums: list[int] = []
        self._shards, self._end = linked
        self._files: list | None = None  # of the open shard, and the number of its rows
        self._rows = 0

    def __enter__(self) -> "SetWriter":
        return self

    def __exit__(self, *error) -> None:
        for file in self._files or ():
            file.close()

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, id_: str, features: LocalFeatures) -> None:
        """Adds a photo.

        Raises:
          InputError: when its features are not finite, not of unit norm, or of another length than
            those before.
        """
        for name in ("positions", "scales", "strengths"):
            if not np.isfinite(getattr(features, name)).all():
                raise InputError(f"{id_}: {name} of its local features are not finite")
        found, where = norms.norms_of(features.descriptors, id_), f"{id_}, local features"
        norms.check_finite(found, where)
        if not self._of_any_length:
            norms.check_unit(found[found > 0], where, remedy="extract it again")  # 0: no direction
        width = features.descriptors.shape[1]
        if len(features):
            self._width = width if self._width is None else self._width
            if width != self._width:
                raise InputError(f"{id_}: local descriptors of {width} numbers, not {self._width}")
            self._meta["dimensions"] = width
        # What has no features may not know their length; a set without any has that of the first.
        self._meta.setdefault("dimensions", width)
        arrays = features.positions, features.scales, features.strengths
        stored = Stored(
            *(np.asarray(array, "<f4") for array in arrays),
            feature_set.packed(features.descriptors, self._meta["dtype"]),
        )
        self.add_stored(id_, features.size, stored, stored.digest())

    def add_stored(self, id_: str, size: Sequence[int], stored: Stored, digest: int) -> None:
        """Adds a photo whose features are as they will be stored."""
        count = len(stored.strengths)
        if count and (self._files is None or 0 < self._rows > self._most - count):
            self._close_shard()
            self._open_shard(stored)
        self.add_linked(id_, size, self._end if count else 0, count, digest)
        if count:
            for file, array in zip(self._files, stored, strict=True):
                file.write(np.ascontiguousarray(array).data)
            self._rows += count
            self._end += count

    def add_linked(
        self, id_: str, size: Sequence[int], start: int, count: int, digest: int
    ) -> None:
        """Adds a photo whose features are in the folder already, from a row of all shards on."""
        self._ids.append(id_)
        self._sizes.append((int(size[0]), int(size[1])))
        self._starts.append(start)
        self._counts.append(count)
        self._sums.append(digest)

    def drop(self, id_: str) -> None:
        """Takes a photo out again; what it took of a file stays there."""
        at = self._ids.index(id_)
        for column in (self._ids, self._starts, self._counts, self._sizes, self._sums):
            del column[at]

    def _open_shard(self, like: Stored) -> None:
        self._files = [
            (self._folder / f"{part}-{self._shards:05d}.npy").open("w+b") for part in like._fields
        ]
        self._like, self._rows = like, 0
        self._write_headers()

    def _write_headers(self) -> None:
        """Writes the headers of the open shard; NumPy leaves room in them for more rows."""
        for file, array in zip(self._files, self._like, strict=True):
            file.seek(0)
            header = {
                "descr": np.lib.format.dtype_to_descr(array.dtype),
                "fortran_order": False,
                "shape": (self._rows, *array.shape[1:]),
            }
            np.lib.format.write_array_header_1_0(file, header)

    def _close_shard(self) -> None:
        if self._files is None:
            return
        self._write_headers()
        for file in self._files:
            file.close()
        self._files = None
        self._shards += 1

    def finish(self) -> None:
        """Completes the set.

        Raises:
          InputError: when an id cannot be one or occurs twice, or meta lacks a key.
        """
        self._close_shard()
        for key in feature_set.META_KEYS:
            if key not in {"dimensions": 0, **self._meta}:
                raise InputError(f"{self._folder}: meta has no {key!r}")
        descriptors.check_ids(self._ids, self._folder)
        for file in self._folder.glob("*-?????.npy"):
            part, _, number = file.stem.rpartition("-")
            file.rename(self._folder / shard_name(part, int(number), self._shards))
        offsets = np.cumsum([0, *self._counts], dtype=np.int64)
        starts = np.array(self._starts, np.int64)
        tables = {
            "offsets": offsets,
            "sizes": np.array(self._sizes, np.int32).reshape(-1, 2),
            "sums": np.array(self._sums, np.uint32),
        }
        if ((starts != offsets[:-1]) & (np.diff(offsets) > 0)).any():
            tables["starts"] = starts
        for name, table in tables.items():
            np.save(self._folder / f"{name}.npy", table)
        files.write_text(self._folder / "ids.txt", "".join(f"{id_}\n" for id_ in self._ids))
        sums = checksums.of_files(self._folder, ["ids.txt", *(f"{name}.npy" for name in tables)])
        meta = {"dimensions": 0, **self._meta, "format_version": format_version(self._meta)}
        checksums.write_json(self._folder / "meta.json", meta, sums)
