"""Retrieval validation gives the scores of the real chain, and chooses the best checkpoint."""

import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.data.config import DataConfig
from dolg_tf.data.records import tfrecord
from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import load_network, save_dolg
from dolg_tf.pipelines import train as train_command
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.export import export
from dolg_tf.serving.graph import pyramid
from dolg_tf.stage.config import InputError
from dolg_tf.training import loop
from dolg_tf.training.config import TrainingConfig

ROOT = pathlib.Path(__file__).parents[2]
MODEL = DolgConfig(backbone="resnet17_small", dilations=(1,), descriptor_size=16)
QUERIES, INDEX, SIZE = 6, 18, 64


def _photo(path, number):
    """A photo of noise in large cells; three sizes, so that some share theirs."""
    rng = np.random.default_rng(number)
    width, height = ((90, 70), (60, 100), (50, 41))[number % 3]
    cells = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A ground truth with boxes beside its photos, one of them a PNG; what matches is drawn."""
    folder = tmp_path_factory.mktemp("photos")
    names = [f"photo_{i:02}" for i in range(QUERIES + INDEX)]
    for i, name in enumerate(names):
        _photo(folder / f"{name}.{'png' if i == 1 else 'jpg'}", i)
    rng = np.random.default_rng(0)
    gnd = []
    for _ in range(QUERIES):
        rows = rng.permutation(INDEX).tolist()
        easy, hard, junk = sorted(rows[:3]), sorted(rows[3:5]), sorted(rows[5:7])
        gnd.append({"bbx": [5.0, 8.0, 44.6, 39.2], "easy": easy, "hard": hard, "junk": junk})
    value = {"imlist": names[QUERIES:], "qimlist": names[:QUERIES], "gnd": gnd}
    path = folder / "gnd_drawn.pkl"
    path.write_bytes(pickle.dumps(value, protocol=2))
    return path


def _training(truth, **changes):
    values = {"logdir": "", "retrieval_ground_truth": str(truth), "retrieval_image_size": SIZE}
    return TrainingConfig(**{**values, **changes})


def _scores_of_the_chain(network, truth, folder) -> dict:
    """Export, extraction and evaluation, through their files."""
    save_dolg(network, MODEL, folder / "model", {})
    exported, sets = str(folder / "saved_model"), {}
    export(ExportConfig(model_dir=str(folder / "model"), output=exported, scales=(1.0,)))
    for subset in ("query", "index"):
        sets[subset] = str(folder / subset)
        extract(
            ExtractConfig(
                saved_model=exported,
                images=str(truth),
                subset=subset,
                max_side=SIZE,
                output=sets[subset],
            )
        )
    return evaluate(
        RevisitedConfig(
            ground_truth=str(truth),
            query_descriptors=sets["query"],
            index_descriptors=sets["index"],
            output=str(folder / "report.json"),
        )
    )


def test_scores_equal_those_of_the_real_chain(truth, tmp_path, monkeypatch):
    traces = []

    def counted(*arguments, original=pyramid.multi_scale):
        traces.append(1)
        return original(*arguments)

    monkeypatch.setattr(pyramid, "multi_scale", counted)
    network = build_dolg(MODEL, seed=1)
    retrieval = RetrievalValidation(_training(truth))
    found = retrieval(network)
    assert len(traces) == 1  # for photos of several sizes
    report = _scores_of_the_chain(network, truth, tmp_path)
    assert set(found) == {"mAP", "mP@1", "mAP_hard"}
    assert 0 < found["mAP"] < 1
    np.testing.assert_allclose(found["mAP"], report["medium"]["mAP"], atol=1e-4)
    np.testing.assert_allclose(found["mP@1"], report["medium"]["mP@1"], atol=1e-4)
    np.testing.assert_allclose(found["mAP_hard"], report["hard"]["mAP"], atol=1e-4)
    # It sees the weights as they are now, without tracing again.
    traces.clear()
    for weight in network.get_layer("descriptor").weights:
        weight.assign(np.ones_like(weight))
    assert retrieval(network)["mAP"] != found["mAP"] and not traces


def test_what_does_not_fit_is_named_at_once(truth, tmp_path):
    with pytest.raises(InputError, match=r"--retrieval_ground_truth=.*none\.pkl: no such"):
        RetrievalValidation(_training(tmp_path / "none.pkl"))
    with pytest.raises(InputError, match=r"--retrieval_image_root=.*nowhere: no such folder"):
        RetrievalValidation(_training(truth, retrieval_image_root=str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"6 of 6 query photos.*check --retrieval_image_root"):
        RetrievalValidation(_training(truth, retrieval_image_root=str(tmp_path)))
    value = pickle.loads(truth.read_bytes())
    for query in value["gnd"]:
        query["easy"] = query["hard"] = []
    path = tmp_path / "gnd_empty.pkl"
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(InputError, match="no query has a positive photo"):
        RetrievalValidation(_training(path, retrieval_image_root=str(truth.parent)))


def test_a_photo_that_cannot_be_decoded_is_named(truth, tmp_path):
    for path in truth.parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photo_03.jpg").write_bytes(b"no photo")
    retrieval = RetrievalValidation(_training(tmp_path / truth.name))
    with pytest.raises(
        InputError, match=r"unreadable photo .*photo_03\.jpg: corrupt: not a picture"
    ):
        retrieval(build_dolg(MODEL))


@pytest.mark.slow
def test_construction_leaves_tensorflow_untouched(truth):
    """Several workers must meet before TensorFlow runs an op: tested in a fresh process."""
    program = f"""
