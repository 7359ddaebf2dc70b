"""The engine of the page: finds the nearest photos to a box in a photo."""

import collections
import dataclasses
import functools
import hashlib
import pathlib
import threading
import time

import numpy as np

from dolg_tf.apps.demo import photos
from dolg_tf.apps.demo.answers.ranking import LOCAL, RERANKINGS, FoundPhoto, rank, tiles
from dolg_tf.apps.demo.answers.second_look import SecondLook
from dolg_tf.apps.demo.collection import Collection, Searchable
from dolg_tf.data import photo_files
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.extract.decoding import load_photo
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage.config import InputError

OWN_SCALES = "own"
LARGE_SIDE = 1600  # longest side of photos that are enlarged, in pixels
THUMBNAIL_SIDE = 480  # pixels: sharp on a dense screen
_THUMBNAILS = 2048  # of about 30 KB that are kept
_DESCRIBED = 64  # queries whose descriptors are kept
_WIDER = 4  # photos that are looked at for each tile, as some share one
_SENT = "sent"  # stands for a file's name in what extraction says of a photo

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Query:
    """A photo that is searched for.

    Attributes:
      name: of the file.
      data: encoded, which is a tenth of what its pixels would take.
      width, height: in pixels; boxes are given in these.
      id: of a photo of the collection; empty: a visitor sent it.
    """

    name: str
    data: bytes
    width: int
    height: int
    id: str = ""

    def part(self, box: Box | None) -> tuple[int, int, int, int]:
        """Returns a box in whole pixels, without what lies outside the photo; None: all of it.

        Raises:
          InputError: when it contains no pixel.
        """
        width, height = self.width, self.height
        if box is None:
            return 0, 0, width, height
        left, top, right, bottom = map(round, box)
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            raise InputError(
                f"The box {tuple(map(round, box))} contains no pixel of the photo, which has "
                f"{width} x {height} pixels."
            )
        return left, top, right, bottom


@dataclasses.dataclass(frozen=True, slots=True)
class _InMemory(Photo):
    """A photo that is in memory, for extraction's reader."""

    data: bytes = b""

    def read(self) -> bytes:
        return self.data


