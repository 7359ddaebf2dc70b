import pathlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from dolg_tf.retrieval.extract import ahead, decoding
from dolg_tf.retrieval.extract.ahead import decode_ahead
from dolg_tf.retrieval.extract.decoding import WHOLE
from dolg_tf.retrieval.extract.photos import Photo


def test_decode_ahead_keeps_order(tmp_path):
    photos = []
    for value in range(40):
        path = tmp_path / f"{value}.png"
        side = 200 if value % 7 == 0 else 4
        Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)
        photos.append(Photo(str(value), path))
    photos[5] = Photo("5", pathlib.Path("none.jpg"))
    found = list(decode_ahead(photos, WHOLE))
    assert "none.jpg" in found[5]
    assert [5 if isinstance(x, str) else int(x[0, 0, 0]) for x in found] == list(range(40))


def test_decode_ahead_is_bounded_and_stops(monkeypatch):
    started = []

    def load(photo, how, hold):
        started.append(photo)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr("dolg_tf.retrieval.extract.decoding.load_photo", load)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    stream = decode_ahead([Photo(str(i), pathlib.Path()) for i in range(1000)], WHOLE)
    next(stream)
    stream.close()
    assert len(started) <= 9


class _Memory:
    """Stands in for `load_photo`: photos of given sizes, and the most bytes held at once."""

    def __init__(self, sizes):
        self._sizes, self._lock, self.held, self.most = sizes, threading.Lock(), 0, 0

    def load(self, photo, how, hold):
        size = self._sizes[int(photo.id)]
        if not size:
            return "no photo"
        hold(size)
        with self._lock:
            self.held += size
            self.most = max(self.most, self.held)
        time.sleep(0.001)
        return np.zeros((size, 1, 1), np.uint8)

    def take(self, image):
        with self._lock:
            self.held -= image.nbytes if isinstance(image, np.ndarray) else 0


@pytest.mark.parametrize("seed", range(3))
def test_decoded_photos_are_bounded_in_bytes(monkeypatch, seed):
    sizes = np.random.default_rng(seed).integers(0, 60, 80).tolist()
    sizes[20], sizes[40] = 500, 90
    memory = _Memory(sizes)
    monkeypatch.setattr(decoding, "load_photo", memory.load)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    found = []
    for image in decode_ahead([Photo(str(i), "") for i in range(80)], WHOLE):
        found.append(image if isinstance(image, str) else len(image))
        memory.take(image)
    assert found == [size or "no photo" for size in sizes]
    # One alone may be larger; besides it there is the one that the model has just taken.
    assert memory.most <= 500 + 60


def test_small_photos_share_the_room_and_never_exceed_it(monkeypatch):
    hold, most = ahead._Budget.hold, 0

    def slow(budget, number, size):
        time.sleep(0.002)  # as when the system lets other threads run first
        hold(budget, number, size)

    def load(photo, how, hold):
        nonlocal most
        hold(60)
        most = max(most, budgets[0]._used)
        return np.zeros((60, 1, 1), np.uint8)

    class Budget(ahead._Budget):
        def __init__(self, size):
            super().__init__(size)
            budgets.append(self)

    budgets = []
    monkeypatch.setattr(ahead._Budget, "hold", slow)
    monkeypatch.setattr(ahead, "_Budget", Budget)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(decoding, "load_photo", load)
    assert len(list(decode_ahead([Photo(str(i), "") for i in range(40)], WHOLE))) == 40
    assert most == 60


def test_a_photo_that_waits_for_room_does_not_keep_the_threads(monkeypatch):
    memory = _Memory([60] * 50)
    monkeypatch.setattr(decoding, "load_photo", memory.load)
    monkeypatch.setattr(ahead, "AHEAD_BYTES", 100)
    stream = decode_ahead([Photo(str(i), "") for i in range(50)], WHOLE)
    next(stream)
    stream.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("decode")]