import tensorflow as tf
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.training.config import TrainingConfig
RetrievalValidation(TrainingConfig(logdir="", retrieval_ground_truth={str(truth)!r}))
tf.config.threading.set_intra_op_parallelism_threads(1)  # fails once an op has run
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_command_hands_it_to_the_trainer(truth, monkeypatch):
    handed = []
    monkeypatch.setattr("dolg_tf.training.loop.train", lambda *arguments: handed.append(arguments))
    monkeypatch.setattr(train_command, "check_inputs", lambda *_: None)
    for training in (_training(truth), _training("")):
        train_command.train(MODEL, None, training)
    assert isinstance(handed[0][3], RetrievalValidation)
    assert handed[1][3] is None


def test_the_best_checkpoint_is_that_of_the_highest_map(truth, tmp_path, monkeypatch):
    """Tests the loop alone: steps and the rest of a validation are not computed."""
    encoded = truth.parent.joinpath("photo_00.jpg").read_bytes()
    examples = [tfrecord.encode(encoded, f"{n}", 70, 90, n % 2) for n in range(8)]
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", examples)
    pattern = str(tmp_path / "train-*")
    data = DataConfig(
        train_file_pattern=pattern, validation_file_pattern=pattern, num_classes=2, image_size=32
    )
    training = _training(
        "", logdir=str(tmp_path / "run"), batch_size=8, epochs=3, warmup_epochs=0.0
    )
    accuracies, maps, judged = iter([0.9, 0.1, 0.2]), iter([0.2, 0.7, 0.5]), []

    def retrieval(network):
        judged.append(network)
        return {"mAP": next(maps)}

    result = tf.constant([1.0, 0.0, 8.0, 0.0, 1.0])
    monkeypatch.setattr(loop.Trainer, "train_step", lambda *_: result)
    monkeypatch.setattr(loop, "attention_pictures", lambda *_: None)
    monkeypatch.setattr(loop, "validate", lambda *_: {"loss": 1.0, "accuracy": next(accuracies)})
    loop.train(MODEL, data, training, retrieval)
    assert load_network(tmp_path / "run", "best").provenance["step"] == 2
    assert len(judged) == 3 and judged[0].output_shape == (None, 16)
    rows = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    found = [row["value"] for row in rows if (row["split"], row["name"]) == ("retrieval", "mAP")]
    assert found == [0.2, 0.7, 0.5]
