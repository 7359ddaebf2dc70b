"""Photos that visitors sent, in memory alone and within bounds."""

import collections
import secrets
import threading
import time

from dolg_tf.apps.demo.search import Query

_MOST = 64  # photos
_BYTES = 512 * 2**20  # of all of them
_AGE = 3600  # seconds after the last request that named one


class Sent:
    """The photos; whichever was named longest ago is forgotten first.

    Each is known by a word that only its visitor was told.
    """

    def __init__(self):
        self._all: collections.OrderedDict[str, tuple[Query, float]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def keep(self, query: Query) -> str:
        """Keeps a photo; returns the word for it."""
        word = secrets.token_hex(16)
        with self._lock:
            self._all[word] = query, time.monotonic()
        self.tidy()
        return word

    def find(self, word: str) -> Query | None:
        """Returns a photo; None: it was forgotten, or there never was one."""
        with self._lock:
            if word not in self._all:
                return None
            query, _ = self._all[word]
            self._all[word] = query, time.monotonic()
            self._all.move_to_end(word)
            return query

    def tidy(self) -> None:
        """Forgets those that are too many, too large in sum, or were not named for too long."""
        with self._lock:
            size = sum(len(query.data) for query, _ in self._all.values())
            for word, (query, named) in list(self._all.items()):
                full = len(self._all) > 1 and (len(self._all) > _MOST or size > _BYTES)
                if not full and time.monotonic() - named <= _AGE:
                    return
                size -= len(query.data)
                del self._all[word]
