"""ImageNet weights are taken whole or refused in words."""

import keras
import keras_hub
import numpy as np
import pytest

from dolg_tf.modeling.backbones import EFFICIENTNET_STACKS
from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.stage.config import InputError
from dolg_tf.weights import imagenet

CONFIG = DolgConfig(backbone="resnet18", multi_atrous=False)


@pytest.fixture(scope="module")
def network():
    return build_dolg(CONFIG, seed=0)


@pytest.fixture(scope="module")
def kerashub_backbone():
    """A backbone as KerasHub's presets hold it, with every weight another number."""
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[2, 2, 2, 2],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )
    rng = np.random.default_rng(0)
    backbone.set_weights([rng.standard_normal(w.shape) for w in backbone.get_weights()])
    return backbone


def _same(network, backbone):
    theirs = {layer.name: layer for layer in backbone.layers if layer.weights}
    ours = [layer for layer in network.get_layer("backbone").layers if layer.weights]
    assert len(ours) == len(theirs)
    return all(
        np.array_equal(a, b)
        for layer in ours
        for a, b in zip(layer.get_weights(), theirs[layer.name].get_weights(), strict=True)
    )


def test_a_preset_fills_every_layer(network, kerashub_backbone, monkeypatch):
    asked = []
    monkeypatch.setattr(
        keras_hub.models.Backbone,
        "from_preset",
        lambda name: asked.append(name) or kerashub_backbone,
    )
    assert not _same(network, kerashub_backbone)
    imagenet.load_backbone(network, "resnet_18_imagenet")
    assert asked == ["resnet_18_imagenet"] and _same(network, kerashub_backbone)


def test_an_efficientnet_preset_fills_every_block_and_its_top_is_left(network, monkeypatch):
    preset = keras_hub.models.EfficientNetBackbone(
        width_coefficient=1.0, depth_coefficient=1.0, **EFFICIENTNET_STACKS
    )
    rng = np.random.default_rng(0)
    preset.set_weights([rng.standard_normal(w.shape) for w in preset.get_weights()])
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", lambda name: preset)
    efficient = build_dolg(DolgConfig(backbone="efficientnet_b0", multi_atrous=False), seed=0)
    imagenet.load_backbone(efficient, "efficientnet_b0_ra_imagenet")
    theirs = {layer.name: layer.get_weights() for layer in preset.layers if layer.weights}
    ours = {
        layer.name: layer.get_weights()
        for layer in efficient.get_layer("backbone").layers
        if layer.weights
    }
    assert set(theirs) - set(ours) == {"top_conv", "top_bn"}
    for name, weights in ours.items():
        for mine, other in zip(weights, theirs[name], strict=True):
            np.testing.assert_array_equal(mine, other)
    with pytest.raises(InputError, match="efficientnet_b0_ra_imagenet: it has no layer conv1_conv"):
        imagenet.load_backbone(network, "efficientnet_b0_ra_imagenet")  # a ResNet


def test_a_preset_of_another_kind_is_refused(network):
    with pytest.raises(InputError, match="neither a file nor a ResNet or EfficientNet preset"):
        imagenet.load_backbone(network, "vgg_16_imagenet")


def test_a_keras_file_of_a_kerashub_backbone_is_taken(kerashub_backbone, tmp_path):
    kerashub_backbone.save(tmp_path / "backbone.keras")
    network = build_dolg(CONFIG, seed=1)
    imagenet.load_backbone(network, str(tmp_path / "backbone.keras"))
    assert _same(network, kerashub_backbone)


def test_another_depth_is_refused(kerashub_backbone, tmp_path):
    kerashub_backbone.save(tmp_path / "backbone.keras")
    other = build_dolg(DolgConfig(backbone="resnet34", multi_atrous=False))
    with pytest.raises(InputError, match="keras: it has no layer stack0_block2_1_conv"):
        imagenet.load_backbone(other, str(tmp_path / "backbone.keras"))


def test_a_deeper_one_is_refused(network, monkeypatch):
    deeper = build_dolg(DolgConfig(backbone="resnet34", multi_atrous=False))
    deeper = deeper.get_layer("backbone")
    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", lambda name: deeper)
    with pytest.raises(InputError, match="it has a layer stack0_block2_1_conv"):
        imagenet.load_backbone(network, "resnet_18_imagenet")


def test_a_download_that_fails_is_one_sentence(network, monkeypatch):
    def fail(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", fail)
    with pytest.raises(InputError, match="cannot be downloaded: give a local") as caught:
        imagenet.load_backbone(network, "resnet_50_imagenet")
    assert str(caught.value).count("--backbone_weights") == 1


def test_random_weights_are_said_aloud(network, caplog):
    before = keras.ops.convert_to_numpy(network.weights[0])
    with caplog.at_level("INFO"):
        imagenet.load_backbone(network, "none")
    assert "random weights (--backbone_weights=none)" in caplog.text
    np.testing.assert_array_equal(network.weights[0], before)


def test_presets_of_another_recipe_have_their_own_preprocessing():
    for name in (
        "efficientnet_b0_ra4_e3600_r224_imagenet",
        "efficientnet_b1_ra4_e3600_r240_imagenet",
    ):
        assert name in keras_hub.models.EfficientNetBackbone.presets
        config = DolgConfig(backbone=name.split("_imagenet")[0][:15])
        assert imagenet.preprocessing(name, config) == Preprocessing(
            mean=(0.5,) * 3, std=(0.5,) * 3
        )
    assert imagenet.preprocessing("resnet_50_imagenet", DolgConfig()) == Preprocessing()


def test_a_damaged_keras_file_is_one_sentence(network, kerashub_backbone, tmp_path):
    path = tmp_path / "backbone.keras"
    kerashub_backbone.save(path)
    whole = path.read_bytes()
    for content in (whole[:1000], b"text", b""):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"backbone\.keras is not a \.keras file, or is cut short"
        ):
            imagenet.load_backbone(network, str(path))
    # A bit of the weights inside, which the archive's checksum notices.
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(InputError, match="not a network of only Keras and KerasHub layers"):
        imagenet.load_backbone(network, str(path))


@pytest.mark.parametrize(
    "name", ["none.pth.tar", "pytorch_model.bin", "weights/resnet50", "a.ckpt"]
)
def test_a_file_that_is_not_there_is_told_from_a_preset(network, tmp_path, name):
    with pytest.raises(InputError, match="no such file"):
        imagenet.load_backbone(network, name)
    with pytest.raises(InputError, match="is a folder; give the file of weights in it"):
        imagenet.load_backbone(network, str(tmp_path))
