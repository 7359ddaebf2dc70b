"""Photos are read and decoded ahead of the model, by threads, in bounded memory."""

import collections
import concurrent.futures
import functools
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dolg_tf.retrieval.extract import decoding
from dolg_tf.retrieval.extract.decoding import Hold, Preparation, Prepared
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage import files

AHEAD_BYTES = 384 * 2**20  # of photos that are decoded or wait for the model; one may take more


class _Stopped(Exception):
    """Nobody wants the photos any more."""


class _Budget:
    """Bytes that photos share, each from its decoding until the model takes it.

    Photos are admitted in their order: all photos before one that waits are decoded, so the model
    takes them, and there is room in the end. One that needs more than there is waits until it is
    alone.
    """

    def __init__(self, size: int):
        self._size, self._used, self._turn = size, 0, 0
        self._held: dict[int, int] = {}
        self._stopped = False
        self._changed = threading.Condition()

    def admit(self, number: int, size: int) -> None:
        """Waits for the turn of a photo, by its number, and for room for its bytes."""

        def ready() -> bool:
            room = not self._used or self._used + size <= self._size
            return self._stopped or (self._turn == number and room)

        with self._changed:
            self._changed.wait_for(ready)
            if self._stopped:
                raise _Stopped
            self._turn += 1
            self._book(number, size)  # before the next photo asks for room

    def hold(self, number: int, size: int) -> None:
        """Sets the bytes that a photo takes from now on."""
        with self._changed:
            self._book(number, size)

    def _book(self, number: int, size: int) -> None:
        self._used += size - self._held.pop(number, 0)
        if size:
            self._held[number] = size
        self._changed.notify_all()

    def admitted(self, number: int) -> bool:
        """Tells whether a photo's turn is over."""
        return number < self._turn

    def stop(self) -> None:
        """Ends all waiting."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()


def decode_ahead(photos: Iterable[Photo], how: Preparation) -> Iterator[np.ndarray | str]:
    """Yields `load_photo` of each photo, in order, while threads decode a few more."""
    return _ahead(lambda photo, hold: decoding.load_photo(photo, how, hold), photos)


def prepare_ahead(photos: Iterable[Photo], how: Preparation) -> Iterator[Prepared | str]:
    """Yields `prepare` of each photo, in order, while threads decode a few more."""
    return _ahead(lambda photo, hold: decoding.prepare(photo, how, hold), photos)


def read_ahead(
    photos: Iterable[np.ndarray | Photo | files.Path], how: Preparation
) -> Iterator[np.ndarray]:
    """Yields `read_photo` of each photo, in order, while threads decode a few more."""
    return _ahead(lambda photo, hold: decoding.read_photo(photo, how, hold), photos)


def _ahead(
    read: Callable[[object, Hold], np.ndarray | Prepared | str], photos: Iterable
) -> Iterator:
    """Yields what `read` returns of each photo; it must ask `Hold` before it decodes."""
    workers = os.cpu_count() or 1
    budget, pending = _Budget(AHEAD_BYTES), collections.deque()
    numbered = enumerate(photos)
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def task(number: int, photo):
        image = None
        try:
            image = read(photo, functools.partial(budget.admit, number))
        finally:
            if not budget.admitted(number):  # it was not decoded
                budget.admit(number, 0)
            pixels = image.image if isinstance(image, Prepared) else image
            budget.hold(number, pixels.nbytes if isinstance(pixels, np.ndarray) else 0)
        return image

    def submit_next(count: int) -> None:
        for number, photo in itertools.islice(numbered, count):
            pending.append((number, pool.submit(task, number, photo)))

    try:
        submit_next(4 * workers)
        while pending:
            number, future = pending.popleft()
            image = future.result()
            budget.hold(number, 0)
            submit_next(1)
            del future  # it holds the image, too
            yield image
    finally:
        budget.stop()
        pool.shutdown(wait=True, cancel_futures=True)
