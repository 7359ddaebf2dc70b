import numpy as np
import pytest

from dolg_tf.retrieval.extract import batches
from dolg_tf.retrieval.extract.batches import bucket, describe_batches
from dolg_tf.runtime import session
from dolg_tf.stage.config import InputError


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


def test_large_photos_are_in_smaller_batches():
    images = [(row, np.zeros((4, 5, 3), np.uint8)) for row in range(7)]
    assert [len(rows) for rows, _ in bucket(images, 16, batch_pixels=70)] == [3, 3, 1]
    assert [len(rows) for rows, _ in bucket(images[:3], 16, batch_pixels=19)] == [1, 1, 1]
    assert [len(rows) for rows, _ in bucket(images, 2, batch_pixels=70)] == [2, 2, 2, 1]


def _describe_little(batch):
    """Has memory for two photos, and none for a photo with a level of 3."""
    if len(batch) > 2 or 3 in batch:
        raise MemoryError("no")
    return batch[:, 0, 0].astype(np.float32)


def test_a_batch_too_large_for_the_memory_is_described_one_by_one(caplog):
    images = [(row, np.full((4, 5, 3), row, np.uint8)) for row in range(6)]
    told = {}
    rows, done = describe_batches(images, _describe_little, 6, 4, told.__setitem__)
    assert [int(row[0]) for row in rows] == [0, 1, 2, 0, 4, 5] and not done[3] and done.sum() == 5
    assert list(told) == [3] and "5 x 4 pixels are too many for the memory" in told[3]
    assert "4 photos together are too large for the memory" in caplog.text
    with pytest.raises(InputError, match=r"5 x 4 pixels .* give a smaller --max_side"):
        describe_batches(images, _describe_little, 6, 4)


@pytest.mark.parametrize(("has_gpu", "sizes"), [(False, [1, 1, 1]), (True, [3])])
def test_only_without_a_gpu_are_batches_bounded_in_pixels(monkeypatch, has_gpu, sizes):
    monkeypatch.setattr(session, "has_gpu", lambda: has_gpu)
    monkeypatch.setattr(batches, "BATCH_PIXELS", 20)
    images, seen = [(row, np.zeros((3, 5, 3), np.uint8)) for row in range(3)], []

    def describe(batch):
        seen.append(len(batch))
        return np.ones((len(batch), 2))

    describe_batches(images, describe, 3, 16)
    assert seen == sizes
