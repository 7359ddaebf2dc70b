"""The local features of an unfinished set: a small set per shard, joined when all are done.

They are in the folder of the unfinished descriptor set, `local-%05d-of-%05d` beside the shard's
descriptors. When all are done, `_GROUP` at a time become `local-group-%05d`, and go; the groups'
files become those of the set by links. So no more disk is taken than for a group, and a run that
is killed at any step continues.
"""

import contextlib
import logging
import pathlib
import shutil
from collections.abc import Iterator, Sequence

import numpy as np

from dolg_tf.retrieval.descriptors import OtherOutput, refuse_other
from dolg_tf.retrieval.local import feature_set, linking
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.writing import SetWriter
from dolg_tf.stage import files, workshop
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

SUFFIX = ".local"
_GROUP = 128  # shards: half of the often 1,024 file descriptors, as each takes 4


class LocalShards:
    """The shards of local features, finished or not.

    Args:
      output: the directory of the descriptor set; the local set is put beside it.
      folder: in which the shards are.
      count: of the shards.
      meta: of the local set, but for `dimensions`, `bad` and what says where the photos are.

    Attributes:
      path: the directory of the local set.
      meta: as given.
    """

    def __init__(self, output: files.Path, folder: pathlib.Path, count: int, meta: dict):
        self.path = beside(output)
        self.meta = meta
        self._folder, self._count = folder, count

    def _shard(self, shard: int) -> pathlib.Path:
        return self._folder / f"local-{shard:05d}-of-{self._count:05d}"

    def _group(self, shard: int) -> pathlib.Path:
        """Returns the folder of the group of a shard."""
        return self._folder / f"local-group-{shard // _GROUP:05d}"

    @contextlib.contextmanager
    def writing(self, shard: int) -> Iterator[SetWriter]:
        """Yields what takes the photos of a shard; it is put in place when the block succeeds."""
        shutil.rmtree(self._group(shard), ignore_errors=True)  # its photos have changed
        with files.atomic_path(self._shard(shard)) as temporary:
            temporary.mkdir()
            about = {"image_root": None, "bad": []}
            with SetWriter(temporary, self.meta | about) as writer:
                yield writer
                writer.finish()

    def fault(self, shard: int, rows: int) -> str:
        """Returns why a shard of so many photos must be done again; "": it need not be."""
        path, whole = self._shard(shard), self._group(shard)
        try:
            if whole.exists():  # whose shards are removed, or half removed
                feature_set.read(whole)
                return ""
            found = feature_set.read(path)
        except InputError as error:
            return f"its local features are missing or damaged ({error})"
        refuse_other(self.path, "begun", found.meta, self.meta)
        return "" if len(found) == rows else f"{path} has changed since it was written"

    def join(self, ids: Sequence[str], about: dict) -> None:
        """Puts the local set in place.

        Args:
          ids: of its photos.
          about: where they are, and which are bad.

        Raises:
          InputError: when the shards do not hold these photos; or one is damaged.
        """
        for first in range(0, self._count, _GROUP):
            shards = range(first, min(first + _GROUP, self._count))
            parts = [self._shard(shard) for shard in shards if self._shard(shard).exists()]
            if not self._group(first).exists():
                linking.join(self._group(first), [_all(feature_set.read(part)) for part in parts])
            for part in parts:
                shutil.rmtree(part)
        groups = [
            _all(feature_set.read(self._group(first))) for first in range(0, self._count, _GROUP)
        ]
        found = [id_ for group, _ in groups for id_ in group.ids]
        if found != list(ids):
            raise InputError(
                f"{self._folder}: local features of {len(found)} photos, descriptors of "
                f"{len(ids)}; delete the folder and run the same command again"
            )
        linking.join(self.path, groups, groups[0][0].meta | about)


def _all(found: LocalFeatureSet) -> tuple[LocalFeatureSet, np.ndarray]:
    return found, np.arange(len(found))


def beside(output: files.Path) -> pathlib.Path:
    """Returns the directory of the local set beside a descriptor set."""
    output = pathlib.Path(output)
    return output.with_name(f"{output.name}{SUFFIX}")


def finished(output: files.Path, meta: dict) -> LocalFeatureSet | None:
    """Returns the local set beside a descriptor set, if it was made as `meta` says.

    Raises:
      InputError: when it was made in another way, or something else is there.
    """
    path = beside(output)
    if not workshop.recover(path):
        return None
    if not (path / "offsets.npy").exists():
        raise OtherOutput(path, "exists and is not a local feature set", "choose another --output")
    found = feature_set.read(path)
    refuse_other(path, "made", found.meta, meta)
    return found


def say(found: LocalFeatureSet) -> None:
    """Tells how many features a set has, and warns where there are none."""
    total, without = int(found.counts.sum()), int((found.counts == 0).sum())
    mean = total / max(len(found), 1)
    log.info("%s: %d local features, %.0f per photo", found.source, total, mean)
    if without:
        log.warning(
            "%s: %d of %d photos have no local feature whose strength reaches the threshold, "
            "--local_threshold=%g; if these are many, give a lower one",
            *(found.source, without, len(found), found.meta["threshold"]),
        )
