"""A descriptor set that grows shard by shard, in one process or several, until it is complete.

While it grows, its folder contains only a folder `unfinished` with the finished shards,
`descriptors-%05d-of-%05d.npy`, and a `shard-%05d-of-%05d.json` for each: the settings of the whole
set, a hash of the shard's photos, and the photos that could not be read. The process that writes
the last shard joins them into the set's own files, adds `ids.txt` and `meta.json` and removes that
folder. Until `meta.json` exists, all of that can be repeated.
"""

import contextlib
import dataclasses
import logging
import pathlib
import shutil
import time
from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval import descriptors, norms
from dolg_tf.retrieval.extract.photos import Fingerprints, Listing
from dolg_tf.retrieval.local.shards import LocalShards
from dolg_tf.retrieval.local.writing import SetWriter
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

SHARD_PHOTOS = 1024  # consecutive photos of the listing: the most that a killed run loses
LOCAL_SHARD_PHOTOS = 256  # with local features, of which those of a photo take seconds
_FILE_SHARDS = 256  # per file: each open file takes one of often only 1,024 file descriptors
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes:
      number: from 0.
      rows: number of descriptors.
      width: of a descriptor; 0 when there are no rows.
      photos: hash of its photos.
      bad: {"id", "reason"} of each photo without a descriptor.
    """

    number: int
    rows: int
    width: int
    photos: str
    bad: list[dict]


def shard_photos(local: bool) -> int:
    """Returns the number of photos of a shard, with local features or without."""
    return min(SHARD_PHOTOS, LOCAL_SHARD_PHOTOS) if local else SHARD_PHOTOS


class UnfinishedSet:
    """The shards of a set, finished or not.

    Args:
      path: the directory of the set.
      meta: what all shards must share: the keys of `meta.json` except `image_root`, `bad` and
        `images`.
      listing: the photos.
      prints: their hashes, for shards of as many photos as `shard_photos` says.
      local: the same of the local set beside it; None: there is none.

    Attributes:
      path: as given.
      count: total number of shards.
      local: the shards of the local set; None: there is none.
    """

    def __init__(
        self,
        path: files.Path,
        meta: dict,
        listing: Listing,
        prints: Fingerprints,
        local: dict | None = None,
    ):
        self.path = pathlib.Path(path)
        self.count = len(prints.shards)
        self._listing, self._prints, self._meta = listing, prints, meta
        self._about = {**meta, "local": bool(local), "names": prints.names, "shards": self.count}
        self._folder = self.path / descriptors.UNFINISHED
        self.local = local and LocalShards(self.path, self._folder, self.count, local)

    def span(self, shard: int) -> tuple[int, int]:
        """Returns the first photo of a shard and the one after its last."""
        photos = shard_photos(bool(self.local))
        start = shard * photos
        return start, min(start + photos, len(self._listing.photos))

    @contextlib.contextmanager
    def part(self, part: int, parts: int) -> Iterator[None]:
        """Keeps other processes from working on the same part while the block runs.

        Raises:
          InputError: when another process is working on it.
        """
        taken = (
            f"another process is working on --shard={part}/{parts} of {self.path}; wait for it, or "
            "give each process its own --shard=i/n"
        )
        file = self._folder / f"part-{part}-of-{parts}.lock"
        with files.lock(file, taken):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
                for folder in (self._folder, self.path):
                    with contextlib.suppress(OSError):
                        folder.rmdir()  # only succeeds if it is empty: nothing was done

    def done(self) -> dict[int, Shard]:
        """Returns the finished shards.

        A shard that is damaged, or whose photos have changed, counts as not done.

        Raises:
          InputError: when they belong to another model, other settings or another list of photos.
        """
        found = {}
        for file in sorted(self._folder.glob("shard-*-of-*.json")):
            try:
                about = files.read_json(file, FORMAT_VERSION)
                shard = Shard(**about["shard"])
            except (InputError, KeyError, TypeError) as error:
                log.warning("%s is damaged, so its shard is done again: %s", file, error)
                continue
            begun = {"local": False, **descriptors.with_defaults(about["set"])}
            descriptors.refuse_other(self.path, "begun", begun, self._about)
            fault = self._fault(shard)
            if fault:
                log.warning("shard %d of %d is done again: %s", shard.number, self.count, fault)
            else:
                found[shard.number] = shard
        return found

    def _file(self, shard: int) -> pathlib.Path:
        """Returns the file with the rows of a shard."""
        return self._folder / descriptors.shard_name(shard, self.count)

    def _fault(self, shard: Shard) -> str:
        """Returns why a shard must be done again; "": it need not be."""
        if shard.photos != self._prints.shards[shard.number]:
            return "its photos have changed"
        file = self._file(shard.number)
        try:
            rows = np.load(file, mmap_mode="r", allow_pickle=False)
        except (*files.DAMAGED_ARRAYS, OSError) as error:
            return f"{file} is missing or damaged ({error})"
        if rows.shape != (shard.rows, shard.width) or rows.dtype != self._meta["dtype"]:
            return f"{file} has changed since it was written"
        return self.local.fault(shard.number, shard.rows) if self.local else ""

    def write(self, shard: int, rows: np.ndarray, bad: list[dict]) -> None:
        """Puts a finished shard in place; its local features must be there already.

        Args:
          shard: its number, from 0.
          rows: float32 (N, D), of its readable photos, in their order.
          bad: {"id", "reason"} of the others.

        Raises:
          InputError: when a row is not finite, or the file cannot be written.
        """
        norms.check_rows(rows, f"{self.path}, shard {shard} of {self.count}")
        written = Shard(shard, len(rows), rows.shape[1], self._prints.shards[shard], bad)
        about = {
            "format_version": FORMAT_VERSION,
            "set": self._about,
            "shard": dataclasses.asdict(written),
        }
        file = self._file(shard)
        with self._writing(file):
            with files.atomic_path(file) as temporary:
                np.save(temporary, rows.astype(self._meta["dtype"]))
            about_name = f"shard-{shard:05d}-of-{self.count:05d}.json"
            files.write_json(self._folder / about_name, about)

    @contextlib.contextmanager
    def writing_local(self, shard: int) -> Iterator[SetWriter | None]:
        """Yields what takes the local features of a shard's photos, before `write`; or None."""
        if not self.local:
            yield None
            return
        with self._writing(self.local.path), self.local.writing(shard) as writer:
            yield writer

    @contextlib.contextmanager
    def _writing(self, file: pathlib.Path) -> Iterator[None]:
        """Adds a remedy to the errors of a disk that is full or fails."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{file} cannot be written ({error.strerror or error}); the finished shards are "
                "kept: make room, or repair the disk, and run the same command again"
            ) from error

    def finish(self, max_bad: int) -> bool:
        """Completes the set, if all shards are done.

        Args:
          max_bad: unreadable photos to tolerate.

        Returns:
          Whether it is complete, by this process or another.

        Raises:
          InputError: when too many photos are bad, or all of them.
        """
        with self._alone():
            if not (self.path / "meta.json").exists():
                done = self.done()
                if len(done) < self.count:
                    return False
                self._assemble([done[shard] for shard in range(self.count)], max_bad)
            remove(self.path)
        return True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Waits until no other process is in this block."""
        while True:
            with contextlib.suppress(InputError):
                lock = files.lock(self._folder / "finish.lock", "another process is finishing")
                break
            time.sleep(0.1)
        with lock:
            yield

    def _assemble(self, shards: list[Shard], max_bad: int) -> None:
        bad = [one for shard in shards for one in shard.bad]
        if len(bad) > max_bad:
            raise too_many_bad(bad, max_bad)
        widths = {shard.width for shard in shards if shard.rows}
        if len(widths) != 1:
            wrong = "shards of different widths" if widths else "none of the photos could be read"
            raise InputError(f"{self.path}: {wrong}; delete it and extract it again")
        self._join(shards, *widths)
        without = {one["id"] for one in bad}
        photos = self._listing.photos
        ids = [photo.id for photo in photos if not photo.fault and photo.id not in without]
        roots = self._listing.image_roots
        root = str(self._listing.image_root.resolve())
        about = {"image_root": root if roots is None else roots.get("")}
        about |= {} if roots is None else {"image_roots": dict(roots)}
        about |= {"images": self._prints.images, "bad": bad}
        if self.local:
            with self._writing(self.local.path):
                self.local.join(ids, about)
        with self._writing(self.path / "ids.txt"):
            descriptors.write_about(self.path, ids, {**self._meta, **about})

    def _join(self, shards: list[Shard], width: int) -> None:
        """Writes the set's own files. The shards stay, so that a killed run can continue."""
        for old in self.path.glob("descriptors-*.npy"):
            old.unlink()  # left by a run that was killed here
        count = -(-len(shards) // _FILE_SHARDS)
        for number in range(count):
            group = shards[number * _FILE_SHARDS : (number + 1) * _FILE_SHARDS]
            file = self.path / descriptors.shard_name(number, count)
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self._meta["dtype"])),
                "fortran_order": False,
                "shape": (sum(shard.rows for shard in group), width),
            }
            # Not memory-mapped: a full disk kills a process that writes to a mapped file.
            with (
                self._writing(file),
                files.atomic_path(file) as temporary,
                temporary.open("wb") as joined,
            ):
                np.lib.format.write_array_header_1_0(joined, header)
                for shard in group:
                    joined.write(np.load(self._file(shard.number), allow_pickle=False).tobytes())


def bad_photo(id_: str, reason: str) -> dict[str, str]:
    """Returns an entry of "bad" in `meta.json`; bytes that are not UTF-8 are escaped there."""
    texts = {"id": id_, "reason": reason}
    return {key: text.encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}


def too_many_bad(bad: list[dict], max_bad: int) -> InputError:
    """Returns the error of a set with too many unreadable photos."""
    return InputError(
        f"{len(bad)} unreadable photos, but --max_bad={max_bad}; the last is "
        f"{bad[-1]['reason']}; repair them, or raise --max_bad, and run the same command again"
    )


def remove(path: files.Path) -> None:
    """Removes the shards of a set that is complete."""
    shutil.rmtree(pathlib.Path(path) / descriptors.UNFINISHED, ignore_errors=True)
