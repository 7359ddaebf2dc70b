"""The numbers of `benchmarks/quality/robustness.py`, on inputs small enough to count by hand."""

import numpy as np
import pytest
import robustness
from PIL import Image

from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage.config import InputError


def _ramp(height, width):
    """A smooth image whose channels differ: red grows to the right, blue downwards."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 2] = np.linspace(0, 255, height)[:, None]
    return image


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [((60, 80), 40, (30, 40)), ((80, 60), 320, (320, 240)), ((1, 90), 30, (1, 30))],
)
def test_a_photo_is_shrunk_or_enlarged_to_its_longest_side(size, side, wanted):
    found = robustness.resize_to(_ramp(*size), side)
    assert found.shape == (*wanted, 3)
    assert np.abs(found.astype(int) - _ramp(*wanted)).mean() < 8


def test_the_crop_is_the_middle_of_that_share():
    image = _ramp(200, 100)
    found = robustness.central_crop(image, 0.25)
    np.testing.assert_array_equal(found, image[50:150, 25:75])
    assert robustness.central_crop(image, 0.5).shape == (141, 71, 3)
    assert robustness.central_crop(image[:1, :1], 0.25).shape == (1, 1, 3)


def test_jpeg_loses_more_at_a_lower_quality():
    noise = np.random.default_rng(0).integers(-20, 21, (64, 48, 1))
    image = np.clip(_ramp(64, 48).astype(int) + noise, 0, 255).astype(np.uint8)
    losses = [
        np.abs(robustness.compress(image, quality).astype(int) - image).mean()
        for quality in (90, 50, 10)
    ]
    assert 0 < losses[0] < losses[1] < losses[2] and losses[0] < 5


def test_every_change_that_is_named_is_made():
    image = _ramp(80, 120)
    found = {name: change(image) for name, change in robustness.CHANGES.items()}
    np.testing.assert_array_equal(found["unchanged"], image)
    np.testing.assert_array_equal(found["mirrored"], image[:, ::-1])
    assert found["sides times 0.25"].shape == (20, 30, 3)
    assert found["sides times 2"].shape == (160, 240, 3)
    assert found["middle 25% of the area"].shape == (40, 60, 3)
    np.testing.assert_array_equal(found["JPEG quality 10"], robustness.compress(image, 10))
    assert len(found) == 16 and next(iter(found)) == "unchanged"


def test_the_sample_is_spread_evenly_over_landmarks():
    landmarks = np.array(["a"] * 50 + ["b"] * 2 + ["c"] * 50)
    rows = robustness.spread(landmarks, 10)
    assert rows == robustness.spread(landmarks, 10) and len(set(rows)) == 10
    counts = dict(zip(*np.unique(landmarks[rows], return_counts=True), strict=True))
    assert counts == {"a": 4, "b": 2, "c": 4}
    assert robustness.spread(landmarks, 1000) == list(range(102))
    assert len(robustness.spread(np.arange(500), 10)) == 10  # more landmarks than rows


def test_scores_are_those_of_a_slow_count():
    rng = np.random.default_rng(0)
    cosines, same = rng.standard_normal((6, 20)), rng.random((6, 20)) < 0.3
    same[:, 0] = True
    precisions, first = [], []
    for row, right in zip(cosines, same, strict=True):
        ranked = [right[i] for i in sorted(range(20), key=lambda i: -row[i])]
        first.append(ranked[0])
        area = 0.0
        for r in (r for r, hit in enumerate(ranked) if hit):
            before = 1.0 if r == 0 else sum(ranked[:r]) / r
            area += (before + sum(ranked[: r + 1]) / (r + 1)) / 2 / sum(right)
        precisions.append(area)
    found = robustness.score(cosines, same)
    assert found == pytest.approx({"mAP": np.mean(precisions), "R@1": np.mean(first)})
    assert 0 < found["R@1"] < 1


def test_drift_is_measured_against_the_photo_as_it_was():
    index = np.eye(4)[[0, 1, 2]]
    same = np.array([[True, False, False], [False, True, False]])
    changed = np.zeros((len(robustness.CHANGES), 2, 4))
    changed[:] = np.eye(4)[[0, 1]]
    names = list(robustness.CHANGES)
    changed[names.index("mirrored"), 1] = [0.8, 0.6, 0, 0]  # nearer the other landmark
    moved, others = robustness.drift(changed, index, same)
    assert moved["unchanged"] == {"mean": 1, "p5": 1, "R@1": 1}
    assert moved["mirrored"] == pytest.approx({"mean": 0.8, "p5": 0.62, "R@1": 0.5})
    assert others["another photo of the landmark"]["mean"] == 1
    assert others["a photo of another landmark"]["mean"] == 0


def _mean_colour(batch):
    return batch.mean((1, 2))


def test_rows_are_in_the_order_of_changes_and_photos(tmp_path):
    photos, images = [], [_ramp(20, 30), 255 - _ramp(30, 20), _ramp(20, 30) // 2]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        photos.append(Photo(str(number), tmp_path / f"{number}.png"))
    changes = [robustness.CHANGES["unchanged"], lambda image: image[:10]]
    found = robustness.describe_changed(_mean_colour, photos, changes, "test")
    wanted = [[_mean_colour(change(x)[None])[0] for x in images] for change in changes]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    unchanged = robustness.CHANGES["unchanged"]
    for name in ("a.jpg", "missing.jpg"):
        photos = [Photo(name, tmp_path / name)]
        with pytest.raises(InputError, match=rf"{name}: .*; repair the file"):
            robustness.describe_changed(_mean_colour, photos, [unchanged], "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,A,train", "b,A,index", "c,B,index", "d,C,query"], "'C' has queries but no photo"),
        (["a,A,train", "b,A,index", "d,A,query"], "the index has only one landmark"),
    ],
)
def test_queries_that_can_find_nothing_are_refused(tmp_path, rows, message):
    (tmp_path / "labels.csv").write_text("\n".join(["path,landmark,split", *rows]) + "\n")
    with pytest.raises(InputError, match=message):
        robustness.read_splits(tmp_path)
