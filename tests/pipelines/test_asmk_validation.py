"""HOW's training is validated by ASMK: copies are found, with the weights of the moment."""

import pickle

import numpy as np
import pytest
from PIL import Image

from dolg_tf.modeling.config import HowConfig
from dolg_tf.modeling.how import build_how
from dolg_tf.pipelines import train as train_command
from dolg_tf.pipelines.asmk_validation import AsmkValidation
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining

pytest.importorskip("faiss")

MODEL = HowConfig(backbone="resnet17_small", dimensions=128, local_source="p4")
PHOTOS = 8


@pytest.fixture
def recipe(tmp_path):
    """Queries are copies of photos of the index, which training photos are not."""
    rng = np.random.default_rng(0)
    for number in range(PHOTOS):
        cells = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        photo = Image.fromarray(cells).resize((112, 80), Image.Resampling.NEAREST)
        for name in (f"q{number}", f"i{number}", f"t{number}"):
            photo.save(tmp_path / f"{name}.png")
    names = [[f"{kind}{number}" for number in range(PHOTOS)] for kind in "qi"]
    gnd = [{"bbx": [], "easy": [n], "hard": [], "junk": []} for n in range(PHOTOS)]
    truth = {"qimlist": names[0], "imlist": names[1], "gnd": gnd}
    (tmp_path / "gnd_copies.pkl").write_bytes(pickle.dumps(truth, 2))
    lines = [f"t{number}.png,{number // 2},train" for number in range(PHOTOS)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,landmark,split", *lines, ""]))
    training = TuplesTraining(
        logdir=str(tmp_path / "run"),
        retrieval_ground_truth=str(tmp_path / "gnd_copies.pkl"),
        validation_words=16,
    )
    return TuplesData(photos=str(tmp_path / "labels.csv")), training


def test_copies_are_found_by_the_present_weights(recipe):
    network = build_how(MODEL, seed=1)
    validation = AsmkValidation(*recipe)
    found = validation(network)  # not all: a query's features count for five words each
    assert found["mAP"] > 0.8 and found["mP@1"] > 0.8
    layer = network.get_layer("reduced")
    layer.kernel.assign(np.zeros_like(layer.kernel))  # all features are equal
    assert validation(network)["mAP"] < 0.5


def test_the_command_takes_it_when_words_are_asked_for(recipe, monkeypatch):
    handed = []
    monkeypatch.setattr("dolg_tf.training.tuples.loop.train", lambda *given: handed.append(given))
    data, training = recipe
    train_command.train_how(MODEL, data, training)
    object.__setattr__(training, "validation_words", 0)
    train_command.train_how(MODEL, data, training)
    assert [type(given[3]) for given in handed] == [AsmkValidation, RetrievalValidation]
