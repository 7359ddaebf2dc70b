"""The engine of the demo: finds the nearest photos to a box in a photo."""

import dataclasses
import functools
import pathlib
import threading
import time
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.demo import photos
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.data.photo_folders import Finder
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.extract.decoding import Preparation, load_photo
from dolg_tf.retrieval.extract.model import load_model, open_describer
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.index.directory import SAME_MODEL, Index
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

RERANKINGS = ("none", *(name for name, one in methods.RERANKERS.items() if one.quick))
OWN_SCALES = "index"
_MOST_SIDE = 2048  # longest side that is described, in pixels: more takes too long for a page
SHOWN_SIDE = 1024  # longest side of photos on the page, in pixels
THUMBNAIL_SIDE = 320  # pixels
_THUMBNAILS = 4096  # of about 15 KB that are kept
_IN_MEMORY = 2**30  # bytes of descriptors that are read once, and not again for each query
_SENT = "sent"  # stands for a file's name in what extraction says of a visitor's photo
_WARM_UP = (384, 512)  # rows and columns

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Query:
    """A visitor's photo.

    Attributes:
      data: encoded, which is a tenth of what its pixels would take.
      width, height: in pixels; boxes are given in these.
    """

    data: bytes
    width: int
    height: int


@dataclasses.dataclass(frozen=True, slots=True)
class _Sent(Photo):
    """A photo that is in memory, for extraction's reader."""

    data: bytes = b""

    def read(self) -> bytes:
        return self.data


@dataclasses.dataclass(frozen=True)
class Added:
    """Photos that one visitor added: for them, they are searched like those of the index.

    Attributes:
      files: the name of each, after a folder that distinguishes equal names.
      rows: float32 (N, D).
      thumbnails: JPEGs.
    """

    files: tuple[str, ...]
    rows: np.ndarray
    thumbnails: tuple[bytes, ...]


@dataclasses.dataclass(frozen=True)
class FoundPhoto:
    """A found photo.

    Attributes:
      id: of the index, or the name of a file that the visitor added.
      score: inner product of the descriptors of query and photo.
      matches: whether the score reaches the threshold of the index; None: it has none.
      thumbnail: a JPEG; None: the photo is not on disk.
      added: whether the visitor added it.
    """

    id: str
    score: float
    matches: bool | None
    thumbnail: bytes | None
    added: bool


@dataclasses.dataclass(frozen=True)
class Answer:
    """The nearest photos.

    Attributes:
      found: in the order of the re-ranking.
      searched: number of searched photos.
      seconds: duration of the search.
    """

    found: tuple[FoundPhoto, ...]
    searched: int
    seconds: float


