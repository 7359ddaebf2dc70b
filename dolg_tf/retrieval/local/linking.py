"""A local feature set made of photos of others, whose shards it shares by hard links."""

import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from dolg_tf.retrieval.local.feature_set import LocalFeatureSet, Stored, shard_name
from dolg_tf.retrieval.local.writing import SHARD_FEATURES, SetWriter
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError

Part = tuple[LocalFeatureSet, np.ndarray]
"""A set, and int64 (M,), the rows to take of it."""


def join(
    path: files.Path,
    parts: Sequence[Part],
    meta: Mapping | None = None,
    shard_features: int = SHARD_FEATURES,
) -> None:
    """Writes photos of sets as one set, whole or not at all, copying as little as possible.

    Shards are linked to (copied where the file system has no hard links), with gaps where photos
    were left out. Features are copied only from shards of which less than half is left, and from
    small ones, such that each copy at least doubles their size: a set that grows by one photo at a
    time has a few dozen shards, and copies each feature a few dozen times at most.

    Args:
      path: the directory; anything there is replaced. It may be one of the sets: those that are
        open do not see the change.
      parts: photos of the first, then those of the second and so on.
      meta: for `meta.json`; None: that of the first set.
      shard_features: at least half of this is not small.

    Raises:
      InputError: when descriptors are stored in different ways, a photo occurs twice, or one that
        is copied is damaged.
    """
    meta = {**(parts[0][0].meta if meta is None else meta), "dimensions": _dimensions(parts)}
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        bases, end = {}, 0
        for number, (part, shard) in enumerate(_linked(parts, shard_features)):
            _link(parts[part][0], shard, temporary, number)
            bases[part, shard] = end
            end += len(parts[part][0].shards[shard].strengths)
        with SetWriter(temporary, meta, shard_features, (len(bases), end)) as writer:
            photos = ((part, int(row)) for part, (_, rows) in enumerate(parts) for row in rows)
            total = sum(len(rows) for _, rows in parts)
            for part, row in progress.track(photos, total, "join local features"):
                _add(writer, parts[part][0], row, bases, part)
            writer.finish()


def _dimensions(parts: Sequence[Part]) -> int:
    """Returns the length of the descriptors, of which sets without features know nothing.

    Raises:
      InputError: when they are stored in different ways.
    """
    known = [found for found, _ in parts if found.shards] or [parts[0][0]]
    for found in known[1:]:
        for key in ("dtype", "dimensions"):
            if found.meta[key] != known[0].meta[key]:
                raise InputError(
                    f"{found.source} has {key} {found.meta[key]!r}, {known[0].source} has "
                    f"{known[0].meta[key]!r}; extract both in the same way"
                )
    return known[0].meta["dimensions"]


def _linked(parts: Sequence[Part], most: int) -> list[tuple[int, int]]:
    """Returns the shards that are linked to, as (number of the set, shard)."""
    linked, small, copied = [], [], 0
    for part, (found, rows) in enumerate(parts):
        used = np.asarray(rows, np.int64)
        used = used[found.counts[used] > 0]
        shards = np.searchsorted(found.bases(), found.starts[used], side="right") - 1
        alive = np.zeros(len(found.shards), np.int64)
        np.add.at(alive, shards, found.counts[used])
        for shard, count in enumerate(alive.tolist()):
            if 2 * count < len(found.shards[shard].strengths):
                copied += count
            elif 2 * count >= most:
                linked.append((part, shard))
            else:
                small.append((count, part, shard))
    small.sort()
    # The smallest shards are copied into one, as many as at least double the size of each.
    before = copied + np.cumsum([0, *(count for count, _, _ in small)])
    double = [at for at, (count, _, _) in enumerate(small) if before[at] >= count]
    kept = small[double[-1] + 1 :] if double else small
    return sorted(linked + [(part, shard) for _, part, shard in kept])


def _link(found: LocalFeatureSet, shard: int, folder: pathlib.Path, number: int) -> None:
    """Makes a shard of a set the one of this number in a new folder."""
    for part in Stored._fields:
        source = pathlib.Path(found.source, shard_name(part, shard, len(found.shards)))
        target = folder / f"{part}-{number:05d}.npy"
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(source, target)


def _add(writer: SetWriter, found: LocalFeatureSet, row: int, bases: Mapping, part: int) -> None:
    """Adds a photo of a set to another, whose linked shards begin at `bases`."""
    about = found.ids[row], found.sizes[row]
    count, digest = int(found.counts[row]), int(found.sums[row])
    if count:
        shard, start = found.place(row)
        if (part, shard) in bases:
            writer.add_linked(*about, bases[part, shard] + start, count, digest)
            return
    writer.add_stored(*about, found.stored(row), digest)
