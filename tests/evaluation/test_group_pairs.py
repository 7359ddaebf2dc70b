import numpy as np
import pytest
from place_rows import photos_of

from dolg_tf.evaluation import group_pairs
from dolg_tf.evaluation.group_pairs import estimate_threshold
from dolg_tf.stage.config import InputError


def _centred(rows):
    rows = rows - rows.mean(axis=0)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_threshold_separates_groups(caplog, monkeypatch):
    monkeypatch.setattr(group_pairs, "_BLOCK", 7)
    rows, places = photos_of([6] * 12 + [1] * 9)
    rows, labels = _centred(rows), np.where(places < 12, places, -1)
    found = estimate_threshold(rows, labels)
    products = rows @ rows.T
    later = np.triu(np.ones_like(products, bool), 1) & (labels >= 0) & (labels >= 0)[:, None]
    same = later & (labels == labels[:, None])
    assert found["groups"] == 12 and found["pairs"]["same"] == np.count_nonzero(same) == 180
    passed = products >= found["threshold"]
    assert np.count_nonzero(passed & same) / 180 == pytest.approx(found["recall"])
    assert found["precision"] >= 0.95 and found["recall"] > 0.9
    low, high = found["precision_interval"]
    assert low <= found["precision"] <= high
    assert not caplog.text


def test_groups_that_may_be_one_place_are_not_compared():
    rows, places = photos_of([8] * 10)
    split = np.where(np.arange(len(places)) % 8 < 4, places, places + 10)
    whole, halves = (estimate_threshold(_centred(rows), x) for x in (places, split))
    assert halves["groups"] == 20 and halves["recall"] > 0.9
    assert halves["threshold"] == pytest.approx(whole["threshold"], abs=0.1)


def test_few_pairs_are_told(caplog):
    rows, places = photos_of([3] * 5)
    estimate_threshold(_centred(rows), places, precision=0.5)
    assert "15 pairs of 5 groups, which is little" in caplog.text


def test_photos_that_stand_for_queries_are_compared_with_the_others_alone(monkeypatch):
    monkeypatch.setattr(group_pairs, "_BLOCK", 7)
    rows, places = photos_of([6] * 12 + [1] * 9)
    rows, labels = _centred(rows), np.where(places < 12, places, -1)
    asked = np.arange(len(labels)) % 5 == 0
    found = estimate_threshold(rows, labels, asked=asked)
    pairs = asked[:, None] & ~asked & (labels >= 0)[:, None] & (labels >= 0)
    same = pairs & (labels == labels[:, None])
    assert found["pairs"]["same"] == np.count_nonzero(same)
    assert found["pairs"]["different"] <= np.count_nonzero(pairs & ~same)
    passed = rows @ rows.T >= found["threshold"]
    assert np.count_nonzero(passed & same) / same.sum() == pytest.approx(found["recall"])


def test_many_photos_are_sampled_by_whole_groups(monkeypatch):
    monkeypatch.setattr(group_pairs, "_PHOTOS", 40)
    rows, places = photos_of([6] * 30)
    found = estimate_threshold(_centred(rows), places)
    assert found["groups"] == 6 and found["pairs"]["same"] == 6 * 15
    assert found == estimate_threshold(_centred(rows), places)


def test_a_giant_group_is_sampled_and_does_not_hide_the_others(monkeypatch):
    monkeypatch.setattr(group_pairs, "_PHOTOS", 60)
    monkeypatch.setattr(group_pairs, "_OF_A_GROUP", 8)
    rows, places = photos_of([500] * 2 + [6] * 30)
    for seed in range(5):
        found = estimate_threshold(_centred(rows), places, seed=seed)
        assert 7 <= found["groups"] <= 10
        assert found["pairs"]["same"] <= found["groups"] * 28


@pytest.mark.parametrize("labels", [[-1, -1, -1], [0, 0, 0], []])
def test_one_group_gives_no_threshold(labels):
    rows = np.eye(3, dtype=np.float32)[: len(labels)]
    with pytest.raises(InputError, match="needs two groups"):
        estimate_threshold(rows, np.array(labels, int))
