"""The fused batch norm computes what Keras' own does, and every network is trained with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling.batch_norm import BatchNormalization
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg


def _trained_once(layer, x, upstream):
    """Returns output, gradients and moving statistics after one step."""
    layer.build(x.shape)
    rng = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        sources = [x, *(variable.value for variable in layer.trainable_variables)]
        return y, *tape.gradient(y, sources, tf.cast(upstream, y.dtype))

    found = [np.asarray(value, np.float64) for value in step(x)]
    return [*found, *(variable.numpy() for variable in layer.non_trainable_variables)]


def _oracle(x, upstream, epsilon, momentum):
    """The same in float64 NumPy; Ioffe and Szegedy 2015, algorithm 1 and section 3."""
    x, upstream = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    rng = np.random.default_rng(1)
    gamma, beta, moving_mean, moving_variance = rng.uniform(0.5, 1.5, (4, x.shape[-1]))
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    deviation = np.sqrt(variance + epsilon)
    unit = (x - mean) / deviation
    scaled = upstream * gamma
    by_input = scaled - scaled.mean((0, 1, 2)) - unit * (scaled * unit).mean((0, 1, 2))
    return [
        gamma * unit + beta,
        by_input / deviation,
        (upstream * unit).sum((0, 1, 2)),
        upstream.sum((0, 1, 2)),
        momentum * moving_mean + (1 - momentum) * mean,
        momentum * moving_variance + (1 - momentum) * variance,
    ]


@pytest.mark.parametrize("shape", [(2, 5, 3, 8), (1, 1, 2, 4)])
def test_a_training_step_is_that_of_the_formula_and_of_keras(shape):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(1.0, 2.0, shape), tf.float32)
    upstream = tf.constant(rng.normal(size=shape), tf.float32)
    options = {"epsilon": 1e-3, "momentum": 0.9}
    wanted = _oracle(x, upstream, **options)
    ours = _trained_once(BatchNormalization(**options), x, upstream)
    theirs = _trained_once(keras.layers.BatchNormalization(**options), x, upstream)
    for found, slow, keras_own in zip(ours, wanted, theirs, strict=True):
        np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found, keras_own, rtol=1e-4, atol=1e-5)


def test_bfloat16_maps_keep_float32_statistics():
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(10.0, 1.0, (2, 8, 8, 4)), tf.bfloat16)
    upstream = rng.normal(size=x.shape)
    found = _trained_once(BatchNormalization(dtype="mixed_bfloat16", epsilon=1e-3), x, upstream)
    wanted = _oracle(np.asarray(x, np.float64), upstream, 1e-3, 0.99)
    np.testing.assert_allclose(found[0], wanted[0], atol=0.03)
    for statistic, slow in zip(found[-2:], wanted[-2:], strict=True):
        assert statistic.dtype == np.float32
        np.testing.assert_allclose(statistic, slow, rtol=1e-5)


@pytest.mark.parametrize("state", ["inference", "frozen", "one vector a photo"])
def test_what_the_kernel_is_not_for_is_keras_own(state):
    rng = np.random.default_rng(0)
    shape = (6, 8) if state == "one vector a photo" else (2, 3, 3, 8)
    x = rng.normal(1.0, 2.0, shape).astype(np.float32)
    found = []
    for kind in (BatchNormalization, keras.layers.BatchNormalization):
        layer = kind()
        layer.build(shape)
        layer.trainable = state != "frozen"
        y = layer(x, training=state != "inference")
        found.append([y, *layer.variables])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "config",
    [
        DolgConfig(backbone="resnet17_small", dilations=(1, 2)),
        DolgConfig(backbone="efficientnet_lite0", global_layer="conv", neck="bn_prelu"),
    ],
)
def test_every_batch_norm_of_maps_is_the_fast_one(config):
    network = build_dolg(config, seed=0)
    norms = [
        layer
        for layer in network._flatten_layers(include_self=False, recursive=True)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    slow = {layer.name for layer in norms if type(layer) is not BatchNormalization}
    assert len(norms) > 10 and slow <= {"neck_norm"}
    assert BatchNormalization.from_config(norms[0].get_config()).momentum == norms[0].momentum
