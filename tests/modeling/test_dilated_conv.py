"""The fast dilated convolution against Keras' own: values and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling import dilated_conv
from dolg_tf.modeling.dilated_conv import DilatedConv2D


def _gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(tf.sin(y))
    return [y, *tape.gradient(loss, [x, *(v.value for v in layer.trainable_variables)])]


# 9 is beyond the map: all but the middle tap see padding alone.
@pytest.mark.parametrize("dilation", [1, 2, (3, 1), 9])
@pytest.mark.parametrize("kernel", [3, (1, 5)])
def test_values_and_gradients_equal_keras(dilation, kernel):
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 7, 6, 4)), tf.float32)
    ours = DilatedConv2D(5, kernel, dilation_rate=dilation, activation="relu")
    theirs = keras.layers.Conv2D(
        5, kernel, padding="same", dilation_rate=dilation, activation="relu"
    )
    ours.build(x.shape)
    theirs.build(x.shape)
    ours.bias.assign(np.linspace(-1, 1, 5))
    theirs.set_weights(ours.get_weights())
    for mine, other in zip(_gradients(ours, x), _gradients(theirs, x), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-5)


def test_it_takes_the_fast_path(monkeypatch):
    """Keras' path goes through SpaceToBatch; ours must not, forward or backward."""
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    layer = DilatedConv2D(5, 3, dilation_rate=2)
    layer.build((None, None, None, 4))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4])])
    def gradients(x):
        return _gradients(layer, x)

    graph = gradients.get_concrete_function().graph
    kinds = {op.type for op in graph.get_operations()}
    assert "Conv2D" in kinds
    assert not kinds & {"SpaceToBatchND", "Conv2DBackpropFilter", "Conv2DBackpropInput"}


def test_the_plain_native_path_agrees(monkeypatch):
    """The path of a machine with a GPU; its forward pass works everywhere."""
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 7, 6, 4)), tf.float32)
    layer = DilatedConv2D(5, 3, dilation_rate=2)
    expected = layer(x)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a GPU"])
    monkeypatch.setattr(dilated_conv, "_native_with_cpu_gradient", None)  # would fail if called
    np.testing.assert_allclose(layer(x), expected, rtol=1e-6)


@pytest.mark.parametrize("arguments", [{"padding": "valid"}, {"strides": 2}, {"kernel_size": 2}])
def test_what_it_cannot_do_is_refused(arguments):
    with pytest.raises(ValueError, match="only padding 'same'"):
        DilatedConv2D(**{"filters": 4, "kernel_size": 3, **arguments})