class Engine:
    """A model and an index that answer queries; several threads may use it at once.

    Args:
      saved_model: the one that described the photos of the index.
      index: a directory.
      image_root: folder of the photos of the index; empty: where they were described.
      max_side: photos, or what their box cuts out, are shrunk to this longest side before they are
        described, in pixels; 0: as those of the index were. At most to the side of those, and to
        2,048, above which an answer would take too long.

    Raises:
      InputError: when the index belongs to another model, or was not described by a model alone.
    """

    def __init__(self, saved_model: files.Path, index: files.Path, image_root: str, max_side: int):
        self.index = Index.open(index)
        meta = self.index.meta
        _check_describable(self.index)
        self.scales = tuple(meta["scales"])
        describer = open_describer(saved_model, self.scales)
        about = {key: getattr(describer, key) for key in SAME_MODEL}
        self.index.check_making(str(saved_model), about | {"scales": list(describer.scales)})
        self.image_root = pathlib.Path(image_root or meta["image_root"])
        sides = (max_side, meta["max_side"], _MOST_SIDE)
        self._finder = Finder(self.image_root)  # reads a folder once, as the index is read once
        self._how = Preparation(min(filter(None, sides)), "crop")
        self._upright = meta["upright"]
        self._saved_model = saved_model
        self._thumbnail = functools.lru_cache(_THUMBNAILS)(self._new_thumbnail)
        # One photo at a time: the model uses all cores, and its memory stays that of one.
        self._turn = threading.Lock()

    def load(self) -> None:
        """Loads the model and answers once, so that the first visitor does not wait for it."""
        self._model = load_model(self._saved_model, self.scales)
        rows = self.index.descriptors
        if rows is not None and 4 * rows.shape[0] * rows.shape[1] <= _IN_MEMORY:
            rows = rows[:].copy()
        self._rows = rows
        blank = np.zeros((*_WARM_UP, 3), np.uint8)
        self.search(blank)
        self.attention(blank)

    @property
    def rerankings(self) -> tuple[str, ...]:
        """The available re-rankings; an approximate index lacks the descriptors for any."""
        return RERANKINGS if self.index.approximate is None else RERANKINGS[:1]

    @property
    def has_maps(self) -> bool:
        """Whether the model has attention maps; a model of mode `delg` has none."""
        return self._model.has_maps

    # --- photos of visitors --------------------------------------------------------------

    def read(self, data: bytes, max_bytes: int, max_pixels: int) -> Query:
        """Reads what a visitor's photo states; see `photos.read_size`."""
        width, height = photos.read_size(data, self._upright, max_bytes, max_pixels)
        return Query(data, width, height)

    def image(self, query: Query, box: Box | None = None) -> np.ndarray:
        """Returns the part of a photo that is described, as uint8 RGB (H, W, 3).

        Args:
          query: the photo.
          box: (left, top, right, bottom) in its pixels; what lies outside the photo is ignored.
            None: the whole photo.

        Raises:
          InputError: when the photo is damaged, or the box contains no pixel.
        """
        width, height = query.width, query.height
        left, top, right, bottom = map(round, box or (0, 0, width, height))
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, width), min(bottom, height)
        if left >= right or top >= bottom:
            raise InputError(
                f"The box {tuple(round(x) for x in box)} contains no pixel of the photo, which has "
                f"{width} x {height} pixels."
            )
        box = left, top, right, bottom
        sent = _Sent("", _SENT, box, turn=self._upright, data=query.data)
        found = load_photo(sent, self._how)
        if isinstance(found, str):
            raise photos.refusal(query.data, found.removeprefix(f"{_SENT}: "))
        return found

    def picture(self, query: Query) -> bytes:
        """Returns a JPEG of a photo, for the page."""
        try:
            return photos.picture(query.data, SHOWN_SIDE, self._upright)
        except UnusablePhoto as error:
            raise photos.refusal(query.data, error.reason) from error

    def add(self, added: Added | None, file: str, query: Query) -> Added:
        """Returns the added photos with one more, described as the index is."""
        image = self.image(query)
        row, small = self._describe(image, self.scales), photos.jpeg(image, THUMBNAIL_SIDE)
        if added is None:
            return Added((file,), row, (small,))
        rows = np.concatenate([added.rows, row])
        return Added((*added.files, file), rows, (*added.thumbnails, small))

    # --- answers -------------------------------------------------------------------------

    def search(
        self,
        image: np.ndarray,
        scales: str = OWN_SCALES,
        reranking: str = "none",
        k: int = 12,
        added: Added | None = None,
    ) -> Answer:
        """Finds the nearest photos.

        Args:
          image: what is searched for, from `image`.
          scales: a key of SCALE_SETS; OWN_SCALES: those of the index.
          reranking: one of `rerankings`, with its default numbers.
          k: number of photos.
          added: photos to search besides those of the index.

        Raises:
          InputError: when the scales or the re-ranking are unknown.
        """
        start = time.perf_counter()
        if scales != OWN_SCALES and scales not in SCALE_SETS:
            raise InputError(f"Unknown scales {scales!r:.40}; use those on the page.")
        if reranking not in self.rerankings:
            raise InputError(f"Unknown re-ranking {reranking!r:.40}; use one of those on the page.")
        row = self._describe(image, SCALE_SETS.get(scales, self.scales))
        scores, ranks = self._rank(row, reranking, max(1, k), added)
        found = [self._photo(rank, score, added) for score, rank in zip(scores, ranks, strict=True)]
        searched = len(self.index) + (0 if added is None else len(added.rows))
        return Answer(tuple(found), searched, time.perf_counter() - start)

    def attention(self, image: np.ndarray) -> np.ndarray | None:
        """Returns the attention map over what was described; None: the model has no maps."""
        if not self.has_maps:
            return None
        with self._turn:
            values = self._model.maps(image)["attention"]
        return photos.overlay(image, values)

    def _describe(self, image: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
        with self._turn:
            return self._model.describe(image[None], scales)

    def _rank(self, row: np.ndarray, reranking: str, k: int, added: Added | None):
        """Returns (scores, row numbers) for a query (1, D); added photos follow those of the index.

        A score always compares the query and the photo alone: the threshold was fitted to such.
        """
        more = [] if added is None else [added.rows]
        if self.index.approximate is not None:
            scores, ranks = (found[0] for found in self.index.search(row, k))
            scores, ranks = scores[ranks >= 0], ranks[ranks >= 0]
            for rows in more:
                scores = np.concatenate([scores, search.inner_products(row[0], rows)])
                ranks = np.concatenate([ranks, len(self.index) + np.arange(len(rows))])
            best = np.lexsort((ranks, -scores))[:k]
            return scores[best], ranks[best]
        rows = Rows([self._rows, *more])
        if reranking == "none":
            scores, ranks = search.search(rows, row, k)
            return scores[0], ranks[0]
        refined = methods.apply(RerankConfig(rerank=reranking), row, rows)
        if refined.head is None:
            ranks = search.search(rows, refined.queries, k).rows[0]
        else:
            ranks = refined.head[0, :k]
        return search.inner_products(row[0], rows[ranks]), ranks

    def _photo(self, rank: int, score: float, added: Added | None) -> FoundPhoto:
        matches = None if self.index.threshold is None else bool(self.index.matches(score))
        place = rank - len(self.index)
        if place >= 0:
            name = added.files[place].rpartition("/")[2]
            return FoundPhoto(name, float(score), matches, added.thumbnails[place], True)
        id_ = self.index.ids[rank]
        return FoundPhoto(id_, float(score), matches, self._thumbnail(id_), False)

    # --- photos of the index -------------------------------------------------------------

    def has_photos(self, ids: Sequence[str]) -> bool:
        """Returns whether at least one of these photos of the index is on disk."""
        return any(self._file(id_) is not None for id_ in ids)

    def _new_thumbnail(self, id_: str) -> bytes | None:
        file = self._file(id_)
        return None if file is None else photos.thumbnail(file, THUMBNAIL_SIDE, self._upright)

    def _file(self, id_: str) -> pathlib.Path | None:
        """Returns the file of a photo of the index.

        None: it is missing, outside the folder, or may be one of several.
        """
        try:
            found = pathlib.Path(self._finder.find(id_, self.index.path)[1])
            file = files.inside(self.image_root, str(found.relative_to(self.image_root)))
            return file if file.is_file() else None
        except (ValueError, OSError):  # a zero byte, too, or a folder that cannot be read
            return None


def _check_describable(index: Index) -> None:
    """Makes sure that a model alone can describe photos as those of an index were described.

    Raises:
      InputError: when it cannot.
    """
    if isinstance(index.meta["whitening"], str):
        raise InputError(
            f"--index={index.path} holds descriptors that `dolg whiten apply` whitened, but the "
            "demo describes photos by the model alone; export it with --whitening, extract, and "
            "build the index again"
        )
    if index.meta["scales"] is None:
        raise InputError(
            f"--index={index.path} holds imported descriptors, whose scales are unknown; extract "
            "its photos with the model and build it again"
        )
