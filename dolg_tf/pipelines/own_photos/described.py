"""What one model has described of some photos, kept in step with the photos.

`photos` is a descriptor set, `files-HASH.csv` says of each photo which file it was, and `begun` is
the journal of work that is not finished. HASH is the set's, of its ids and files: a set and a table
that do not belong together would give photos the descriptors of others.
"""

import concurrent.futures
import hashlib
import importlib.util
import logging
import pathlib
from collections.abc import Iterator

import numpy as np

from dolg_tf.data import photo_ids
from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.pipelines.own_photos.journal import Entry, Journal
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract.shards import bad_photo
from dolg_tf.retrieval.rows import Reordered, Rows
from dolg_tf.stage import files, progress, workshop
from dolg_tf.stage.config import InputError
from dolg_tf.stage.tables import read_table, write_table

log = logging.getLogger(__name__)

_COLUMNS = ("id", "bytes", "modified", "sha256", "reason")
_HASH = 12  # digits of a hash in a file's name
# What a photo's fault says that may be over the next time.
_HEIC = "pillow_heif"  # the package that HEIC needs
_MEMORY = "the memory"


class Described:
    """The descriptors of photos, finished or begun.

    Args:
      folder: of its files.
      roots: folders of photos, by label.
      made: how photos are described: keys of a set's `meta.json`.
    """

    def __init__(self, folder: pathlib.Path, roots: dict[str, pathlib.Path], made: dict):
        self._folder, self._roots, self._made = folder, roots, made
        self._set = self._read_set()
        rows = 0 if self._set is None else len(self._set)
        self._known = {} if self._set is None else self._read_files()
        self._journal = Journal(folder / "begun", made, rows)

    @property
    def path(self) -> pathlib.Path:
        """Of the descriptor set."""
        return self._folder / "photos"

    @property
    def begun(self) -> dict[str, Entry]:
        """What is known of the photos described since the set was finished, by id."""
        return self._journal.entries

    @property
    def rows(self) -> Rows | None:
        """All rows; None: there are none."""
        parts = [] if self._set is None else [self._set.descriptors]
        begun = self._journal.rows
        parts += [begun] if len(begun) else []
        return Rows(parts) if parts else None

    def _read_set(self) -> DescriptorSet | None:
        if not workshop.recover(self.path):
            return None
        try:
            found = descriptors.read(self.path)
            descriptors.refuse_other(self.path, "made", found.meta, self._made)
        except InputError as error:
            log.warning("what was described does not count: %s", error)
            return None
        return found

    def _files(self, meta: dict) -> pathlib.Path:
        return self._folder / f"files-{meta['images'][:_HASH]}.csv"

    def _read_files(self) -> dict[str, Entry]:
        row_of, found = {id_: row for row, id_ in enumerate(self._set.ids)}, {}
        path = self._files(self._set.meta)
        table = read_table(path, *([name] for name in _COLUMNS)) if path.is_file() else ()
        try:
            for _, (id_, size, modified, digest, reason) in table:
                row = row_of.get(id_, -1)
                if (row >= 0) != bool(reason):
                    found[id_] = Entry(int(size), int(modified), digest, row, reason)
        except ValueError as error:
            log.warning("the photos are compared anew: %s", error)
            return {}
        return found

    # --- what is to be done --------------------------------------------------------------

    def match(self, photos: tuple[File, ...]) -> tuple[dict[str, Entry], list[File]]:
        """Finds the photos that are known already, also moved, copied or touched ones.

        Returns:
          The entries of known photos, and the photos to describe.
        """
        passing = [_MEMORY, *([_HEIC] if importlib.util.find_spec(_HEIC) else ())]
        known = {
            id_: one
            for id_, one in (self._known | self.begun).items()
            if not any(word in one.reason for word in passing)
        }
        kept, others = {}, []
        for photo in photos:
            entry = known.get(photo.id)
            if entry is not None and entry.digest and entry.state == photo.state:
                kept[photo.id] = entry
            else:
                others.append(photo)
        sizes, by_digest = {one.size for one in known.values()}, {}
        for one in known.values():
            if one.digest:
                by_digest.setdefault(one.digest, one)
        todo = []
        likely = [one for one in others if one.size in sizes and not photo_ids.fault_of(one.id)]
        digests = dict(zip((photo.id for photo in likely), _digests(likely), strict=True))
        for photo in others:
            entry = by_digest.get(digests.get(photo.id, ""))
            if entry is None:
                todo.append(photo)
            else:
                kept[photo.id] = Entry(*photo.state, entry.digest, entry.row, entry.reason)
        return kept, todo

    def add(self, rows: np.ndarray, photos: list[tuple[File, str, str]]) -> None:
        """Keeps what was described: rows of the photos without a reason, in their order.

        Args:
          rows: float32 (N, D).
          photos: with digest, and reason why it has no row.
        """
        lines = ((photo.id, *photo.state, digest, why) for photo, digest, why in photos)
        self._journal.add(rows, lines)

    # --- done ----------------------------------------------------------------------------

    def finish(self, entries: dict[str, Entry]) -> DescriptorSet:
        """Writes the set of all photos that have a descriptor, unless it is there already.

        Args:
          entries: of the photos that there are, by id.

        Raises:
          InputError: when none has a descriptor.
        """
        ids = sorted(id_ for id_, one in entries.items() if one.row >= 0)
        faults = {id_: one.reason for id_, one in sorted(entries.items()) if one.row < 0}
        if not ids:
            first = next(iter(faults.values()), "")
            raise InputError(f"none of the {len(entries)} photos can be read: {first}")
        meta = self._meta(ids, entries, faults)
        if self._known != entries:
            self._write_files(self._files(meta), entries)
        if self._set is None or self._set.meta | meta != self._set.meta:
            order = np.array([entries[id_].row for id_ in ids], np.int64)
            rows = Reordered(self.rows, order)
            descriptors.write(self.path, DescriptorSet(tuple(ids), rows, meta))
        for path in self._folder.glob("files-*.csv"):
            if path != self._files(meta):
                path.unlink()
        self._journal.remove()
        self._set = descriptors.read(self.path)
        self._known = self._read_files()
        return self._set

    def _meta(self, ids: list[str], entries: dict[str, Entry], faults: dict[str, str]) -> dict:
        digest = hashlib.sha256()
        for id_ in ids:
            digest.update(f"{id_}\n{entries[id_].digest}\n".encode())
        roots = {label: str(root) for label, root in self._roots.items()}
        return {
            **self._made,
            "image_root": roots.get(""),
            "image_roots": roots,
            "images": digest.hexdigest(),
            "bad": [bad_photo(*fault) for fault in faults.items()],
        }

    @staticmethod
    def _write_files(path: pathlib.Path, entries: dict[str, Entry]) -> None:
        rows = (
            [id_, one.size, one.modified, one.digest, one.reason]
            for id_, one in sorted(entries.items())
            if one.digest and not photo_ids.fault_of(id_)
        )
        write_table(path, _COLUMNS, rows)


def _digests(photos: list[File]) -> Iterator[str]:
    """Yields the SHA-256 of files; "" of those that cannot be read."""

    def digest(photo: File) -> str:
        try:
            return files.sha256(photo.path)
        except OSError:
            return ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = (pool.map(digest, part) for part in _parts(photos))
        yield from progress.track((one for part in done for one in part), len(photos), "compare")


def _parts(photos: list[File], size: int = 256) -> Iterator[list[File]]:
    for start in range(0, len(photos), size):
        yield photos[start : start + size]
