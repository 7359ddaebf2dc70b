"""Lists of photos, pairs, pools and negatives of HOW's training."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesData
from dolg_tf.training.tuples.mining import draw_epoch, hardest_negatives
from dolg_tf.training.tuples.photos import read_photos


@pytest.fixture
def labels(tmp_path):
    """Four landmarks of 1, 2, 3 and 4 photos, of different sizes."""
    lines = ["path,landmark"]
    for landmark in range(4):
        for number in range(landmark + 1):
            name = f"{landmark}_{number}.png"
            Image.new("RGB", (50 + number, 30), (60 * landmark, 0, 0)).save(tmp_path / name)
            lines.append(f"{name},place {landmark}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "labels.csv"


def test_pairs_show_the_same_landmark_and_all_are_drawn(labels):
    photos = read_photos(TuplesData(photos=str(labels)))
    assert len(photos.paths) == 10 and photos.upright
    seen = set()
    for epoch in range(60):
        pairs, pool = draw_epoch(photos, 1, epoch, 100, 7)
        assert sorted(pairs[:, 0].tolist()) == list(range(1, 10))  # the first photo is alone
        assert (photos.clusters[pairs[:, 0]] == photos.clusters[pairs[:, 1]]).all()
        assert (pairs[:, 0] != pairs[:, 1]).all()
        assert len(set(pool.tolist())) == 7
        seen |= set(map(tuple, pairs.tolist()))
    assert len(seen) == 2 + 6 + 12
    again, other = (draw_epoch(photos, seed, 3, 5, 7) for seed in (1, 2))
    for found, expected in zip(draw_epoch(photos, 1, 3, 5, 7), again, strict=True):
        assert (found == expected).all()
    assert (other[1] != again[1]).any()


def test_photos_come_in_order_at_their_own_size_and_shrunk(labels):
    photos = read_photos(TuplesData(photos=str(labels), image_size=50))
    numbers = [9, 0, 3, 9, *range(10), *range(10)]
    found = list(photos.load(numbers))
    assert len(found) == len(numbers)
    assert found[0].shape == (28, 50, 3) and found[1].shape == (30, 50, 3)
    assert [each[0, 0, 0] for each in found[:3]] == [180, 0, 120]
    (labels.parent / "3_3.png").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"3_3\.png cannot be read .*; repair it"):
        list(photos.load([0, 9]))


def _slow_negatives(queries, own, pool, clusters, count):
    found = []
    for query, cluster in zip(queries, own, strict=True):
        taken, rows = {cluster}, []
        for row in sorted(range(len(pool)), key=lambda row: (-(pool[row] @ query), row)):
            if clusters[row] not in taken and len(rows) < count:
                taken.add(clusters[row])
                rows.append(row)
        found.append(rows)
    return found


def test_negatives_are_the_most_similar_of_different_landmarks():
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (300, 4)).astype(np.float32)  # with equal products
    pool = rng.integers(-2, 3, (80, 4)).astype(np.float32)
    own, clusters = rng.integers(0, 12, 300), rng.integers(0, 10, 80)
    found = hardest_negatives(queries, own, pool, clusters, 5)
    assert found.tolist() == _slow_negatives(queries, own, pool, clusters, 5)
    with pytest.raises(InputError, match="the pool shows 10 landmarks; 10 negatives"):
        hardest_negatives(queries, own, pool, clusters, 10)


def _sfm(path, **changes):
    train = {
        "cids": ["0a1b2c3d", "ffffee99", "00aa11bb"],
        "cluster": [4, 4, 7],
        "qidxs": np.array([0]),
        "pidxs": [1],
    }
    path.write_bytes(pickle.dumps({"train": {**train, **changes}, "val": {}}))
    return TuplesData(photos=str(path))


def test_retrieval_sfm_is_read_with_its_pairs(tmp_path):
    photo = tmp_path / "ims" / "3d" / "2c" / "1b" / "0a1b2c3d"
    with pytest.raises(InputError, match="1b/0a1b2c3d: no such photo; give another --image_root"):
        read_photos(_sfm(tmp_path / "sfm.pkl"))
    photo.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(photo, "PNG")
    photos = read_photos(_sfm(tmp_path / "sfm.pkl"))
    assert photos.paths[0] == photo and not photos.upright
    assert photos.clusters.tolist() == [4, 4, 7] and photos.pairs.tolist() == [[0, 1]]
    assert draw_epoch(photos, 0, 0, 5, 2)[0].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cids": ["../../../etc", "b" * 8, "c" * 8]}, "is not letters and digits"),
        ({"cids": ["a" * 8]}, "cids and cluster must be two lists of the same length"),
        ({"qidxs": [5]}, "must be numbers of its 3 photos"),
        ({"qidxs": [0.5]}, "is not a list of whole numbers"),
        ({"pidxs": []}, "must be of the same length"),
        ({"cluster": print}, "refused"),
    ],
)
def test_other_pickles_are_refused(tmp_path, changes, named):
    with pytest.raises(InputError, match=named):
        read_photos(_sfm(tmp_path / "sfm.pkl", **changes))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,landmark\na.png,1\nb.png,2\n", "no two training photos show the same landmark"),
        (None, "no such file; give a labels.csv or a .pkl"),
    ],
)
def test_lists_without_pairs_are_refused(tmp_path, text, named):
    if text:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=named):
        read_photos(TuplesData(photos=str(tmp_path / "labels.csv")))
