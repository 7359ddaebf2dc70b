"""What the page remembers of its visitors, in memory alone and within bounds."""

import collections
import time

from dolg_tf.apps.demo.search import Added, Query

_MOST = 64  # visitors
_BYTES = 512 * 2**20  # of all their photos
_AGE = 3600  # seconds after their last request


class Visitor:
    """One who has the page open, in one tab.

    Attributes:
      query: the photo that they search for; None: none yet, or it was forgotten.
      added: photos of their own that they search besides those of the index.
    """

    def __init__(self):
        self.query: Query | None = None
        self.added: Added | None = None
        self.seen = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        size = 0 if self.query is None else len(self.query.data)
        if self.added is not None:
            size += self.added.rows.nbytes + sum(map(len, self.added.thumbnails))
        return size


class Visitors:
    """All of them; whoever was away longest is forgotten first."""

    def __init__(self):
        self._all: collections.OrderedDict[str, Visitor] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._all)

    def of(self, session: str) -> Visitor:
        """Returns the visitor of a session, a new one if need be."""
        visitor = self._all.setdefault(session, Visitor())
        visitor.seen = time.monotonic()
        self._all.move_to_end(session)
        self.tidy()
        return visitor

    def tidy(self) -> None:
        """Forgets those who are too many, too large in sum, or were away too long."""
        size = sum(visitor.size for visitor in self._all.values())
        for session, visitor in list(self._all.items()):
            full = len(self._all) > 1 and (len(self._all) > _MOST or size > _BYTES)
            if not full and time.monotonic() - visitor.seen <= _AGE:
                return
            size -= visitor.size
            del self._all[session]
