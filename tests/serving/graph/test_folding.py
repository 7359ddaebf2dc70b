"""The folded network answers as the network that it was made from."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.serving.graph import folding
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.saved_model import write_signatures

SMALL = {"backbone": "resnet17_small", "descriptor_size": 16}
VARIANTS = {
    "dolg": {"dilations": (1, 2, 18)},
    "one dilation, no context": {"dilations": (3,), "multi_atrous_context": False},
    "narrow, no attention": {"dilations": (2,), "local_channels": 24, "self_attention": False},
    "no multi-atrous, gem of the orthogonal parts": {
        "multi_atrous": False,
        "fused_pooling": "gem",
        "gem_p": 2.5,
    },
    "two local branches, concatenated, learned pooling": {
        "local_source": "p4+p5",
        "fusion": "concat",
        "dilations": (1, 2),
        "fused_pooling": "learned",
    },
    "products, from stride 8, average": {
        "local_source": "p3",
        "fusion": "hadamard",
        "dilations": (1, 3),
        "global_pooling": "average",
    },
    "from stride 32": {"local_source": "p5", "multi_atrous": False},
    "global only, convolution, batch norm and PReLU": {
        "fusion": "global_only",
        "global_layer": "conv",
        "neck": "bn_prelu",
    },
    "no last layer": {"dilations": (1,), "descriptor_size": 0},
}
BACKBONES = {
    "resnet18": {"backbone": "resnet18"},
    "resnet50": {},
    "efficientnet_b0": {"backbone": "efficientnet_b0", "stride32": "top_conv"},
    "efficientnet_lite0": {
        "backbone": "efficientnet_lite0",
        "local_channels": 256,
        "global_layer": "conv",
        "neck": "bn_prelu",
    },
}
SIZES = ((2, 97, 130), (1, 10, 10), (1, 33, 200))


def build(dtype=None, **options) -> keras.Model:
    """Returns a network whose batch norms and biases are far from their initial values."""
    network = build_dolg(DolgConfig(**options), dtype, seed=1)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        kind = variable.path.split("/")[-1]
        if kind in ("moving_mean", "beta", "bias"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
        elif kind in ("moving_variance", "gamma"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return network


def photos(*shape) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).random((*shape, 3), np.float32))


def check(options: dict, sizes=SIZES) -> None:
    network = build(**options)
    folded = FoldedNetwork(network)
    assert folded.output_shape == network.output_shape
    for size in sizes:
        expected = network(photos(*size)).numpy()
        found = folded(photos(*size)).numpy()
        assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max(), size


@pytest.mark.parametrize("name", VARIANTS)
def test_the_descriptor_is_that_of_the_network(name):
    check({**SMALL, **VARIANTS[name]})


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_the_descriptor_is_that_of_the_network_for_other_backbones(name):
    check(BACKBONES[name])


def test_the_maps_are_those_of_the_network():
    network = build(**SMALL, dilations=(1, 2))
    expected = intermediates(network)(photos(2, 40, 70))
    found = FoldedNetwork(network).intermediates(photos(2, 40, 70))
    assert set(found) == {"descriptor", "global", "local", "attention"}
    for name, array in found.items():
        assert array.shape == expected[name].shape
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(array, expected[name], atol=1e-5 * scale, rtol=0)


def test_outer_taps_are_the_dilated_convolution_without_its_middle():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 4, 5))
    kernel[1, 1] = 0
    for size in ((1, 1), (3, 8), (7, 7), (13, 20)):
        x = rng.normal(size=(2, *size, 4))
        for d in (1, 4, 7, 30):
            expected = np.zeros((2, *size, 5))
            padded = np.pad(x, [(0, 0), (d, d), (d, d), (0, 0)])
            for i in range(3):
                for j in range(3):
                    part = padded[:, i * d : i * d + size[0], j * d : j * d + size[1]]
                    expected += part @ kernel[i, j]
            found = folding._outer_taps(tf.constant(x), kernel, d)
            np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_network_and_its_folded_form_share_nothing():
    network = build(**SMALL, fusion="global_only")
    before = [variable.numpy() for variable in network.variables]
    folded = FoldedNetwork(network)
    expected = folded(photos(1, 40, 40)).numpy()
    for variable, array in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), array)
        variable.assign(np.zeros_like(array))
    np.testing.assert_array_equal(folded(photos(1, 40, 40)), expected)


def test_graphs_that_call_it_hold_its_weights_once(tmp_path, monkeypatch):
    monkeypatch.setattr(folding, "_SMALL", 4096)
    network = build(**SMALL, fusion="global_only")
    folded = FoldedNetwork(network)
    spec = tf.TensorSpec([None, None, None, 3], tf.float32)
    signatures = {
        "once": tf.function(lambda x: {"y": folded(x)}, input_signature=[spec], autograph=False),
        "twice": tf.function(
            lambda x: {"y": folded(x) + folded(x[:, ::-1])}, input_signature=[spec], autograph=False
        ),
    }
    write_signatures(signatures, tmp_path)
    needed = sum(variable.numpy().nbytes for variable in network.variables)
    stored = sum(file.stat().st_size for file in (tmp_path / "variables").iterdir())
    assert 0.9 * needed < stored < needed + 50_000
    # Loaders copy what is in the graph some ten times.
    assert (tmp_path / "saved_model.pb").stat().st_size < 0.1 * needed + 500_000


@pytest.mark.slow
def test_bfloat16_stays_close():
    network = build(**SMALL, dilations=(1, 2))
    half = build("mixed_bfloat16", **SMALL, dilations=(1, 2))
    rows = network(photos(2, 97, 130)).numpy(), FoldedNetwork(half)(photos(2, 97, 130)).numpy()
    unit = [row / np.linalg.norm(row, axis=-1, keepdims=True) for row in rows]
    assert rows[1].dtype == np.float32
    assert (unit[0] * unit[1]).sum(-1).min() > 0.999


def test_a_layer_that_cannot_be_folded_is_named():
    image = keras.Input((None, None, 3))
    model = keras.Model(image, [keras.layers.GroupNormalization(3, name="odd")(image)])
    with pytest.raises(NotImplementedError, match="odd"):
        folding._backbone(model, photos(1, 8, 8))


def test_batch_norm_whose_convolution_is_read_elsewhere_stays_apart():
    image = keras.Input((None, None, 3))
    convolved = keras.layers.Conv2D(4, 3, padding="same")(image)
    norm = keras.layers.BatchNormalization()
    model = keras.Model(image, [convolved, norm(convolved)])
    norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    for found, expected in zip(
        folding._backbone(model, photos(1, 9, 7)), model(photos(1, 9, 7)), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
