"""The page of one's own photos: what it can search while they are described."""

import contextlib
import types

import numpy as np
import pytest
from own_photos_world import draw

from dolg_tf.apps.demo import serve
from dolg_tf.pipelines.own_photos import collection, command, describe
from dolg_tf.pipelines.own_photos.config import SearchConfig
from dolg_tf.stage import files


@pytest.fixture
def shown(world, monkeypatch):
    """Runs the command with a page that looks at the photos after each part, until all are done."""
    seen, photos = [], []

    def look(self, done, rate):
        told(self, done, rate)
        seen.append((self.searchable(), self.progress()))

    @contextlib.contextmanager
    def showing(found, settings):
        assert settings.port == 7999
        photos.append(found)
        seen.append((found.searchable(), found.progress()))
        yield "address"

    class Interrupted:
        def wait(self):
            raise KeyboardInterrupt

    told = collection.OwnPhotos._told
    monkeypatch.setattr(collection.OwnPhotos, "_told", look)
    monkeypatch.setattr(collection, "_SECONDS", 0)
    monkeypatch.setattr(describe, "_PART", 16)
    monkeypatch.setattr(serve, "check", lambda port: None)
    monkeypatch.setattr(serve, "showing", showing)
    monkeypatch.setattr(command, "threading", types.SimpleNamespace(Event=Interrupted))

    def run():
        seen.clear()
        settings = SearchConfig(photos=(str(world.folder),), kept=str(world.kept), port=7999)
        with pytest.raises(KeyboardInterrupt):
            command.search(settings)
        with files.lock(world.kept / "lock", "the page keeps others out"):
            pass
        return seen, photos[-1]

    return run


def test_what_is_described_can_be_searched_before_the_rest(world, shown):
    seen, photos = shown()
    counts = [(len(now.ids), progress.done) for now, progress in seen]
    assert counts == [(0, 0), (16, 16), (32, 32), (48, 48), (64, 64), (72, 72)]
    now, progress = seen[2]
    assert progress.total == 72 and progress.doing == "Describing your photos" and progress.rate > 0
    numbers = [int(id_.rpartition("/")[2].partition(".")[0]) for id_ in now.ids]
    assert (np.asarray(now.rows[:]) == world.network.rows[numbers]).all()
    done = photos.searchable()
    assert len(done.ids) == 72 and len(done.places) == 12 and done.threshold.estimated
    assert photos.searchable() is done and photos.progress().doing == ""
    assert "adapted" in done.note and photos.file("place_0/0.png").is_file()
    assert photos.file("../place_0/0.png") is None


def test_what_was_learned_before_holds_for_photos_that_come(world, shown):
    _, photos = shown()
    whitened = photos.searchable().rows.shape[1]
    draw(world.folder / "new.png", 72)
    (world.folder / "broken.jpg").write_bytes(b"no photo")
    seen, photos = shown()
    now, progress = seen[-1]
    assert len(now.ids) == 73 and now.rows.shape[1] == whitened
    raw = photos.describe(np.zeros((8, 8, 3), np.uint8), photos.scales)
    assert now.adapt(raw).shape == (1, whitened)
    assert progress.total == progress.done == 73
    assert [path.rpartition("/")[2] for path, _ in photos.progress().unread] == ["broken.jpg"]
