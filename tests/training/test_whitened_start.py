"""A last layer that starts as a whitening: its algebra, and its use in a run."""

import dataclasses
import logging

import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf
import tiny

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage.config import InputError
from dolg_tf.training import whitened_start
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.loop import train
from dolg_tf.training.run_log import check_run
from dolg_tf.training.trainer import Trainer
from dolg_tf.training.whitened_start import LandmarkMoments, start_whitened, whitening


@pytest.fixture
def rows():
    """Rows (90, 6) of 5 landmarks, with none of the last, and their labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=90)
    centres = rng.normal(size=(5, 6))
    return centres[labels] + rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6)), labels


def _moments(rows, labels):
    moments = LandmarkMoments(5, 6)
    for part in np.array_split(np.arange(len(rows)), 4):
        moments.add(rows[part], labels[part])
    return moments


def test_covariances_are_those_of_the_definition(rows):
    rows, labels = rows
    within, total = np.zeros((6, 6)), np.zeros((6, 6))
    for row, label in zip(rows, labels, strict=True):
        from_own = row - np.mean([r for r, c in zip(rows, labels, strict=True) if c == label], 0)
        from_all = row - np.mean(rows, axis=0)
        within += np.outer(from_own, from_own) / len(rows)
        total += np.outer(from_all, from_all) / len(rows)
    found = _moments(rows, labels).covariances()
    np.testing.assert_allclose(found[0], within, rtol=1e-10)
    np.testing.assert_allclose(found[1], total, rtol=1e-10)


@pytest.mark.parametrize("shrinkage", [1e-9, 0.3, 2.0])
def test_a_whitening_solves_the_generalised_eigenproblem(rows, shrinkage):
    moments = _moments(*rows)
    within, total = moments.covariances()
    even = within + shrinkage * np.trace(within) / 6 * np.eye(6)
    projection = whitening(moments, 4, shrinkage)
    np.testing.assert_allclose(projection.T @ even @ projection, np.eye(4), atol=1e-8)
    best = scipy.linalg.eigh(total, even, eigvals_only=True)[::-1][:4]
    np.testing.assert_allclose(projection.T @ total @ projection, np.diag(best), atol=1e-8)


def _trainer(tmp_path, model=tiny.MODEL, **changes):
    training = tiny.recipe(tmp_path / "run", whiten_shrinkage=0.3, **changes)
    return Trainer(model, training, tiny.CLASSES, 4, make_strategy())


@pytest.mark.parametrize("loss", ["arcface", "subcenter_arcface"])
def test_descriptors_start_centred_and_one_long_and_the_head_at_their_means(
    data, tmp_path, monkeypatch, loss
):
    monkeypatch.setattr(whitened_start, "_VIEWS", 1)
    trainer = _trainer(tmp_path, loss=loss)
    photos = TrainingInput(data, 8, 0)
    start_whitened(trainer, photos)
    width = trainer.network.get_layer("descriptor").input.shape[-1]
    descriptors, labels = [], []
    for images, label, _ in photos.dataset(0, width // 8):
        descriptors.append(np.asarray(trainer.network(images, training=False)))
        labels.append(np.asarray(label))
    descriptors, labels = np.concatenate(descriptors), np.concatenate(labels)
    np.testing.assert_allclose(descriptors.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose((descriptors**2).sum(axis=1).mean(), 1, rtol=1e-3)
    means = np.stack([descriptors[labels == label].mean(axis=0) for label in range(tiny.CLASSES)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    kernel = trainer.head.kernel.numpy()
    if loss == "arcface":
        np.testing.assert_allclose(kernel, means, atol=1e-3)
    else:
        kernel /= np.linalg.norm(kernel, axis=-1, keepdims=True)
        assert np.einsum("lsd,ld->ls", kernel, means).min() > 0.9
        assert np.abs(kernel[:, 0] - kernel[:, 1]).max() > 1e-3


def test_both_halves_of_a_fused_network_count_alike():
    rows = np.random.default_rng(0).normal(size=(7, 6)) * [100, 100, 100, 0.1, 0.1, 0.1]
    scaled = rows * whitened_start._even_halves(rows, 3)
    for half in (scaled[:, :3], scaled[:, 3:]):
        assert np.linalg.norm(half, axis=1).mean() == pytest.approx(1)


def test_what_cannot_be_whitened_is_refused(data, tmp_path):
    photos = TrainingInput(data, 8, 0)
    for change in ({"neck": "bn_prelu"}, {"fusion": "global_only", "descriptor_size": 0}):
        other = dataclasses.replace(tiny.MODEL, **change)
        with pytest.raises(InputError, match="omit --neck and --descriptor_size=0"):
            start_whitened(_trainer(tmp_path, other), photos)
    wide = dataclasses.replace(tiny.MODEL, fusion="global_only", descriptor_size=4096)
    with pytest.raises(InputError, match="give --descriptor_size="):
        start_whitened(_trainer(tmp_path, wide), photos)


def test_a_run_is_whitened_once_and_a_backbone_at_rate_0_stays(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(whitened_start, "_VIEWS", 1)
    caplog.set_level(logging.INFO)
    changes = {"whiten_shrinkage": 0.3, "backbone_lr": 0.0, "initial_lr": 1e-3}
    first = tiny.recipe(tmp_path / "run", **changes, max_steps=2)
    train(tiny.MODEL, data, first)
    before = load_network(first.logdir).network
    train(tiny.MODEL, data, dataclasses.replace(first, max_steps=4))
    after = load_network(first.logdir).network
    assert sum("whitening of" in message for message in caplog.messages) == 1
    ours, theirs = (network.get_layer("backbone").variables for network in (before, after))
    for variable, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)
    # Of another run, the backbone is taken, and the last layer starts anew.
    train(
        tiny.MODEL,
        data,
        tiny.recipe(tmp_path / "b", **changes, max_steps=1, init_from=first.logdir),
    )
    assert sum("whitening of" in message for message in caplog.messages) == 2
    kernels = [network.get_layer("descriptor").kernel.numpy() for network in (before, after)]
    assert 0 < np.abs(kernels[1] - kernels[0]).max() < 0.02
    # A backbone that was not trained has no place in the optimizer's state.
    with pytest.raises(InputError, match=r"backbone_lr=0\.0, not 0\.1"):
        check_run(tiny.MODEL, data, dataclasses.replace(first, backbone_lr=0.1), None)


@pytest.mark.parametrize(("shrinkage", "wanted"), [(0.3, 1.0), (0.0, 4.0)])
def test_the_moving_average_keeps_a_whitening_but_no_random_start(tmp_path, shrinkage, wanted):
    training = tiny.recipe(tmp_path / "run", whiten_shrinkage=shrinkage, ema_decay=0.75)
    trainer = Trainer(tiny.MODEL, training, tiny.CLASSES, 4, make_strategy())
    average = tf.Variable(0.0)
    trainer._move_average(average, tf.constant(4.0))  # of the first step
    assert float(average) == wanted
