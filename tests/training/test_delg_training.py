"""Training DELG's local branch beside the descriptor."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from tiny import CLASSES, MODEL, metrics, recipe

from dolg_tf.data.input.pipeline import TrainingInput, validation_dataset
from dolg_tf.modeling.delg import NAMES
from dolg_tf.modeling.dolg import intermediates, with_delg_local
from dolg_tf.modeling.model_dir import load_network, save_dolg
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.loop import train
from dolg_tf.training.trainer import LOSS, Trainer

DELG = dataclasses.replace(MODEL, fusion="global_only", delg_local=True)
_RNG = np.random.default_rng(0)
IMAGES = tf.constant(_RNG.random((4, 32, 32, 3)), tf.float32)
LABELS = tf.constant([0, 1, 2, 1])
COUNT = tf.constant([1.0, 1.0, 0.0, 1.0])  # the third photo could not be read


def _trainer(**changes):
    changes = {"batch_size": 4, "freeze_batch_norm": True, **changes}
    return Trainer(DELG, recipe("", **changes), CLASSES, 10, make_strategy())


def _log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _slow_sums(trainer):
    """Returns the sums of `DelgLosses`, photo by photo."""
    found = with_delg_local(trainer.network)(IMAGES, training=False)
    found = {name: np.asarray(value, np.float64) for name, value in found.items()}
    kernel, bias = (np.asarray(x, np.float64) for x in trainer.delg.classifier.weights)
    sums = np.zeros(3)
    for i, label in enumerate(LABELS.numpy()):
        if COUNT[i] == 0:
            continue
        pooled = [
            attention * cell / np.sqrt((cell**2).sum())
            for attention, cell in zip(
                found["attention"][i].reshape(-1),
                found["expanded"][i].reshape(-1, found["expanded"].shape[-1]),
                strict=True,
            )
        ]
        logits = np.mean(pooled, 0) @ kernel + bias
        error = np.mean((found["p4"][i] - found["expanded"][i]) ** 2)
        sums += [-_log_softmax(logits)[label], logits.argmax() == label, error]
    return sums


@pytest.fixture(scope="module")
def plain():
    return _trainer()


def test_validation_gives_the_sums_of_the_slow_formulas(plain):
    found = plain.validation_step((IMAGES, LABELS, COUNT)).numpy()
    assert found[0] == 3
    np.testing.assert_allclose(found[3:], _slow_sums(plain), rtol=1e-5)


def test_the_loss_is_the_descriptors_plus_one_and_ten(plain):
    cosines = plain.head(plain.network(IMAGES, training=False))
    logits = plain.head.logits(cosines, LABELS).numpy().astype(np.float64)
    margin = -_log_softmax(logits)[np.arange(4), LABELS.numpy()] @ COUNT.numpy()
    sums = _slow_sums(plain)
    found = plain.train_step([(IMAGES, LABELS, COUNT)])[LOSS]
    np.testing.assert_allclose(found, (margin + sums[0] + 10 * sums[2]) / 4, rtol=1e-5)


def test_pieces_and_recomputing_change_nothing():
    results, variables = [], []
    for changes in ({}, {"recompute": True}, {"accumulate": 2}):
        trainer = _trainer(**changes)
        number = changes.get("accumulate", 1)
        pieces = [tf.split(x, number) for x in (IMAGES, LABELS, COUNT)]
        results.append(trainer.train_step(list(zip(*pieces, strict=True))).numpy())
        variables.append([np.asarray(variable) for variable in trainer.variables])
    for result, values in zip(results[1:], variables[1:], strict=True):
        np.testing.assert_allclose(result, results[0], rtol=1e-4)
        for ours, theirs in zip(values, variables[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_run_judges_the_branch_and_continues_with_its_classifier(data, tmp_path):
    for steps in (2, 4):
        train(DELG, data, recipe(tmp_path / "run", max_steps=steps, ema_decay=0.5))
    train(DELG, data, recipe(tmp_path / "whole", max_steps=4, ema_decay=0.5))
    for name in NAMES:
        judged = metrics(tmp_path / "run", "validation", name)
        assert judged[4] == metrics(tmp_path / "whole", "validation", name)[4], name
    ((photos, _, counts),) = validation_dataset(data, 12)[0]
    assert counts.numpy().all()
    thresholds = {}
    for weights in ("raw", "ema"):
        network, config, provenance = load_network(tmp_path / "run", weights=weights)
        assert config.delg_local and network(IMAGES).shape == (4, 16)
        attention = with_delg_local(network)(photos, training=False)["attention"]
        thresholds[weights] = provenance["local_threshold"]
        np.testing.assert_allclose(thresholds[weights], np.median(attention), rtol=1e-4)
    assert thresholds["raw"] != thresholds["ema"]
    logged = metrics(tmp_path / "run", "validation", "local_threshold")
    assert set(logged) == {2, 4} and logged[4] == pytest.approx(thresholds["ema"])


def test_dolgs_own_branch_stores_its_threshold_too(data, tmp_path):
    alone = dataclasses.replace(data, validation_file_pattern="")
    train(MODEL, alone, recipe(tmp_path, max_steps=1))
    network, config, provenance = load_network(tmp_path)
    ((photos, _, _),) = TrainingInput(alone, 8, seed=0).dataset(0, 1)
    strengths = np.linalg.norm(intermediates(network)(photos)["local"], axis=-1)
    threshold = provenance["local_threshold"]
    np.testing.assert_allclose(threshold, np.median(strengths), rtol=1e-4)
    assert metrics(tmp_path, "train", "local_threshold")[1] == pytest.approx(threshold)
    save_dolg(network, config, tmp_path / "model", provenance)
    assert load_network(tmp_path / "model").provenance["local_threshold"] == threshold
