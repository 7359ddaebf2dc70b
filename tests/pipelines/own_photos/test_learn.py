"""`dolg search --learn`: the trained network is kept where it is better, and only there."""

import numpy as np
import pytest
from own_photos_world import Network, World, draw

from dolg_tf.pipelines.own_photos.kept import Kept
from dolg_tf.pipelines.own_photos.learning import learn, recipe
from dolg_tf.pipelines.own_photos.model import Model
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract.model import Describer
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError


class Trained(Network):
    """Describes photos by noise, and by so much of what their place is."""

    def __init__(self, good):
        super().__init__()
        rng = np.random.default_rng(0)
        places = rng.normal(size=(self.places.max() + 1, self.rows.shape[1]))[self.places]
        rows = rng.normal(size=self.rows.shape) + good * places
        self.rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Learning(World):
    """A world whose training is a note that it was asked for."""

    def __init__(self, folder, network, monkeypatch):
        super().__init__(folder, network)
        network.rows = Trained(good=0.4).rows
        self.trained, self.photos, self.interrupt = Trained(good=9), [], False
        about = Describer("def", (1.0,), None, lambda: None)
        monkeypatch.setattr(recipe, "train", self._train)
        monkeypatch.setattr(learn, "open_describer", lambda path, scales: about)
        load = Model.load
        monkeypatch.setattr(
            Model,
            "load",
            lambda one: self.trained if one.about is about else load(one),
        )

    def _train(self, folder, photos, weights):
        self.photos.append(photos)
        if self.interrupt:
            (folder / "work").mkdir()
            raise KeyboardInterrupt
        (folder / "model").mkdir()
        return folder / "model"

    @property
    def sets(self):
        return sorted(path.name for path in self.kept.glob("model-*"))

    @property
    def result(self):
        return files.read_json(self.kept / "learnt" / "result.json")


@pytest.fixture
def world(tmp_path, network, monkeypatch):
    return Learning(tmp_path, network, monkeypatch)


def test_a_better_network_describes_the_photos_from_then_on(world, caplog):
    caplog.set_level("INFO")
    world.search(learn=True)
    (photos,) = world.photos
    assert len({landmark for _, landmark in photos}) == 9 and len(photos) == 9 * 5
    result = world.result
    assert result["kept"] and min(result["after"].values()) == 1 > max(result["before"].values())
    assert "landmarks that were kept out" in caplog.text and "   100.0" in caplog.text
    lines = [record.getMessage() for record in caplog.records]
    assert "mAP in percent, 12 photos ask       before   trained" in lines
    assert "training on 45 photos of 9 landmarks; 3 landmarks are kept out" in caplog.text
    assert len(descriptors.read(world.kept / "model-def" / "photos")) == 72  # all, at last
    world.network.described.clear()
    world.trained.described.clear()
    world.search()
    world.search(learn=True)  # the same labels
    assert len(world.photos) == 1 and world.network.described == []
    assert world.trained.described == [0, 0]  # the query, by the trained network


def test_a_damaged_result_is_told_with_its_remedy(world):
    (world.kept / "learnt").mkdir(parents=True)
    for text in ("{", '{"format_version": 1}'):
        (world.kept / "learnt" / "result.json").write_text(text)
        with pytest.raises(InputError, match=r"learnt: damaged .* train again with --learn"):
            learn.learnt_model(Kept(world.kept, {}), "efficientnet_lite0")


def test_a_worse_network_leaves_nothing(world, caplog):
    caplog.set_level("INFO")
    world.trained = Trained(good=0)
    answers = world.search(learn=True)
    assert not world.result["kept"] and world.sets == ["model-abc"]
    assert not (world.kept / "learnt" / "model").exists()
    assert "the network stays as it is" in caplog.text
    assert answers == world.search()
    world.search(learn=True)
    assert len(world.photos) == 1


def test_other_labels_train_again_and_an_interrupted_training_continues(world):
    draw(world.folder / "place_3" / "\udcff.png", 20)  # passed over
    world.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        world.search(learn=True)
    assert not (world.kept / "learnt").exists()
    world.interrupt = False
    world.search(learn=True)
    assert len(world.photos) == 2 and world.photos[0] == world.photos[1]
    assert (world.kept / "learnt" / "work").is_dir()  # the same folder
    draw(world.folder / "place_3" / "72.png", 72)
    world.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        world.search(learn=True)
    world.trained.described.clear()
    world.search()
    assert sorted(world.trained.described) == [0, 72]  # by what was learned before
    world.interrupt = False
    world.search(learn=True)
    assert len(world.photos) == 4 and world.photos[2] == world.photos[3] != world.photos[0]
    assert not (world.kept / "learning").exists()


def test_too_few_labels_are_told_before_anything_is_described(world):
    for number in range(7):
        for photo in (world.folder / f"place_{number}").iterdir():
            photo.rename(world.folder / photo.name)
    with pytest.raises(InputError, match="of 5 landmarks, 5 have so many"):
        world.search(query=world.folder / "0.png", learn=True)
    assert world.network.described == [] and world.photos == []
    with pytest.raises(InputError, match=r"--learn trains efficientnet_lite0 or .*, not --model=x"):
        world.search(query=world.folder / "0.png", learn=True, model="x")
