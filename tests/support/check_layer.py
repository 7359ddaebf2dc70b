"""The check that every layer must pass."""

import keras
import numpy as np
import tensorflow as tf


def _flat(outputs) -> list:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


def check_layer(make, inputs: list[np.ndarray], path) -> None:
    """Checks serialisation, symbolic and eager calls, a train step, bfloat16 and export.

    Args:
      make: function of a dtype policy to a new layer.
      inputs: positional float32 arguments of its call, with a batch axis.
      path: an empty folder.
    """
    layer = make("float32")
    eager = [np.asarray(x) for x in _flat(layer(*inputs))]
    again = type(layer).from_config(layer.get_config())
    again(*inputs)
    again.set_weights(layer.get_weights())
    for ours, theirs in zip(eager, _flat(again(*inputs)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)

    # Unknown batch and map sizes, as the network has them.
    symbols = [keras.Input((*[None] * (x.ndim - 2), x.shape[-1])) for x in inputs]
    model = keras.Model(symbols, layer(*symbols))
    outputs = _flat(model(list(inputs)))
    for ours, theirs, declared in zip(eager, outputs, _flat(model.output), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert len(declared.shape) == ours.ndim and declared.shape[-1] == ours.shape[-1]
        assert declared.dtype == "float32"

    _check_train_step(layer, inputs)
    _check_mixed_precision(make, inputs, eager)
    _check_export(model, inputs, path)


def _check_train_step(layer, inputs) -> None:
    tensors = [tf.constant(x) for x in inputs]

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            loss = sum(tf.reduce_mean(tf.sin(x)) for x in _flat(layer(*tensors)))
        watched = [*tensors, *(v.value for v in layer.trainable_variables)]
        return tape.gradient(loss, watched)

    for gradient in gradients():
        assert gradient is not None
        assert np.isfinite(np.asarray(gradient)).all()


def _check_mixed_precision(make, inputs, eager) -> None:
    layer = make("mixed_bfloat16")
    outputs = _flat(layer(*(tf.cast(x, tf.bfloat16) for x in inputs)))
    assert all(variable.dtype == "float32" for variable in layer.variables)
    for ours, theirs in zip(outputs, eager, strict=True):
        assert np.isfinite(np.asarray(ours, np.float32)).all()
        assert tuple(ours.shape) == theirs.shape


def _check_export(model, inputs, path) -> None:
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    specs = [tf.TensorSpec([None] * (x.ndim - 1) + [x.shape[-1]], tf.float32) for x in inputs]
    module.call = tf.function(lambda *args: _flat(model(list(args))), input_signature=specs)
    tf.saved_model.save(module, str(path))
    loaded = tf.saved_model.load(str(path))
    expected = _flat(model(list(inputs)))
    for ours, theirs in zip(loaded.call(*map(tf.constant, inputs)), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
