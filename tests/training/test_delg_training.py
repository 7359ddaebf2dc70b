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
from dolg_tf.stage.config import InputError
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
    kernel, bias = (np.asarray(x, np.float64) for x in trainer.local_losses.classifier.weights)
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


def _attending(weight, **changes):
    changes = {"batch_size": 4, "freeze_batch_norm": True, "optimizer": "sgd", **changes}
    training = recipe("", attention_loss=weight, weight_decay=0.0, momentum=0.0, **changes)
    return Trainer(MODEL, training, CLASSES, 10, make_strategy())


def _moved(trainer, pieces=((IMAGES, LABELS, COUNT),)):
    """Returns the result of a step, and how far it moved each variable."""
    before = {v.path: np.asarray(v) for v in trainer.variables}
    result = trainer.train_step(list(pieces)).numpy()
    return result, {v.path: np.asarray(v) - before[v.path] for v in trainer.variables}


def test_the_attention_loss_trains_the_local_branch_and_nothing_before_it():
    plain, attending = _attending(0.0), _attending(0.5)
    found = intermediates(plain.network)(IMAGES, training=False)["local"].numpy().astype(np.float64)
    kernel, bias = (np.asarray(x, np.float64) for x in attending.local_losses.classifier.weights)
    logits = found.mean((1, 2)) @ kernel + bias
    losses = -_log_softmax(logits)[np.arange(4), LABELS.numpy()] * COUNT.numpy()
    sums = attending.validation_step((IMAGES, LABELS, COUNT)).numpy()
    hits = ((logits.argmax(1) == LABELS.numpy()) * COUNT.numpy()).sum()
    np.testing.assert_allclose(sums[3:], [losses.sum(), hits], rtol=1e-5)
    (without, expected), (result, moved) = _moved(plain), _moved(attending)
    np.testing.assert_allclose(result[LOSS], without[LOSS] + 0.5 * losses.sum() / 4, rtol=1e-5)
    others = set(moved) - set(expected)
    assert others == {v.path for v in attending.local_losses.classifier.variables}
    reached = {"multi_atrous", "local"}
    for path in expected:
        difference = np.abs(moved[path] - expected[path]).max()
        if path.split("/")[0] in reached and "norm" not in path and path != "local/conv/bias":
            assert difference > 1e-6, path  # a bias before a batch norm has no gradient
        elif path.split("/")[0] not in reached:
            assert difference == 0, path
    # The gradient of the bias is known in closed form: softmax less the true class.
    softmax = np.exp(_log_softmax(logits)) - np.eye(CLASSES)[LABELS.numpy()]
    step = -0.02 * 0.5 * (softmax * COUNT.numpy()[:, None]).sum(0) / 4
    (path,) = (path for path in others if path.endswith("bias"))
    np.testing.assert_allclose(moved[path], step, rtol=1e-4)


def test_pieces_recomputing_and_half_precision_keep_the_attention_loss():
    _, whole = _moved(_attending(0.5))
    pieces = zip(*(tf.split(x, 2) for x in (IMAGES, LABELS, COUNT)), strict=True)
    for changes, given in (
        ({"accumulate": 2}, tuple(pieces)),
        ({"recompute": True}, ((IMAGES, LABELS, COUNT),)),
    ):
        _, moved = _moved(_attending(0.5, **changes), given)
        for path, step in whole.items():
            np.testing.assert_allclose(moved[path], step, atol=1e-5, err_msg=path)
    result, moved = _moved(_attending(0.5, precision="bfloat16"))
    assert np.isfinite(result).all() and np.abs(moved["local/score/kernel"]).max() > 0


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (DELG, "has this loss already"),
        (dataclasses.replace(MODEL, fusion="global_only"), "--fusion=global_only has no attention"),
        (dataclasses.replace(MODEL, self_attention=False), "--noself_attention has no attention"),
    ],
)
def test_an_attention_that_is_not_there_is_not_trained(model, named):
    with pytest.raises(InputError, match=f"--attention_loss=1.0: .*{named}; omit"):
        Trainer(model, recipe("", attention_loss=1.0), CLASSES, 10, make_strategy())


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
    train(MODEL, alone, recipe(tmp_path, max_steps=1, attention_loss=0.1))
    network, config, provenance = load_network(tmp_path)
    ((photos, _, _),) = TrainingInput(alone, 8, seed=0).dataset(0, 1)
    strengths = np.linalg.norm(intermediates(network)(photos)["local"], axis=-1)
    threshold = provenance["local_threshold"]
    np.testing.assert_allclose(threshold, np.median(strengths), rtol=1e-4)
    assert metrics(tmp_path, "train", "local_threshold")[1] == pytest.approx(threshold)
    save_dolg(network, config, tmp_path / "model", provenance)
    assert load_network(tmp_path / "model").provenance["local_threshold"] == threshold
