import errno
import pathlib

import numpy as np
import pytest
from PIL import Image

from dolg_tf.retrieval.extract.decoding import (
    bucket,
    decode_ahead,
    describe_batches,
    load_photo,
    read_photo,
)
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage.config import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_whole_photo(png):
    np.testing.assert_array_equal(load_photo(Photo("photo", png)), IMAGE)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((3.9, 2.9, 10.9, 8.9), IMAGE[2:8, 3:10]),
        ((-5.0, -0.5, 100.0, 12.0), IMAGE[:12]),
        ((28, 18, 31, 21), IMAGE[18:, 28:]),
    ],
)
def test_box_is_truncated_and_clipped(png, box, cut):
    np.testing.assert_array_equal(load_photo(Photo("photo", png, box)), cut)


@pytest.mark.parametrize("box", [(30, 0, 40, 10), (5, 5, 5.9, 9), (9, 9, 3, 12), (-9, 0, -1, 5)])
def test_box_without_pixels(png, box):
    with pytest.raises(InputError, match="has no pixel of its 30 x 20"):
        load_photo(Photo("photo", png, box))


def test_shrinks_the_cut(png):
    assert load_photo(Photo("photo", png), 30).shape == (20, 30, 3)
    assert load_photo(Photo("photo", png), 15).shape == (10, 15, 3)
    assert load_photo(Photo("photo", png, (0, 0, 10, 20)), 15).shape == (15, 8, 3)
    # Antialiased: halving averages neighbours, so the noise becomes weaker.
    assert load_photo(Photo("photo", png), 15).std() < 0.7 * IMAGE.std()


def test_unreadable_photos_give_a_reason(tmp_path, png):
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "half.png").write_bytes(png.read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.jpg", "half.png", "empty.jpg"):
        assert "not a photo that can be decoded" in load_photo(Photo("x", tmp_path / name))
    assert "No such file" in load_photo(Photo("x", tmp_path / "none.jpg"))


def test_a_fault_of_the_disk_is_none_of_the_photo(tmp_path, monkeypatch):
    def read(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pathlib.Path, "read_bytes", read)
    with pytest.raises(InputError, match=r"x\.jpg: cannot be read \(Input/output error\)"):
        load_photo(Photo("x", tmp_path / "x.jpg"))


def test_decode_ahead_keeps_order(tmp_path):
    photos = []
    for value in range(40):
        path = tmp_path / f"{value}.png"
        side = 200 if value % 7 == 0 else 4
        Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(path)
        photos.append(Photo(str(value), path))
    photos[5] = Photo("5", pathlib.Path("none.jpg"))
    found = list(decode_ahead(photos, 0))
    assert "none.jpg" in found[5]
    assert [5 if isinstance(x, str) else int(x[0, 0, 0]) for x in found] == list(range(40))


def test_decode_ahead_is_bounded_and_stops(monkeypatch):
    started = []

    def load(photo, max_side):
        started.append(photo)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr("dolg_tf.retrieval.extract.decoding.load_photo", load)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    stream = decode_ahead([Photo(str(i), pathlib.Path()) for i in range(1000)], 0)
    next(stream)
    stream.close()
    assert len(started) <= 9


def test_photos_are_read_as_extraction_reads_them(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), IMAGE)
    assert read_photo(tmp_path / "a.png", 15).shape == (10, 15, 3)
    cut = read_photo(Photo("a", tmp_path / "a.png", (10, 5, 30, 15)))
    np.testing.assert_array_equal(cut, IMAGE[5:15, 10:30])
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"b\.jpg: not a photo"):
        read_photo(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"c\.jpg: No such file"):
        read_photo(tmp_path / "c.jpg")
    np.testing.assert_array_equal(read_photo(IMAGE), IMAGE)
    assert read_photo(IMAGE, 15).shape == (10, 15, 3)
    with pytest.raises(InputError, match=r"float64 \(20, 30, 3\); give uint8 RGB"):
        read_photo(IMAGE / 255)
    with pytest.raises(InputError, match=r"uint8 \(20, 30\); give uint8 RGB"):
        read_photo(IMAGE[..., 0])


# --- batches of equal size ------------------------------------------------------------


def _images(count, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(4, 5, 3), (5, 4, 3), (6, 6, 3)]
    return [
        (row, np.full(shapes[rng.integers(3)], row, np.uint8)) for row in rng.permutation(count)
    ]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("waiting_bytes", [0, 300, 10**6])
def test_each_image_once_with_its_row(batch_size, waiting_bytes):
    images = _images(50)
    seen = []
    for rows, batch in bucket(images, batch_size, waiting_bytes):
        assert 1 <= len(rows) == len(batch) <= batch_size
        np.testing.assert_array_equal(batch[:, 0, 0, 0], rows)
        seen += rows
    assert sorted(seen) == list(range(50))


def test_full_buckets_are_full():
    sizes = [len(rows) for rows, _ in bucket(_images(60), 8)]
    assert sum(size < 8 for size in sizes) <= 3


def test_what_waits_is_bounded():
    pulled, given, most, batches = 0, 0, 0, 0

    def source():
        nonlocal pulled
        for row, image in _images(300):
            pulled += image.nbytes
            yield row, image

    for _, batch in bucket(source(), 1000, waiting_bytes=1000):
        most = max(most, pulled - given)
        given += batch.nbytes
        batches += 1
    # The fullest of three buckets goes, so a third of what may wait leaves at once.
    assert batches < 300 / 3
    assert given == pulled
    assert most <= 1000 + 6 * 6 * 3


def test_results_are_in_the_order_of_rows():
    images = [pair for pair in _images(20) if pair[0] != 7]
    seen = []

    def describe(batch):
        seen.append(len(batch))
        return np.stack([batch[:, 0, 0, 0], batch[:, 0, 0, 0] * 2], axis=1)

    rows, done = describe_batches(images, describe, 20, 4)
    expected = np.stack([np.arange(20), np.arange(20) * 2], axis=1).astype(np.float32)
    expected[7] = 0
    np.testing.assert_array_equal(rows, expected)
    assert rows.dtype == np.float32 and list(np.flatnonzero(~done)) == [7]
    assert max(seen) == 4


def test_no_images():
    rows, done = describe_batches([], lambda batch: batch, 3, 4)
    assert rows.shape[0] == 3 and not done.any()
