"""The learning rate, and one step of each optimizer, against their formulas in NumPy."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import recipe

from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.optimizers import (
    CosineByEpoch,
    LossScale,
    WarmupCosine,
    clip_and_decay,
    make_optimizer,
    make_schedule,
)

RATE, DECAY = 0.02, 0.1


def _naive(step, peak, warmup, total, start=0.0):
    if step < warmup:
        return peak * (start + (1 - start) * (step + 1) / warmup)
    done = min(1.0, (step - warmup) / (total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_warmup_then_cosine_to_zero(start):
    schedule = WarmupCosine(0.05, 10, 100, start)
    for step in (0, 1, 9, 10, 11, 50, 99, 100, 120):
        np.testing.assert_allclose(schedule(step), _naive(step, 0.05, 10, 100, start), atol=1e-7)


def test_without_warmup_it_starts_at_the_peak():
    np.testing.assert_allclose(WarmupCosine(0.1, 0, 10)(0), 0.1)


def _official(step, peak, warmup_epochs, epochs, steps_per_epoch, factor):
    """The authors' get_epoch_lr, called with the number of the epoch."""
    epoch = step // steps_per_epoch
    rate = peak * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
    if epoch < warmup_epochs:
        alpha = epoch / warmup_epochs
        rate *= factor * (1.0 - alpha) + alpha
    return rate


def test_by_epoch_is_the_authors_schedule():
    schedule = CosineByEpoch(0.01, 5, 100, 7, 0.1)
    found = [float(schedule(step)) for step in range(700)]
    expected = [_official(step, 0.01, 5, 100, 7, 0.1) for step in range(700)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert len(set(found[:7])) == 1 and found[7] > found[6]


def test_flags_choose_the_schedule():
    base = {"logdir": "", "epochs": 10, "warmup_epochs": 2, "initial_lr": 0.4, "warmup_start": 0.5}
    cosine = make_schedule(TrainingConfig(**base), 5)
    np.testing.assert_allclose(cosine(0), _naive(0, 0.4, 10, 50, 0.5))
    by_epoch = make_schedule(TrainingConfig(**base, schedule="cosine_by_epoch"), 5)
    np.testing.assert_allclose(by_epoch(5), _official(5, 0.4, 2, 10, 5, 0.5), rtol=1e-6)
    # A few steps on one batch would never get past the warm-up.
    assert make_schedule(TrainingConfig(**base, overfit_batch=True), 5) == 0.4


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam"])
def test_two_steps_are_those_of_the_formula(optimizer, decay, decay_all):
    training = recipe(
        "",
        optimizer="adam" if optimizer == "adam" else "sgd",
        nesterov=optimizer == "nesterov",
        decay=decay,
        decay_all=decay_all,
        weight_decay=DECAY,
        clip_norm=1.0,
        epochs=10**6,  # so that the rate stays
    )
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=(2, 3)), dtype="float32", name=name)
        for name in ("kernel", "gamma")
    ]
    expected = [np.asarray(v, np.float64) for v in variables]
    optimize = make_optimizer(training, 10, variables)
    first, second = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))  # momenta of both variables
    for step in (1, 2):
        gradients = rng.normal(size=(2, 2, 3)).astype(np.float32) * 3
        norm = np.sqrt(np.sum(np.square(gradients)))
        clipped = gradients / max(norm, 1.0)
        for i, decayed in enumerate((True, decay_all)):
            gradient, w = clipped[i].astype(np.float64), expected[i]
            if decayed and decay == "coupled":
                gradient = gradient + DECAY * w
            if decayed and decay == "decoupled":
                w = w * (1 - DECAY * RATE)
            if optimizer == "adam":
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                mean, square = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
                w = w - RATE * mean / (np.sqrt(square) + 1e-7)
            else:
                first[i] = 0.9 * first[i] - RATE * gradient
                w = w + (0.9 * first[i] - RATE * gradient if optimizer == "nesterov" else first[i])
            expected[i] = w
        applied = clip_and_decay(list(tf.constant(gradients)), norm, variables, training)
        optimize.apply_gradients(zip(applied, variables, strict=True))
    for variable, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4, atol=1e-5)


def test_the_l2_term_waits_for_the_gradient():
    # Otherwise the terms of all variables would be computed before the forward pass, and stay in
    # memory until the end of the step.
    variable = keras.Variable(np.ones(3, np.float32), name="kernel")
    training = TrainingConfig(logdir="", weight_decay=DECAY)

    @tf.function(input_signature=[tf.TensorSpec([3])])
    def step(x):
        return clip_and_decay([tf.sin(x)], None, [variable], training)

    operations = step.get_concrete_function().graph.get_operations()
    (product,) = (op for op in operations if op.type == "Mul")
    waits_for = {op for x in product.inputs for op in (x.op, *x.op.control_inputs)}
    assert "Sin" in {op.type for op in (*waits_for, *product.control_inputs)}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_backbone_takes_its_share_of_the_rate(optimizer):
    """A variable with a share moves and decays as in a run with that learning rate."""
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 3)), rng.normal(size=(3, 2, 3)).astype(np.float32)
    found = {}
    for rate, share in ((RATE, 0.1), (RATE / 10, 1.0), (RATE, 0.0)):
        names = ("backbone_kernel", "kernel")
        variables = [keras.Variable(start, dtype="float32", name=name) for name in names]
        options = {"optimizer": optimizer, "decay": "decoupled", "decay_all": True}
        training = recipe(
            "", **options, weight_decay=DECAY, epochs=10**6, initial_lr=rate, backbone_lr=share
        )
        optimize = make_optimizer(training, 10, variables, variables[:1])
        for gradient in gradients:
            optimize.apply_gradients([(tf.constant(gradient), v) for v in variables])
        found[rate, share] = [np.asarray(variable) for variable in variables]
    np.testing.assert_allclose(found[RATE, 0.1][0], found[RATE / 10, 1.0][0], rtol=1e-5)
    np.testing.assert_array_equal(found[RATE, 0.0][0], start.astype(np.float32))
    assert np.abs(found[RATE, 0.1][1] - found[RATE, 0.1][0]).max() > 1e-3


def test_the_loss_scale_falls_at_once_and_rises_slowly():
    scale = LossScale()
    scale.update(tf.constant(False))
    assert float(scale.value) == 2.0**14
    scale.state()["good_steps"].assign(1997)
    for expected in (14, 14, 15, 15):  # after 2,000 good steps
        scale.update(tf.constant(True))
        assert float(scale.value) == 2.0**expected
