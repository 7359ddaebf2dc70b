"""EfficientNet-Lite, and the choice of an EfficientNet's stride-32 map."""

import keras
import numpy as np
import pytest

from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.stage.config import InputError

# Published parameters, with the classifier of 1000 classes; width of the last block.
LITES = {
    "efficientnet_lite0": (4_652_008, 320),
    "efficientnet_lite1": (5_416_680, 320),
    "efficientnet_lite2": (6_092_072, 352),
    "efficientnet_lite3": (8_197_096, 384),
    "efficientnet_lite4": (13_006_568, 448),
}


@pytest.fixture(scope="module")
def lite0():
    return build_backbone("efficientnet_lite0", "mixed_bfloat16", "top_conv")


def _check_size(backbone, name):
    published, last = LITES[name]
    parameters = sum(np.prod(v.shape) for v in backbone.trainable_weights)
    assert parameters + (1280 + 1) * 1000 == published
    assert backbone.output_shape[-1][-1] == 1280
    assert backbone.get_layer("top_conv").input.shape[-1] == last


def test_lite0_has_the_published_size(lite0):
    _check_size(lite0, "efficientnet_lite0")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LITES)[1:])
def test_lites_have_the_published_size(name):
    _check_size(build_backbone(name, stride32="top_conv"), name)


def test_lite_pads_and_computes_as_it_was_trained(lite0):
    layers = {layer.name: layer for layer in lite0.layers}
    assert not any(isinstance(layer, keras.layers.ZeroPadding2D) for layer in lite0.layers)
    assert not any("_se_" in name for name in layers)
    convolutions = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    for layer in lite0.layers:
        if isinstance(layer, convolutions):
            assert layer.padding == "same", layer.name
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.epsilon == 1e-3, layer.name
        if isinstance(layer, keras.layers.Activation):
            assert layer.activation is keras.activations.relu6, layer.name
    assert layers["block2a_dwconv"].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_lites_maps_are_rounded_up_down_to_one_pixel(lite0):
    for height, width in ((97, 130), (32, 33), (1, 1)):
        maps = lite0(np.zeros((1, height, width, 3), np.float32))
        for stride, channels, output in zip((8, 16, 32), (40, 112, 1280), maps, strict=True):
            assert output.shape == (1, -(-height // stride), -(-width // stride), channels)


@pytest.mark.slow
def test_the_widths_of_dolg_follow_the_top_convolution():
    config = DolgConfig(backbone="efficientnet_lite0", stride32="top_conv", dilations=(1,))
    network = build_dolg(config, seed=3)
    outputs = intermediates(network)(np.zeros((1, 64, 96, 3), np.float32))
    shapes = {name: tuple(outputs[name].shape) for name in ("p4", "p5", "fused")}
    assert shapes == {"p4": (1, 4, 6, 112), "p5": (1, 2, 3, 1280), "fused": (1, 224)}
    assert tuple(network.get_layer("global").kernel.shape) == (1280, 112)
    keras.utils.set_random_seed(3)
    last_block = build_backbone("efficientnet_lite0")
    assert last_block.output_shape[-1][-1] == 320
    assert not any(layer.name.startswith("top_") for layer in last_block.layers)
    stems = [x.get_layer("stem_conv").kernel for x in (last_block, network.get_layer("backbone"))]
    np.testing.assert_array_equal(*(stem.numpy() for stem in stems))


def test_a_resnet_has_no_top_convolution():
    with pytest.raises(InputError, match="--stride32=top_conv: a ResNet has no top convolution"):
        build_backbone("resnet18", stride32="top_conv")
