"""The photos of some folders, searchable while they are still being described."""

import dataclasses
import logging
import pathlib
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np

from dolg_tf.apps.demo.collection import Progress, Searchable
from dolg_tf.pipelines.own_photos import adapt, describe, queries
from dolg_tf.pipelines.own_photos.adapt import Searched
from dolg_tf.pipelines.own_photos.described import Described
from dolg_tf.pipelines.own_photos.finding import Found
from dolg_tf.pipelines.own_photos.journal import Entry
from dolg_tf.pipelines.own_photos.kept import Kept
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.pipelines.own_photos.queries import Answer, Query
from dolg_tf.pipelines.own_photos.verification import ordering
from dolg_tf.pipelines.own_photos.verification.kept_features import KeptFeatures
from dolg_tf.retrieval.extract.shards import bad_photo
from dolg_tf.retrieval.rows import Reordered
from dolg_tf.stage.tables import write_table

log = logging.getLogger(__name__)


_SECONDS = 2.0  # between two states of what can be searched while photos are described


class OwnPhotos:
    """Photos that one model describes, in step with their folders; see `Collection`.

    Args:
      kept: where what is made of them is kept; it is locked by the caller.
      model: describes them.
      found: the photos.
      verify: whether the local features of photos are kept, too.

    Attributes:
      photos: by id.
    """

    def __init__(self, kept: Kept, model: Model, found: Found, verify: bool = False):
        self._verify = verify
        self._kept, self._model, self._found = kept, model, found
        self._folder = kept.described_by(model.about.model_hash)
        self.title = " + ".join(root.name or str(root) for root in kept.roots.values())
        self.how, self.scales = model.how, model.about.scales
        self.photos = {photo.id: photo for photo in found.photos}
        self._entries: dict[str, Entry] = {}
        self._known = 0  # photos that need not be described
        self._progress = Progress(0, 0)
        self._searchable = Searchable((), np.empty((0, 1), np.float32))
        self._made, self._shown, self._changing = 0.0, 0, threading.Lock()

    # --- in step with the folders --------------------------------------------------------

    def look(self) -> None:
        """Finds out what is known of the photos."""
        self._described = Described(self._folder, self._kept.roots, self._model.made)
        self._before = adapt.read(self._folder / "searched")
        self._features = KeptFeatures(self._folder, self._model) if self._verify else None
        self._entries, self._todo = self._described.match(self._found.photos)
        self._known = len(self._entries)
        self._tell("Describing your photos")

    def load(self) -> None:
        """Loads the model."""
        self._loaded = self._model.load()
        self.has_maps, self.has_local = self._loaded.has_maps, False

    def update(self) -> Searched:
        """Describes what is new or has changed, and adapts the search where it must.

        Raises:
          InputError: when no photo can be read, or the disk fails.
        """
        if self._todo:
            log.info("%d photos to describe, %d are known", len(self._todo), self._known)
            start = time.monotonic()
            describe.describe_photos(
                self._todo,
                self._described,
                self._loaded.describe,
                self.how,
                lambda done: self._told(done, done / (time.monotonic() - start)),
            )
        self._tell("Adapting the search to your photos")
        with self._changing:  # rows have other numbers from here on
            self._made = float("inf")
        found = self._described.finish(self._entries)
        searched = adapt.update(self._folder / "searched", found, self._entries, self._before)
        log.info("%s", searched.words)
        now = dataclasses.replace(searched.searchable, raw=found.descriptors)
        with self._changing:
            self._searchable = now
        self._list_unread()
        if self._features is not None:
            self._tell("Finding local features")
            files = {
                one.digest: self.photos[id_].path
                for id_, one in self._entries.items()
                if one.row >= 0
            }
            self._features.update(files, self._loaded.local_of)
        self._tell("")
        return searched

    def verified(self, searched: Searched, answers: Iterator[Answer], k: int) -> Iterator[Answer]:
        """Yields answers in the order of their verification.

        Args:
          searched: of `update`.
          answers: with more photos than are wanted.
          k: photos of each, at most.
        """
        features, entries, ids = self._features, self._entries, searched.index.ids
        yield from ordering.ordered(
            answers,
            lambda one: features.of_file(one.query.path, self._loaded.local_of),
            lambda row: features[entries[ids[row]].digest],
            k,
        )

    def _told(self, done: int, rate: float) -> None:
        with self._changing:
            for photo in self._todo[len(self._entries) - self._known : done]:
                self._entries[photo.id] = self._described.begun[photo.id]
        self._tell("Describing your photos", rate)

    def _tell(self, doing: str, rate: float = 0.0) -> None:
        unread = self._unread()
        lost = len(unread) - len(self._found.faults)
        done, total = len(self._entries) - lost, len(self.photos) - lost
        self._progress = Progress(done, total, rate, doing, tuple(unread))

    def _unread(self) -> list[tuple[str, str]]:
        faults = sorted((id_, one.reason) for id_, one in self._entries.items() if one.row < 0)
        return [*self._found.faults, *((self.photos[id_].path, why) for id_, why in faults)]

    def _list_unread(self) -> None:
        """Writes the list of photos that could not be read, and says how many."""
        unread, path = self._unread(), self._kept.unreadable
        texts = (bad_photo(*fault) for fault in unread)
        write_table(path, ["path", "reason"], (list(text.values()) for text in texts))
        if unread:
            log.warning(
                "photos or folders that could not be read: %d, such as %s (%s); all are in %s",
                *(len(unread), *unread[0], path),
            )

    def describe_queries(self, asked: list[Query]) -> tuple[list[Query], np.ndarray]:
        """Returns the readable ones of photos that are searched for, and their raw descriptors."""
        return queries.describe_queries(asked, self._loaded.describe, self.how)

    # --- what the page asks for ----------------------------------------------------------

    def searchable(self) -> Searchable:
        """Returns what can be searched now: the photos described so far, or all, adapted to."""
        with self._changing:
            if time.monotonic() - self._made >= _SECONDS and len(self._entries) > self._shown:
                self._searchable, self._shown = self._so_far(), len(self._entries)
                self._made = time.monotonic()
            return self._searchable

    def _so_far(self) -> Searchable:
        order = {id_: one.row for id_, one in sorted(self._entries.items()) if one.row >= 0}
        if not order:
            return self._searchable
        rows = Reordered(self._described.rows, np.array(list(order.values()), np.int64))
        whitening = None if self._before is None else self._before.whitening
        return adapt.searchable_so_far(tuple(order), rows, whitening)

    def progress(self) -> Progress:
        """Returns how far the describing is."""
        return self._progress

    def describe(self, image: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns the raw descriptor of uint8 RGB (H, W, 3), float32 (1, C)."""
        return self._loaded.describe(image[None], scales)

    def attention(self, image: np.ndarray) -> np.ndarray:
        """Returns the attention map of uint8 RGB (H, W, 3), float32 (h, w)."""
        return self._loaded.maps(image)["attention"]

    def file(self, id_: str) -> pathlib.Path | None:
        """Returns the file of a photo; None: it is not on disk."""
        photo = self.photos.get(id_)
        path = None if photo is None else pathlib.Path(photo.path)
        return path if path is not None and path.is_file() else None
