"""The step loop on a few tiny records: learning, stopping, resuming and refusing."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tiny import CLASSES, MODEL, metrics, recipe

from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.files.config_file import read_config
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage.config import InputError
from dolg_tf.training import loop
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.loop import train
from dolg_tf.training.run_log import check_run, write_run
from dolg_tf.training.start import initialize
from dolg_tf.training.trainer import HITS, LOSS, Trainer

ROOT = pathlib.Path(__file__).parents[2]


def _trainer(data, training, model=MODEL):
    return Trainer(model, training, data.num_classes, 10, make_strategy())


def test_a_run_learns_and_leaves_its_directory(data, tmp_path):
    train(MODEL, data, recipe(tmp_path, epochs=20, validate_every=40))
    loss = metrics(tmp_path)
    assert max(loss) == 80 and loss[80] < 0.3 * loss[2]
    assert metrics(tmp_path, "validation", "accuracy")[80] > 0.7
    left = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "flags.txt", "metrics.jsonl", "checkpoints", "best"} <= left
    network, config, provenance = load_network(tmp_path)
    assert config == MODEL and provenance["step"] == 80
    assert network(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 16)
    assert load_network(tmp_path, "best").provenance["step"] <= 80


def test_metrics_after_the_checkpoint_are_dropped_on_resuming(data, tmp_path):
    train(MODEL, data, recipe(tmp_path, max_steps=3))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "train", "name": "loss", "value": 99}\n{"step": 4, "sp')
    train(MODEL, data, recipe(tmp_path, max_steps=4))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    again = [
        r["value"] for r in lines if (r["step"], r["split"], r["name"]) == (4, "train", "loss")
    ]
    assert len(again) == 1 and again[0] != 99


def test_another_run_in_the_same_directory_is_refused(data, tmp_path):
    train(MODEL, data, recipe(tmp_path, max_steps=1))
    with pytest.raises(InputError, match=r"holds a run with --margin=0\.15, not 0\.3"):
        train(MODEL, data, recipe(tmp_path, margin=0.3))
    with pytest.raises(InputError, match="holds a run with --multi_atrous=True, not False"):
        train(dataclasses.replace(MODEL, multi_atrous=False), data, recipe(tmp_path))


def test_a_signal_while_validating_loses_nothing(data, tmp_path, monkeypatch):
    def interrupted(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0, "accuracy": 0.5}

    monkeypatch.setattr(loop, "validate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train(MODEL, data, recipe(tmp_path, validate_every=2, checkpoint_every=100))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert load_network(tmp_path).provenance["step"] == 2


def test_a_run_is_known_by_any_name_of_its_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(MODEL, data, recipe("run", max_steps=1))
    train(MODEL, data, recipe(tmp_path / "run" / ".", max_steps=2))
    assert max(metrics(tmp_path / "run")) == 2


def _batch(size=8):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.random((size, 32, 32, 3)), tf.float32)
    return images, tf.constant(rng.integers(0, CLASSES, size), tf.int32), tf.ones(size)


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_is_gradient_decay_clip_and_momentum(data, tmp_path, clip):
    """An SGD step against the formula: clip the gradient, add the L2 term, move by the rate."""
    training = recipe(tmp_path, weight_decay=0.01, clip_norm=clip, momentum=0.0)
    trainer = _trainer(data, training)
    batch = images, labels, _ = _batch()
    before = [np.asarray(v) for v in trainer.variables]
    with tf.GradientTape() as tape:
        logits = trainer.head.logits(trainer.head(trainer.network(images, training=True)), labels)
        loss = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
        )
    gradients = [np.asarray(g) for g in tape.gradient(loss, [v.value for v in trainer.variables])]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    factor = min(1.0, clip / norm) if clip else 1.0
    assert norm > 1.5  # so that clipping to 1 does something
    found = trainer.train_step([batch])[LOSS]
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    for variable, was, gradient in zip(trainer.variables, before, gradients, strict=True):
        decay = 0.01 * was if variable.path.endswith("kernel") else 0
        expected = was - 0.02 * (factor * gradient + decay)
        np.testing.assert_allclose(variable, expected, rtol=1e-3, atol=1e-5)


def test_accuracy_is_without_margin(data, tmp_path):
    """With a margin of 3 the target's logit is never the largest; its cosine still is."""
    trainer = _trainer(data, recipe(tmp_path, margin=3.0))
    batch = images, labels, _ = _batch()
    cosines = trainer.head(trainer.network(images, training=True))
    hits = trainer.train_step([batch])[HITS]
    expected = np.sum(np.argmax(cosines, axis=1) == labels.numpy())
    assert expected > 0
    assert hits == expected


