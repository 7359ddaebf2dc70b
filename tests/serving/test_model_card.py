"""The model card: its contents, and nothing in it that is not known."""

import importlib
import json
import shutil

import pytest
from huggingface_hub import ModelCard

from dolg_tf.modeling import model_dir as model_dir_module
from dolg_tf.modeling.model_dir import weights_hash
from dolg_tf.modeling.summary import summarize
from dolg_tf.serving import model_card as cards
from dolg_tf.serving.config import MODES
from dolg_tf.serving.model_card import (
    ModelCardConfig,
    Words,
    model_card,
    read_report,
    write_model_card,
)
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesTraining

RUN = {
    "data": {"train_file_pattern": "/home/me/gldv2/train-*", "num_classes": 81313, "image_size": 9},
    "training": {
        "init_from": "",
        "backbone_weights": "/home/me/weights/r50.weights.h5",
        "batch_size": 7,
        "seed": 3,
        "loss": "arcface",
        "margin": 0.15,
        "scale": 30.0,
        "optimizer": "sgd",
        "initial_lr": 0.05,
    },
}

WORDS = Words(use="", after_scores="Measured with the SavedModel, not with this file.")


@pytest.fixture(scope="module")
def summary(network, dolg_config):
    return summarize(network, dolg_config, {"source": "test"}, 64)


@pytest.fixture(scope="module")
def about(network, dolg_config):
    return {
        "preprocessing": {"channel_order": "bgr", "mean": (0.25, 0.5, 0.75), "std": (1, 2, 3)},
        "weights_sha256": weights_hash(network, dolg_config),
        "provenance": {"source": "test", "step": 1234},
    }


@pytest.fixture
def report(about):
    row = {"mAP": 0.5, "mP@1": 0.25, "mP@5": 1.0, "mP@10": 0.125, "AP": [0.5]}
    return {
        "easy": {**row, "mAP_interval": [0.4321, 0.6]},
        "medium": {**row, "mAP": 0.375, "mAP_interval": None},
        "hard": dict.fromkeys((*row, "mAP_interval")),
        "protocol": {"ground_truth": "roxford5k", "model_hash": about["weights_sha256"]},
    }


def test_without_report_nothing_is_measured(about, summary):
    card = ModelCard(model_card("m.onnx", about, WORDS, summary))
    assert "## Scores\n\nNot measured." in card.text and "mAP" not in card.text
    assert card.data.eval_results is None
    assert card.data.license == "unknown" and "No licence of the weights" in card.text


def test_it_tells_the_network_and_what_is_inside(about, summary):
    text = model_card("m.onnx", {**about, "scales": [0.5, 1.0]}, WORDS, summary)
    assert "- backbone resnet17_small" in text and "one descriptor of 16 numbers" in text
    assert f"| all | {summary['parts']['all']['parameters']:,} |" in text
    assert "channels to BGR" in text and "mean [0.25, 0.5, 0.75], std [1, 2, 3]" in text
    assert "- scales: 0.5, 1.0" in text and about["weights_sha256"] in text


def test_scores_stand_in_it_with_their_protocol(about, summary, report):
    card = ModelCard(model_card("m.onnx", about, WORDS, summary, None, report))
    assert "| easy | 50.00 | 25.00 | 100.00 | 12.50 | 43.21-60.00 |" in card.text
    assert "| medium | 37.50 | 25.00 | 100.00 | 12.50 | - |" in card.text
    assert "| hard | - | - | - | - | - |" in card.text
    assert '- ground_truth: "roxford5k"' in card.text and "not with this file" in card.text
    found = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["easy", "mAP"] == 0.5 and found["medium", "mAP"] == 0.375
    assert not [level for level, _ in found if level == "hard"]
    assert "not with this file" not in model_card("m", about, Words(use=""), summary, None, report)


def test_scores_of_other_weights_are_refused(about, summary, report):
    report["protocol"]["model_hash"] = "f" * 64
    with pytest.raises(InputError, match="--report is about model ffff"):
        model_card("m.onnx", about, WORDS, summary, None, report)
    report["protocol"]["model_hash"] = None  # descriptors of an .npy name no model
    model_card("m.onnx", about, WORDS, summary, None, report)


def test_a_run_tells_its_data_without_the_trainers_folders(about, summary):
    text = model_card("m.onnx", about, WORDS, summary, RUN)
    assert "- records: `gldv2/train-*`; landmarks: 81,313" in text
    assert "batches of 7, 1234 steps, seed 3" in text
    assert "- started from: weights/r50.weights.h5" in text and "/home" not in text
    assert "Not trained by dolg_tf; the weights come from: test" in model_card(
        "m", about, WORDS, summary
    )


def test_a_run_of_tuples_tells_its_data(about, summary):
    run = {
        "data": {"photos": "/home/me/photos/labels.csv", "image_root": "", "image_size": 640},
        "training": configs.to_dict(TuplesTraining(logdir="runs/how", tuples=3, seed=4)),
    }
    text = model_card("m", about, WORDS, summary, run)
    assert "- photos: `photos/labels.csv`, at most 640 pixels wide and high" in text
    assert "5 mined negatives, 3 a step, 1234 steps, seed 4" in text
    assert "- started from: random weights" in text and "/home" not in text


def _words(mode: str) -> Words:
    if mode == "model":
        return cards._OF_MODEL_DIR
    for package in MODES[mode].packages:
        pytest.importorskip(package)
    return importlib.import_module(f"dolg_tf.serving.modes.{mode}").MODE.words


@pytest.mark.parametrize("mode", [*MODES, "model"])
def test_every_kind_of_export_has_code_that_compiles(about, summary, mode):
    words = _words(mode)
    text = model_card("the_name", {**about, "scales": [0.5]}, words, summary)
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, mode, "exec")
    assert "the_name" in code and not [word for word in ("NAME", "SCALES") if word in code]
    assert ("[0.5]" in code) == ("SCALES" in words.use)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"trained": {}}', '{"easy": 1, "medium": 1, "hard": 1, "protocol": 1}']
)
def test_another_file_is_no_report(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"is not a report\.json of `dolg evaluate revisited`"):
        read_report(path)


def test_a_report_holds_fractions(tmp_path, report):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    assert read_report(path) == report and read_report("") is None
    report["easy"]["mAP"] = 50.0
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match=r"is not a report\.json"):
        read_report(path)
    with pytest.raises(InputError, match="no such file"):
        read_report(tmp_path / "none.json")


def test_a_model_directory_gets_its_card(model_dir, network, dolg_config, tmp_path, monkeypatch):
    loaded = (network, dolg_config, {"source": "test"})  # building it again takes seconds
    monkeypatch.setattr(model_dir_module, "load_network", lambda *_: loaded)
    copy = shutil.copytree(model_dir, tmp_path / "mine")
    card = write_model_card(ModelCardConfig(model_dir=str(copy)))
    assert card == copy / "README.md"
    assert ModelCard.load(card).data.model_name == "mine"
    with pytest.raises(InputError, match="--overwrite"):
        write_model_card(ModelCardConfig(model_dir=str(copy)))
