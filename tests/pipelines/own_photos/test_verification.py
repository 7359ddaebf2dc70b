"""Answers of one's own photos are ordered by local features too, which stay in step."""

import logging

import pytest
from own_photos_world import draw

from dolg_tf.pipelines.own_photos import model
from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.pipelines.own_photos.verification import kept_features
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.retrieval.local import feature_set
from dolg_tf.stage import tables
from dolg_tf.stage.config import InputError


def _kept(world):
    [path] = world.kept.glob("model-*/local")
    return feature_set.read(path)


def _inliers(world):
    table = tables.read_table(world.kept / "found.csv", ["id"], ["score"], ["inliers"])
    return [(id_, inliers) for _, (id_, _, inliers) in table]


def test_photos_of_the_same_view_come_first(world, network):
    before = [row[2] for row in world.search(k=60)]
    after = [row[2] for row in world.search(k=60, verify=True)]
    assert len(_kept(world)) == 72 and not list(world.kept.glob("model-*/local.begun"))
    assert sorted(network.looked_at) == sorted([*range(72), 0])  # and the query
    found = _inliers(world)
    assert {id_ for id_, _ in found[:4]} == {f"place_0/{number}.png" for number in range(1, 5)}
    assert all(inliers == "40" for _, inliers in found[:4])
    assert int(dict(found)["place_0/5.png"]) < 10
    assert all(inliers == "" for _, inliers in found[50:])
    assert set(before[:50]) == set(after[:50])
    assert after[50:] == before[50:]  # not verified


def test_local_features_stay_in_step(world, network, monkeypatch, caplog):
    monkeypatch.setattr(kept_features, "_PART", 16)
    monkeypatch.setattr(kept_features, "_PARTS", 2)
    caplog.set_level(logging.INFO)
    world.search()
    network.stops_after = 40
    with pytest.raises(KeyboardInterrupt):
        world.search(verify=True)
    assert "local features of 72 photos are to be found, once; they take up to 2 MB" in caplog.text
    network.stops_after = None
    world.search(verify=True)
    assert len(network.looked_at) == 40 + (72 - 32) + 1  # what was kept is not found again
    assert len(_kept(world)) == 72 and not list(world.kept.glob("model-*/local.begun"))
    network.looked_at.clear()
    (world.folder / "place_3" / "18.png").unlink()
    (world.folder / "place_3" / "19.png").rename(world.folder / "moved.png")
    draw(world.folder / "place_4" / "24.png", 72)  # changed
    draw(world.folder / "new.bmp", 72, "bmp")
    world.search(verify=True)
    assert sorted(network.looked_at) == [0, 72, 72]
    assert len(_kept(world)) == 72
    network.looked_at.clear()
    world.search()
    assert not network.looked_at and len(_kept(world)) == 72


def test_a_model_without_local_features_is_told_before_work(world, network, monkeypatch):
    about = Describer("abc", (1.0,), None, lambda: network.describe)
    monkeypatch.setattr(model, "open_model", lambda name: Model("old", 0, about))
    with pytest.raises(InputError, match=r"SavedModel old was exported before .*export it again"):
        world.search(verify=True)
    assert not network.described


def test_verification_is_of_answers():
    with pytest.raises(InputError, match="--verify orders the answers to --query"):
        SearchConfig(photos=("photos",), verify=True)
