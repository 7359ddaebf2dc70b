"""Labels of your own photos: where they come from, and which photos serve for what."""

import numpy as np
import pytest

from dolg_tf.pipelines.own_photos.finding import File
from dolg_tf.pipelines.own_photos.learning import labels as learning
from dolg_tf.pipelines.own_photos.learning.labels import Labels, find_labels, split
from dolg_tf.stage.config import InputError


def _photos(root, *ids, label=""):
    return [File(f"{label}{id_}", str(root / id_), 1, 0) for id_ in ids]


def test_folders_are_landmarks_and_a_list_wins(tmp_path):
    photos = _photos(tmp_path, "a/1.jpg", "a/trip/2.jpg", "b/3.jpg", "4.jpg")
    found = find_labels({"": tmp_path}, photos)
    assert [photo.id for photo in found.photos] == ["a/1.jpg", "a/trip/2.jpg", "b/3.jpg"]
    assert found.landmarks == ("a", "a", "b") and found.source == f"folders in {tmp_path}"
    rows = "path,landmark,split\n4.jpg,tower,query\nb/3.jpg,tower,train\ngone.jpg,tower,\n"
    (tmp_path / "labels.csv").write_text(rows)
    found = find_labels({"": tmp_path}, photos)
    assert dict(zip((p.id for p in found.photos), found.landmarks, strict=True)) == {
        "b/3.jpg": "tower",
        "4.jpg": "tower",
    }
    assert found.missing == 1 and found.source.endswith("labels.csv")


def test_each_of_several_folders_has_its_labels(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "labels.csv").write_text("path,landmark\n1.jpg,tower\n")
    photos = _photos(tmp_path / "x", "1.jpg", label="x/") + _photos(
        tmp_path / "y", "tower/1.jpg", label="y/"
    )
    found = find_labels({"x": tmp_path / "x", "y": tmp_path / "y"}, photos)
    assert [photo.id for photo in found.photos] == ["x/1.jpg", "y/tower/1.jpg"]
    assert found.landmarks == ("tower", "tower")


def _labels(*counts):
    landmarks = tuple(f"place {n:02d}" for n, count in enumerate(counts) for _ in range(count))
    photos = tuple(File(f"{row}.jpg", f"{row}.jpg", 1, 0) for row in range(len(landmarks)))
    return Labels(photos, landmarks, "a list")


def test_whole_landmarks_are_kept_out_and_none_that_asks_is_trained_on(monkeypatch):
    labels = _labels(*[10] * 12, *[2] * 5)
    parts = split(labels)
    names = np.array(labels.landmarks)
    assert parts.landmarks == (9, 3)
    assert not set(names[parts.train]) & set(names[parts.left_out])
    assert set(names[parts.asked]) == {f"place {n:02d}" for n in range(12)}
    assert not set(parts.asked) & {*parts.index} and set(parts.train) < set(parts.index)
    assert sorted([*parts.asked, *parts.index]) == list(range(130))
    assert len(parts.asked) == 24 and len(parts.train) == 9 * 8
    monkeypatch.setattr(learning, "MOST_PHOTOS", 50)
    bounded = split(labels)
    assert len(bounded.index) + len(bounded.asked) <= 50 + 10
    assert len(set(names[bounded.train])) == 9  # each has its share


def test_what_is_lacking_is_said():
    words = r"a list: --learn needs 6 landmarks of 4 photos or more; of 7 landmarks, 5 have so many"
    with pytest.raises(InputError, match=words + r" \('place 05' has 3\); sort photos into"):
        split(_labels(4, 4, 4, 4, 9, 3, 3))
    assert split(_labels(*[4] * 6)).landmarks == (4, 2)
