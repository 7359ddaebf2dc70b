"""The layers against naive NumPy, and each in `check_layer`."""

import keras
import numpy as np
import pytest
from check_layer import check_layer

from dolg_tf.modeling import layers


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


LAYERS = {
    "normalization": (
        # Given [0, 1] floats and never bfloat16: the network pins it to float32.
        lambda dtype: layers.ChannelNormalization(
            "bgr", (0.1, 0.2, 0.3), (1, 2, 3), dtype="float32"
        ),
        [_normal(2, 5, 4, 3)],
    ),
    "gem": (lambda dtype: layers.GeM(3.0, True, dtype="float32"), [_normal(2, 5, 4, 6)]),
    "multi_atrous": (
        lambda dtype: _float32_out(layers.MultiAtrous((1, 2, 9), dtype=dtype), dtype),
        [_normal(2, 5, 4, 6)],
    ),
    "wide_multi_atrous": (
        lambda dtype: _float32_out(layers.MultiAtrous((1, 2), 8, False, dtype=dtype), dtype),
        [_normal(2, 5, 4, 6)],
    ),
    "wide_attention": (
        lambda dtype: layers.SpatialAttention(channels=8, dtype=dtype),
        [_normal(2, 5, 4, 6)],
    ),
    "attention": (lambda dtype: layers.SpatialAttention(dtype=dtype), [_normal(2, 5, 4, 6)]),
    "no_attention": (
        lambda dtype: layers.SpatialAttention(False, dtype=dtype),
        [_normal(2, 5, 4, 6)],
    ),
    "fusion": (
        lambda dtype: layers.Fusion(dtype="float32"),
        [_normal(2, 5, 4, 6), _normal(2, 6)],
    ),
    "gem_fusion": (
        lambda dtype: layers.Fusion("hadamard", "learned", dtype="float32"),
        [_normal(2, 5, 4, 6), _normal(2, 6)],
    ),
}


def _float32_out(layer, dtype):
    """MultiAtrous returns the dtype of its policy, as the next layer expects."""
    assert layer.compute_dtype == ("bfloat16" if dtype == "mixed_bfloat16" else "float32")
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_serialises_trains_and_exports(name, tmp_path):
    make, inputs = LAYERS[name]
    check_layer(make, inputs, tmp_path)


