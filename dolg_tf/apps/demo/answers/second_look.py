"""Local features of a query and of the photos that it finds, and what they agree on."""

import collections
import dataclasses
import hashlib
import threading
from typing import TYPE_CHECKING

import numpy as np

from dolg_tf.apps.pictures.verified import VerifiedPair
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verifier
from dolg_tf.stage.config import InputError

if TYPE_CHECKING:
    from dolg_tf.apps.demo.search import Box, Engine, Query

_KEPT = 16  # queries whose local features are kept: half a megabyte each, or a few


@dataclasses.dataclass(frozen=True)
class Why:
    """Why a photo was found.

    Attributes:
      id: of the photo.
      pair: what it and the query agree on, in the pixels of the whole photos.
      box: (left, top, right, bottom), the part of the query that was searched for; None: all.
    """

    id: str
    pair: VerifiedPair
    box: tuple[int, int, int, int] | None


class SecondLook:
    """Looks at local features; several threads may use it at once.

    Args:
      engine: whose photos they are of.
    """

    def __init__(self, engine: "Engine"):
        self._engine = engine
        self._kept: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def query(self, query: "Query", box: "Box | None" = None) -> LocalFeatures:
        """Returns the local features of a photo, or of a box in it, in its pixels from the corner.

        Raises:
          InputError: as `Engine.image`.
        """
        now = self._engine.now()
        row = now.rows.get(query.id)
        if row is not None and box is None and now.photos.local is not None:
            return now.photos.local(row)
        key = hashlib.sha256(query.data).digest(), box
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = self._engine.image(query, box)
        left, top, right, bottom = query.part(box)
        found = scaled(self._engine.collection.local(image), (bottom - top, right - left))
        with self._lock:
            self._kept[key] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found

    def why(self, query: "Query", box: "Box | None", id_: str) -> Why:
        """Returns why a photo of the collection was found.

        Raises:
          InputError: when it is not there, or as `query`.
        """
        if not self._engine.collection.has_local:
            raise InputError("This model gives no local features, so it cannot be shown why.")
        now = self._engine.now()
        row = now.rows.get(id_)
        asked = self.query(query, box)
        if row is not None and now.photos.local is not None:
            other = now.photos.local(row)
        else:
            other = self.query(self._engine.stored(id_))
        found = Verifier(now.photos.verify).verify(asked, other)
        pair = VerifiedPair(asked, other, found)
        if box is None:
            return Why(id_, pair, None)
        part = query.part(box)
        return Why(id_, moved(pair, part[1::-1], (query.height, query.width)), part)


def scaled(features: LocalFeatures, size: tuple[int, int]) -> LocalFeatures:
    """Returns local features of a shrunk photo in the pixels of the photo of height and width."""
    factors = np.divide(size, features.size)
    positions = (features.positions * factors).astype(np.float32)
    return dataclasses.replace(features, positions=positions, size=size)


def moved(pair: VerifiedPair, corner: tuple[int, int], size: tuple[int, int]) -> VerifiedPair:
    """Returns what a part of a query agrees on, in the pixels of the whole query.

    Args:
      pair: of the part.
      corner: (y, x) of the part.
      size: height and width of the whole.
    """
    positions = pair.query.positions + np.float32(corner)
    query = dataclasses.replace(pair.query, positions=positions, size=size)
    map_ = pair.found.map
    if map_ is not None:
        there = np.eye(3)
        there[:2, 2] = corner
        map_ = there[: len(map_)] @ np.vstack([map_, (0, 0, 1)])[:3]
    return VerifiedPair(query, pair.index, dataclasses.replace(pair.found, map=map_))
