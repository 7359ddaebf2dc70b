"""The sizes and hashes of many photos."""

import hashlib

import numpy as np
import pytest

from dolg_tf.retrieval.extract import listing
from dolg_tf.retrieval.extract.listing import Listing, Photo


@pytest.fixture
def photos(tmp_path):
    found = []
    for number in range(23):
        if number != 7:
            (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
        box = (1.0, 2.0, 3.0, 4.5) if number % 4 == 0 else None
        found.append(Photo(f"{number}", str(tmp_path / f"{number}.jpg"), box))
    (tmp_path / "folder.jpg").mkdir()
    return [*found, Photo("folder", tmp_path / "folder.jpg"), Photo("odd", "a\0b.jpg")]


def test_sizes_are_in_the_order_of_the_photos(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "_STAT_PHOTOS", 4)
    sizes = Listing(tmp_path, tuple(photos), False).sizes()
    expected = [number if number != 7 else -1 for number in range(23)] + [-1, -1]
    np.testing.assert_array_equal(sizes, expected)


def test_hashes_of_all_photos_do_not_depend_on_shards(photos, tmp_path):
    found = Listing(tmp_path, tuple(photos), False)
    sizes = found.sizes()
    prints = {size: found.fingerprints(sizes, size) for size in (1, 4, 100)}
    assert len({(p.names, p.images) for p in prints.values()}) == 1
    assert [len(p.shards) for p in prints.values()] == [25, 7, 1]
    text = "".join(
        repr((photo.id, photo.box, None if size < 0 else int(size)))
        for photo, size in zip(photos, sizes, strict=True)
    )
    assert prints[4].images == prints[100].shards[0] == hashlib.sha256(text.encode()).hexdigest()


def test_what_changes_which_hash(photos, tmp_path):
    def prints(photos, sizes):
        return Listing(tmp_path, tuple(photos), False).fingerprints(sizes, 5)

    sizes = np.arange(25)
    before = prints(photos, sizes)
    larger = prints(photos, sizes + (np.arange(25) == 12))
    assert larger.names == before.names and larger.images != before.images
    changed = [a != b for a, b in zip(before.shards, larger.shards, strict=True)]
    assert changed == [False, False, True, False, False]
    for other in (Photo("12", "x.jpg", None), Photo("12x", "x.jpg", (1.0, 2.0, 3.0, 4.5))):
        moved = prints([*photos[:12], other, *photos[13:]], sizes)
        assert moved.names != before.names and moved.images != before.images