def test_a_loss_that_is_not_finite_stops_the_run(data, tmp_path):
    with pytest.raises(FloatingPointError, match=r"is nan at step 2.*Lower --initial_lr"):
        train(MODEL, data, recipe(tmp_path, initial_lr=1e30, log_every=5))
    found = json.loads((tmp_path / "bad_step_2.json").read_text())
    assert found["step"] == 2 and len(found["ids"]) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_file_pattern": "nowhere/train-*"}, "dolg records"),
        ({"num_classes": 3}, "label 3, but --num_classes=3"),
    ],
)
def test_records_that_do_not_fit_are_named(data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(MODEL, dataclasses.replace(data, **changes), recipe(tmp_path))


def test_weights_that_are_not_there_are_named(data, tmp_path):
    training = recipe(tmp_path, backbone_weights=str(tmp_path / "none.weights.h5"))
    with pytest.raises(InputError, match="no such file"):
        train(MODEL, data, training)
    with pytest.raises(InputError, match="'none' for random weights"):
        train(MODEL, data, recipe(tmp_path, backbone_weights="resnet_51"))


def test_a_local_backbone_file_is_taken(data, tmp_path):
    source = build_dolg(MODEL, seed=9).get_layer("backbone")
    source.save_weights(tmp_path / "b.weights.h5")
    training = recipe(tmp_path / "run", backbone_weights=str(tmp_path / "b.weights.h5"))
    trainer = _trainer(data, training)
    initialize(trainer, None, None)
    for ours, theirs in zip(
        trainer.network.get_layer("backbone").weights, source.weights, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_sigterm_saves_and_the_same_command_continues(data, tmp_path):
    """The real command, stopped from outside."""
    flags = [
        "train.py",
        f"--train_file_pattern={data.train_file_pattern}",
        f"--num_classes={CLASSES}",
        "--image_size=32",
        f"--logdir={tmp_path}",
        "--backbone=resnet17_small",
        "--dilations=1",
        "--batch_size=8",
        "--log_every=1",
    ]
    run = subprocess.Popen(
        [sys.executable, *flags, "--epochs=1000"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    for line in run.stderr:
        if line.startswith("step 3/"):
            break
    run.send_signal(signal.SIGTERM)
    rest = run.stderr.read()
    assert run.wait(60) == 128 + signal.SIGTERM
    assert "the same command continues" in rest
    saved = tf.train.latest_checkpoint(str(tmp_path / "checkpoints"))
    step = int(saved.rsplit("-", 1)[1])
    assert step >= 3
    again = subprocess.run(
        [sys.executable, *flags, "--epochs=1000", f"--max_steps={step + 1}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"at step {step} of {step + 1}" in again.stderr


def test_the_number_of_classes_is_that_of_the_records(data, tmp_path):
    shutil.copytree(pathlib.Path(data.train_file_pattern).parent, tmp_path / "records")
    here = dataclasses.replace(data, train_file_pattern=str(tmp_path / "records" / "train-*"))
    unknown, logdir = dataclasses.replace(here, num_classes=0), tmp_path / "run"
    with pytest.raises(InputError, match=r"no relabeling.csv beside .*give --num_classes"):
        train(MODEL, unknown, recipe(logdir))
    rows = "".join(f"{label},{label}\n" for label in range(CLASSES))
    (tmp_path / "records" / "relabeling.csv").write_text(f"new_label,old_label\n{rows}")
    with pytest.raises(InputError, match=f"--num_classes=3, .* lists {CLASSES} landmarks"):
        train(MODEL, dataclasses.replace(here, num_classes=3), recipe(logdir))
    assert not (logdir / "config.json").exists()
    train(MODEL, unknown, recipe(logdir, max_steps=1))
    assert read_config(logdir)[1]["data"]["num_classes"] == CLASSES


def test_the_written_flags_go_on_from_the_latest_checkpoint(data, tmp_path):
    write_run(MODEL, data, recipe(tmp_path, restore="previous"), None)
    assert "--restore=latest\n" in (tmp_path / "flags.txt").read_text()


def test_a_run_may_be_mended_but_keeps_its_landmarks(data, tmp_path, caplog):
    write_run(MODEL, data, recipe(tmp_path), "a")
    check_run(MODEL, data, recipe(tmp_path, margin=0.4), "b")  # no checkpoint yet: no run
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint").touch()
    skipping = dataclasses.replace(data, skip_bad_records=True)
    check_run(MODEL, skipping, recipe(tmp_path, accumulate=2), "a")
    assert "--skip_bad_records was False and is True from now on" in caplog.text
    assert "--accumulate was 1 and is 2 from now on" in caplog.text
    with pytest.raises(InputError, match="was trained on other landmarks"):
        check_run(MODEL, data, recipe(tmp_path), "b")