@dataclasses.dataclass(frozen=True, eq=False)
class Now:
    """What can be searched at one moment.

    Attributes:
      photos: of the collection.
      version: a number that rises when these change.
      rows: row of each id.
    """

    photos: Searchable
    version: int
    rows: dict[str, int] = dataclasses.field(repr=False)

    def place(self, id_: str) -> np.ndarray | None:
        """Returns the row numbers of the place that a photo shows; None: of none."""
        row = self.rows.get(id_)
        if row is None:
            return None
        return next((place for place in self.photos.places if row in place), None)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The nearest photos.

    Attributes:
      found: in the order of the re-ranking.
      searched: number of searched photos.
      seconds: duration of the search.
      now: what was searched.
    """

    found: tuple[FoundPhoto, ...]
    searched: int
    seconds: float
    now: Searchable


class Engine:
    """Answers queries to a collection; several threads may use it at once.

    Args:
      collection: what is searched.
      max_bytes, max_pixels: largest photo that is accepted.
    """

    def __init__(self, collection: Collection, max_bytes: int, max_pixels: int):
        self.collection, self.max_bytes = collection, max_bytes
        self._limits = max_bytes, max_pixels
        self._thumbnail = functools.lru_cache(_THUMBNAILS)(self._new_thumbnail)
        self._described = collections.OrderedDict()
        self.second_look = SecondLook(self)
        self._now: Now | None = None
        self._lock = threading.Lock()

    # --- what is searched ----------------------------------------------------------------

    def now(self) -> Now:
        """Returns what can be searched now: the same object until that changes."""
        found = self.collection.searchable()
        with self._lock:
            if self._now is None or found is not self._now.photos:
                version = 1 if self._now is None else self._now.version + 1
                rows = {id_: row for row, id_ in enumerate(found.ids)}
                self._now = Now(found, version, rows)
            return self._now

    @property
    def rerankings(self) -> tuple[str, ...]:
        """The available re-rankings; an approximate index lacks the descriptors for any."""
        now = self.now().photos
        if now.rows is None:
            return RERANKINGS[:1]
        lacking = () if now.local is not None and self.collection.has_local else LOCAL
        return tuple(name for name in RERANKINGS if name not in lacking)

    # --- photos --------------------------------------------------------------------------

    def read(self, name: str, data: bytes) -> Query:
        """Reads what a visitor's photo states; see `photos.read_size`.

        Raises:
          InputError: when it is too large, or no photo that can be decoded.
        """
        width, height = photos.read_size(name, data, self.collection.how.upright, *self._limits)
        return Query(name, data, width, height)

    def stored(self, id_: str) -> Query:
        """Returns a photo of the collection as a query.

        Raises:
          InputError: when it is no longer there.
        """
        file = self.file(id_)
        name = pathlib.PurePath(id_).name if file is None else file.name
        try:
            if file is None:
                raise FileNotFoundError
            data = photo_files.read_file(file)
        except (OSError, UnusablePhoto):
            raise InputError(f"{name} is not on disk any more.") from None
        upright = self.collection.how.upright
        width, height = photos.read_size(name, data, upright, len(data), photo_files.MAX_PIXELS)
        return Query(name, data, width, height, id_)

    def image(self, query: Query, box: Box | None = None) -> np.ndarray:
        """Returns the part of a photo that is described, as uint8 RGB (H, W, 3).

        Args:
          query: the photo.
          box: (left, top, right, bottom) in its pixels; what lies outside the photo is ignored.
            None: the whole photo.

        Raises:
          InputError: when the photo is damaged, or the box contains no pixel.
        """
        how = self.collection.how
        if box is not None:
            box = query.part(box)
        photo = _InMemory("", _SENT, box, turn=how.upright, data=query.data)
        found = load_photo(photo, how)
        if isinstance(found, str):
            raise photos.refusal(query.name, query.data, found.removeprefix(f"{_SENT}: "))
        return found

    def picture(self, query: Query) -> bytes:
        """Returns a JPEG of a photo, for the page."""
        try:
            return photos.picture(query.data, LARGE_SIDE, self.collection.how.upright)
        except UnusablePhoto as error:
            raise photos.refusal(query.name, query.data, error.reason) from error

    def file(self, id_: str) -> pathlib.Path | None:
        """Returns the file of a photo of the collection; None: there is no such photo."""
        return self.collection.file(id_) if id_ in self.now().rows else None

    def thumbnail(self, id_: str, side: int) -> bytes | None:
        """Returns a small JPEG of a photo of the collection; None: it is not on disk."""
        file = self.file(id_)
        try:
            made = None if file is None else file.stat().st_mtime_ns
        except OSError:
            return None
        if made is None:
            return None
        # Large ones are seldom asked for twice.
        small = self._thumbnail if side == THUMBNAIL_SIDE else self._new_thumbnail
        return small(str(file), made, side)

    def _new_thumbnail(self, file: str, _: int, side: int) -> bytes | None:
        return photos.thumbnail(pathlib.Path(file), side, self.collection.how.upright)

    # --- answers -------------------------------------------------------------------------

    def search(
        self,
        query: Query,
        box: Box | None = None,
        scales: str = OWN_SCALES,
        reranking: str = "none",
        k: int = 24,
    ) -> Answer:
        """Finds the nearest photos; a photo of the collection is not its own answer.

        Args:
          query: the photo that is searched for.
          box: what of it, as in `image`.
          scales: a key of SCALE_SETS; OWN_SCALES: those of the collection.
          reranking: one of `rerankings`, with its default numbers.
          k: number of tiles.

        Raises:
          InputError: when the scales or the re-ranking are unknown, or as in `image`.
        """
        start = time.perf_counter()
        if scales != OWN_SCALES and scales not in SCALE_SETS:
            raise InputError(f"Unknown scales {scales!r:.40}; use those on the page.")
        if reranking not in self.rerankings:
            raise InputError(f"Unknown re-ranking {reranking!r:.40}; use one of those on the page.")
        at = self.now()
        now, own = at.photos, at.rows.get(query.id)
        if not len(now.ids):
            raise InputError("No photo has been described yet; this takes a moment.")
        if own is not None and now.rows is not None and (box, scales) == (None, OWN_SCALES):
            row = np.asarray(now.rows[own : own + 1], np.float32)
        else:
            row = now.adapt(self._descriptor(query, box, scales))
        ranked = rank(
            *(now, row, reranking, _WIDER * max(1, k) + 1, own),
            lambda: self.second_look.query(query, box),
        )
        found = tiles(now, ranked.without(own), whole=box is None)[: max(1, k)]
        searched = len(now.ids) - (own is not None)
        return Answer(tuple(found), searched, time.perf_counter() - start, now)

    def attention(self, query: Query, box: Box | None = None) -> np.ndarray | None:
        """Returns the attention map over what was described; None: the model has no maps."""
        if not self.collection.has_maps:
            return None
        image = self.image(query, box)
        return photos.overlay(image, self.collection.attention(image))

    def _descriptor(self, query: Query, box: Box | None, scales: str) -> np.ndarray:
        key = hashlib.sha256(query.data).digest(), box, scales
        with self._lock:
            if key in self._described:
                self._described.move_to_end(key)
                return self._described[key]
        numbers = SCALE_SETS.get(scales, self.collection.scales)
        row = self.collection.describe(self.image(query, box), numbers)
        with self._lock:
            self._described[key] = row
            if len(self._described) > _DESCRIBED:
                self._described.popitem(last=False)
        return row
