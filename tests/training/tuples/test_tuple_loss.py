"""Loss and whitening of HOW against numbers of its authors' code, and against slow sums."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.training.tuples.loss import contrastive_loss
from dolg_tf.training.tuples.whitening import Moments

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[2] / "golden" / "how_loss.npz"))
TUPLES = {"0": slice(0, 7), "1": slice(7, 14), "2": slice(14, 21)}


def _loss(columns, margin):
    descriptors = tf.constant(columns.T)
    with tf.GradientTape() as tape:
        tape.watch(descriptors)
        loss = contrastive_loss(descriptors, margin)
    return float(loss), tape.gradient(loss, descriptors).numpy().T


@pytest.mark.parametrize("margin", [0.7, 0.8, 1.1])
def test_losses_are_the_authors_and_add_up(margin):
    found = {name: _loss(GOLDEN["x"][:, part], margin) for name, part in TUPLES.items()}
    for name, (loss, _) in found.items():
        assert loss == pytest.approx(float(GOLDEN[f"margin{margin}/tuple_{name}/loss"]), abs=1e-5)
    total = sum(loss for loss, _ in found.values())
    assert total == pytest.approx(float(GOLDEN[f"margin{margin}/tuple_all/loss"]), abs=1e-5)
    if margin == 0.8:
        gradients = np.concatenate([gradient for _, gradient in found.values()], axis=1)
        assert np.abs(gradients - GOLDEN["margin0.8/tuple_all/gradient"]).max() < 1e-5


def test_a_tuple_with_its_query_as_positive_and_negative_has_a_finite_gradient():
    loss, gradient = _loss(np.ones((4, 3), np.float32) / 2, 0.8)
    assert loss == pytest.approx(0.5 * 0.8**2, abs=1e-5) and np.isfinite(gradient).all()


def test_the_whitening_is_the_authors_up_to_signs(standin):
    mix = np.linspace(0.3, 2, 32)
    rows = (np.abs(standin.value("whiten.x", (600, 32))) * mix).astype(np.float32)
    rows = rows @ standin.value("whiten.mix", (32, 32))
    moments = Moments(32)
    for part in np.split(rows, [100, 101, 350]):
        moments.add(part)
    kernel, bias = moments.whitening(8)
    expected, offsets = GOLDEN["whitening/weight"], GOLDEN["whitening/bias"]
    signs = np.sign((kernel.T * expected).sum(1))
    np.testing.assert_allclose(kernel.T * signs[:, None], expected, atol=1e-4)
    np.testing.assert_allclose(bias * signs, offsets, atol=1e-4)
    white = rows @ kernel + bias
    np.testing.assert_allclose(white.T @ white / len(rows), np.eye(8), atol=1e-6)