def test_normalization_flips_channels_and_standardises():
    x = _normal(1, 2, 2, 3)
    layer = layers.ChannelNormalization("bgr", (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
    expected = (x[..., ::-1] - np.array([0.1, 0.2, 0.3])) / np.array([1.0, 2.0, 4.0])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5)


@pytest.mark.parametrize("p", [1.0, 3.0, 4.6])
def test_gem_is_the_generalised_mean(p):
    x = _normal(2, 4, 3, 5)
    expected = np.zeros((2, 5))
    for b in range(2):
        for c in range(5):
            values = [max(x[b, i, j, c], 1e-6) ** p for i in range(4) for j in range(3)]
            expected[b, c] = np.mean(values) ** (1 / p)
    np.testing.assert_allclose(layers.GeM(p)(x), expected, rtol=1e-4)


def test_l2_normalize_survives_a_zero_vector():
    import tensorflow as tf

    x = tf.constant([[3.0, 4.0], [0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layers.l2_normalize(x)
    np.testing.assert_allclose(y, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(tape.gradient(y, x)).all()


def test_attention_follows_the_paper():
    layer = layers.SpatialAttention()
    x = _normal(2, 3, 4, 6)
    layer(x)
    for i, variable in enumerate(layer.variables):
        variable.assign(
            np.abs(_normal(*variable.shape, seed=i))
            if "variance" in variable.path
            else _normal(*variable.shape, seed=i)
        )
    local, attention = (np.asarray(y) for y in layer(x))
    conv, norm, score = layer.conv, layer.norm, layer.score
    z = x @ np.asarray(conv.kernel)[0, 0] + np.asarray(conv.bias)
    z = (z - norm.moving_mean) / np.sqrt(np.asarray(norm.moving_variance) + 1e-5)
    z = z * np.asarray(norm.gamma) + np.asarray(norm.beta)
    logit = np.maximum(z, 0) @ np.asarray(score.kernel)[0, 0] + np.asarray(score.bias)
    expected = np.log1p(np.exp(logit))
    np.testing.assert_allclose(attention, expected, rtol=1e-4)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(local, expected * unit, rtol=1e-4, atol=1e-6)


def test_without_attention_the_features_pass_unweighted():
    layer = layers.SpatialAttention(use_attention=False)
    x = _normal(2, 3, 4, 6)
    local, attention = layer(x)
    expected = layer.norm(layer.conv(x), training=False)
    np.testing.assert_allclose(local, expected, rtol=1e-6)
    np.testing.assert_array_equal(attention, np.ones((2, 3, 4, 1)))


def _naive_orthogonal(f_local, f_global):
    """Equations 2 and 4 of the paper, one feature at a time."""
    out = np.zeros_like(f_local, dtype=np.float64)
    for b in range(f_local.shape[0]):
        g = f_global[b].astype(np.float64)
        for i in range(f_local.shape[1]):
            for j in range(f_local.shape[2]):
                f = f_local[b, i, j].astype(np.float64)
                out[b, i, j] = f - (f @ g) / np.linalg.norm(g) ** 2 * g
    return out


def test_fusion_pools_the_orthogonal_parts():
    f_local, f_global = _normal(2, 5, 4, 6), _normal(2, 6, seed=1)
    part = np.asarray(layers.Fusion()(f_local, f_global))
    expected = _naive_orthogonal(f_local, f_global).mean(axis=(1, 2))
    np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.sum(part * f_global, axis=1), 0.0, atol=1e-5)


@pytest.mark.parametrize("method", ["orthogonal", "concat", "hadamard"])
def test_the_spatial_path_is_the_pooled_one_before_pooling(method):
    f_local, f_global = _normal(2, 5, 4, 6), _normal(2, 6, seed=1)
    expected = {
        "orthogonal": _naive_orthogonal(f_local, f_global),
        "concat": f_local,
        "hadamard": f_local * f_global[:, None, None],
    }[method]
    spatial = np.asarray(layers.fuse(method, f_local, f_global))
    np.testing.assert_allclose(spatial, expected, rtol=1e-3, atol=1e-5)
    pooled = layers.Fusion(method)(f_local, f_global)
    np.testing.assert_allclose(spatial.mean(axis=(1, 2)), pooled, rtol=1e-4, atol=1e-6)
    cube = np.mean(np.maximum(spatial, 1e-6) ** 3, axis=(1, 2)) ** (1 / 3)
    for pooling, trained in (("gem", 0), ("learned", 1)):
        layer = layers.Fusion(method, pooling)
        np.testing.assert_allclose(layer(f_local, f_global), cube, rtol=1e-4)
        assert len(layer.trainable_variables) == trained


def test_a_zero_global_feature_explains_nothing():
    f_local = _normal(1, 3, 3, 4)
    part = np.asarray(layers.Fusion()(f_local, np.zeros((1, 4), np.float32)))
    np.testing.assert_allclose(part[0], f_local.mean(axis=(0, 1, 2)), rtol=1e-5, atol=1e-6)


def test_fusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="pooling is 'median'"):
        layers.Fusion(pooling="median")
    with pytest.raises(ValueError, match="method is 'sum'"):
        layers.Fusion("sum")
    with pytest.raises(ValueError, match="6 channels"):
        layers.Fusion()(_normal(1, 2, 2, 6), _normal(1, 5))


def test_average_pooling_is_no_gem():
    """GeM with exponent 1 would clip negative values."""
    x = _normal(2, 3, 4, 5)
    np.testing.assert_allclose(layers.pooling("average")(x), x.mean((1, 2)), rtol=1e-4, atol=1e-6)


def _reduced(layer, branches):
    weight, bias = (np.asarray(w) for w in layer.reduce.weights)
    return np.maximum(np.concatenate(branches, -1) @ weight[0, 0] + bias, 0)


def _plain_dilated(layer, x, filters):
    """Returns the dilated branches, computed by Keras' own convolution."""
    branches = []
    for conv, dilation in zip(layer.dilated, (1, 2), strict=True):
        keras_conv = keras.layers.Conv2D(filters, 3, padding="same", dilation_rate=dilation)
        keras_conv.build(x.shape)
        keras_conv.set_weights(conv.get_weights())
        branches.append(np.asarray(keras_conv(x)))
    return branches


def test_multi_atrous_is_its_branches_concatenated_and_reduced():
    layer = layers.MultiAtrous((1, 2))
    x = _normal(1, 4, 5, 6)
    layer(x)
    weight, bias = (np.asarray(w) for w in layer.pooled.weights)
    pooled = np.maximum(x.mean(axis=(1, 2), keepdims=True) @ weight[0, 0] + bias, 0)
    weight, bias = (np.asarray(w) for w in layer.point.weights)
    point = x @ weight[0, 0] + bias
    branches = [np.broadcast_to(pooled, point.shape), point, *_plain_dilated(layer, x, 3)]
    np.testing.assert_allclose(layer(x), _reduced(layer, branches), rtol=1e-4, atol=1e-5)


def test_without_context_multi_atrous_is_its_dilated_branches():
    layer = layers.MultiAtrous((1, 2), channels=8, context=False)
    x = _normal(1, 4, 5, 6)
    outputs = layer(x)
    expected = _reduced(layer, _plain_dilated(layer, x, 4))
    assert outputs.shape == (1, 4, 5, 8)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
