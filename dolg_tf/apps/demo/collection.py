"""What the page needs of the photos that it searches, which may still be being described.

An open index is one such collection (`indexed.py`). Another is a folder whose photos are described
while the page is open: it is a `Collection` of its own, and the page never learns how it is made.
`serve.showing(collection, settings)` opens the page of one.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.verification.pairs import VerifyConfig

# Of EfficientNet-Lite0's own descriptors: copies of 15 photos that were halved, mirrored,
# brightened, shifted or compressed had 0.97 and more in the median, 0.95 at least, and of 116,886
# pairs of other photos 3 at most had 0.96.
_ALIKE = 0.96
_GEOMETRIC, _VERIFY = RerankConfig(rerank="geometric"), VerifyConfig(plausible=True)
_COMPARED = 256  # photos of a place, for the one that stands for it


@dataclasses.dataclass(frozen=True)
class Threshold:
    """The lowest score at which two photos are said to show the same place.

    Attributes:
      score: the threshold.
      estimated: whether it was estimated without labels; `dolg calibrate` measures it by them.
      precision: share of pairs reaching it that show the same place; None: not known.
      low, high: interval of that share; None where there is none.
      pairs: pairs of photos that it rests on; 0: not known.
      warning: a sentence for people, such as that it rests on few pairs; empty: none.
      inliers: that the photos must have too, so that only verified answers are judged; 0: none.
    """

    score: float
    estimated: bool = False
    precision: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    warning: str = ""
    inliers: int = 0


@dataclasses.dataclass(frozen=True)
class Expansion:
    """How a query is averaged with its nearest photos; scores still compare it alone.

    Attributes:
      photos: their number.
      alpha: power of their scores, by which they are weighted; see `rerank.expansion.expand`.
    """

    photos: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Searchable:
    """The photos that can be searched at one moment. It never changes; a later one takes its place.

    Attributes:
      ids: one per row.
      rows: float32 (N, D), unit rows, an array or `Rows`, after `adapt`; None where only `search`
        knows them (an approximate index).
      adapt: raw descriptors (Q, C), as the collection's `describe` gives them, -> (Q, D) unit rows
        that are compared with `rows`: a whitening, or nothing.
      places: row numbers of each place that the photos show, largest place first, and in each the
        photo first that stands for it; empty: none were found, or not yet.
      threshold: None: there is none.
      expansion: of queries, where no other re-ranking is asked for; None: there is none.
      raw: float32 (N, C), what was adapted; a whitening draws photos that it was learned from
        together, so it does not tell which are nearly the same. None: `rows`.
      alike: similarity, of `raw`, at or above which two photos count as nearly the same picture and
        share a tile; None: each has its own.
      note: a sentence for people on how the photos were adapted to; empty: none.
      search: finds (queries (Q, D), k) -> `Neighbours`; None: exactly, among `rows`.
      local: gives the local features of a row's photo, as `Collection.local` gives a visitor's, in
        the pixels of the photo as the page shows it; several threads ask it at once. None: none
        are kept, so photos are not ordered by geometric verification.
      geometric, verify: how geometric verification orders, and when places agree. Answers are shown
        to people, so views that no two photos of a scene have are refused by default.
    """

    ids: Sequence[str]
    rows: object
    adapt: Callable[[np.ndarray], np.ndarray] = lambda raw: raw
    places: Sequence[np.ndarray] = ()
    threshold: Threshold | None = None
    expansion: Expansion | None = None
    raw: object = None
    alike: float | None = _ALIKE
    note: str = ""
    search: Callable[[np.ndarray, int], Neighbours] | None = None
    local: Callable[[int], LocalFeatures] | None = None
    geometric: RerankConfig = _GEOMETRIC
    verify: VerifyConfig = _VERIFY


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far the describing is.

    Attributes:
      done: photos that can be searched.
      total: photos that there will be; the same as `done` when all is done.
      rate: photos per second; 0: not known, or done.
      doing: what goes on, for people ("Describing your photos"); empty: nothing.
      unread: (file, reason) of each photo that could not be read.
    """

    done: int
    total: int
    rate: float = 0.0
    doing: str = ""
    unread: Sequence[tuple[str, str]] = ()


def places(rows, groups: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns `Searchable.places` of groups: the photo nearest to a group's mean stands for it.

    Args:
      rows: (N, D), unit rows.
      groups: int (N,), group of each photo; -1: of none.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    found = []
    for members in np.split(order, starts)[1:] if len(starts) else ():
        some = members[:_COMPARED]
        own = np.asarray(rows[some], np.float32)
        first = some[np.argmax(own @ own.mean(axis=0))]
        found.append(np.concatenate([[first], members[members != first]]))
    return tuple(sorted(found, key=len, reverse=True))


class Collection(Protocol):
    """Photos that the page searches; several threads ask it at once.

    Attributes:
      title: what it is called on the page, such as the name of the folder.
      how: how photos were shrunk before they were described; a visitor's are, too.
      scales: at which they were described.
      has_maps: whether `attention` works.
      has_local: whether `local` works.
    """

    title: str
    how: Preparation
    scales: tuple[float, ...]
    has_maps: bool
    has_local: bool

    def searchable(self) -> Searchable:
        """Returns what can be searched now: the same object until something has changed."""

    def progress(self) -> Progress:
        """Returns how far the describing is, at once."""

    def describe(self, image: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns the raw descriptor of uint8 RGB (H, W, 3), float32 (1, C)."""

    def attention(self, image: np.ndarray) -> np.ndarray:
        """Returns the attention map of uint8 RGB (H, W, 3), float32 (h, w)."""

    def local(self, image: np.ndarray) -> LocalFeatures:
        """Returns the local features of uint8 RGB (H, W, 3), in its pixels.

        They are made as those that `Searchable.local` gives, if there are any.
        """

    def file(self, id_: str) -> pathlib.Path | None:
        """Returns the file of a photo; None: it is not on disk."""
