"""The network against the authors' own outputs, and its parts against each other."""

import functools
import pathlib

import keras
import numpy as np
import pytest
from both_backends import golden_parts
from keras_hub.models import EfficientNetBackbone

from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg, intermediates, local_branches
from dolg_tf.stage.config import InputError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMALL = DolgConfig(backbone="resnet17_small", dilations=(1, 2, 3), descriptor_size=32)
# Each part of the 2021 Kaggle winner's network, and DELG's global descriptor.
VARIANTS = [
    {"fusion": "global_only"},
    {"local_channels": 24},
    {"local_channels": 24, "multi_atrous": False},
    {"global_layer": "conv"},
    {"multi_atrous_context": False},
    {"neck": "bn_prelu"},
]
# The paper's other ablations.
ABLATIONS = [
    {"multi_atrous": False},
    {"self_attention": False},
    {"fusion": "concat"},
    {"fusion": "hadamard"},
    {"local_source": "p3"},
    {"local_source": "p5"},
    {"local_source": "p4+p5"},
    {"global_pooling": "average"},
    {"fused_pooling": "gem"},
]
KAGGLE = {
    "backbone": "efficientnet_b0",
    "local_channels": 1024,
    "global_layer": "conv",
    "global_pooling": "learned",
    "multi_atrous_context": False,
    "dilations": (3, 6, 9),
    "neck": "bn_prelu",
}


def _images(*shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("multi_atrous", "golden", "sizes"),
    [
        (True, "r50.npz", [(224, 288), (97, 130)]),
        (False, "r50_no_multi_atrous.npz", None),
    ],
)
def test_maps_and_descriptors_equal_the_authors(official_r50, standin, multi_atrous, golden, sizes):
    network, _ = official_r50(multi_atrous)
    model, expected = intermediates(network), np.load(GOLDEN / golden)
    found = sorted({tuple(map(int, key.split("/")[0].split("x"))) for key in expected.files})
    assert sizes is None or found == sorted(sizes)
    for height, width in found:
        image = standin.image(height, width).astype(np.float32)[None] / 255
        for name, value in golden_parts(model(image, training=False)).items():
            theirs = expected[f"{height}x{width}/{name}"]
            error = np.abs(value - theirs).max() / np.abs(theirs).max()
            assert error < 1e-5, f"{name} at {height}x{width} is {error:.1e} off"


def test_pooled_orthogonal_part_is_orthogonal_to_the_global_feature(official_r50, standin):
    network, _ = official_r50(True)
    image = standin.image(97, 130).astype(np.float32)[None] / 255
    fused = np.asarray(intermediates(network)(image)["fused"])[0].astype(np.float64)
    f_global, orthogonal = fused[:1024], fused[1024:]
    lengths = np.linalg.norm(f_global) * np.linalg.norm(orthogonal)
    assert abs(f_global @ orthogonal) / lengths < 1e-5


@pytest.mark.parametrize(("multi_atrous", "parameters"), [(False, 27_707_970), (True, 45_537_346)])
def test_r50_has_as_many_parameters_as_the_authors(official_r50, multi_atrous, parameters):
    network, _ = official_r50(multi_atrous)
    gem_p = 1  # trained by the authors, fixed here by default
    assert sum(np.prod(v.shape) for v in network.trainable_weights) + gem_p == parameters


@pytest.mark.slow
def test_r101_has_as_many_parameters_as_the_authors():
    for multi_atrous, parameters in ((False, 46_700_098), (True, 64_529_474)):
        network = build_dolg(DolgConfig(backbone="resnet101", multi_atrous=multi_atrous))
        assert sum(np.prod(v.shape) for v in network.trainable_weights) + 1 == parameters


def _efficientnet_parameters(name):
    """Returns the published number of parameters, without top convolution and classifier."""
    published = {
        preset: v["metadata"]["params"] for preset, v in EfficientNetBackbone.presets.items()
    }
    published = {"_".join(preset.split("_")[:2]): count for preset, count in published.items()}
    # timm's efficientnet_b6 and _b7, of which KerasHub has no preset
    published |= {"efficientnet_b6": 43_040_704, "efficientnet_b7": 66_347_960}
    last = {"0": 320, "1": 320, "2": 352, "3": 384, "4": 448, "5": 512, "6": 576, "7": 640}[
        name[-1]
    ]
    top = 4 * last
    return published[name] - (last * top + 2 * top) - (top + 1) * 1000, last


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        *(pytest.param(f"efficientnet_b{i}", marks=pytest.mark.slow) for i in range(1, 8)),
    ],
)
def test_efficientnets_have_the_published_size_up_to_their_last_block(name):
    backbone = build_backbone(name)
    parameters, last = _efficientnet_parameters(name)
    assert sum(np.prod(v.shape) for v in backbone.trainable_weights) == parameters
    assert backbone.output_shape[-1][-1] == last
    assert not any(layer.name.startswith("top_") for layer in backbone.layers)


def test_an_efficientnet_computes_in_the_asked_precision_and_leaves_the_global_one():
    backbone = build_backbone("efficientnet_b0", "mixed_bfloat16")
    assert backbone.get_layer("block2a_dwconv").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_blocks_start_as_the_identity(name):
    backbone = build_backbone(name)
    ends = {"resnet18": "_2_bn", "resnet50": "_3_bn"}[name]
    last = [layer for layer in backbone.layers if layer.name.endswith(ends)]
    assert len(last) == {"resnet18": 8, "resnet50": 16}[name]
    assert all(not np.any(np.asarray(layer.gamma)) for layer in last)
    others = [
        layer
        for layer in backbone.layers
        if isinstance(layer, keras.layers.BatchNormalization) and layer not in last
    ]
    assert all(np.all(np.asarray(layer.gamma) == 1) for layer in others)


def test_intermediates_are_named_and_shaped():
    network = build_dolg(SMALL)
    outputs = intermediates(network)(_images(2, 64, 96, 3))
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        "p4": (2, 4, 6, 256),
        "p5": (2, 2, 3, 512),
        "global": (2, 256),
        "local": (2, 4, 6, 256),
        "attention": (2, 4, 6, 1),
        "fused": (2, 512),
        "descriptor": (2, 32),
    }


def test_without_local_branch_there_is_none():
    network = build_dolg(DolgConfig(**{**vars(SMALL), "fusion": "global_only"}))
    outputs = intermediates(network)(_images(2, 64, 96, 3))
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {"p5": (2, 2, 3, 512), "global": (2, 512), "descriptor": (2, 32)}
    # DELG: GeM with p = 3 and one linear layer.
    pooled = np.mean(np.maximum(outputs["p5"], 1e-6) ** 3.0, axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(outputs["global"], pooled, rtol=1e-4)
    weight, bias = (np.asarray(w) for w in network.get_layer("descriptor").weights)
    np.testing.assert_allclose(outputs["descriptor"], pooled @ weight + bias, rtol=1e-3, atol=1e-5)


def test_without_last_layer_the_descriptor_is_the_features_before_it():
    for change, before, size in (({"fusion": "global_only"}, "global", 512), ({}, "fused", 512)):
        network = build_dolg(DolgConfig(**{**vars(SMALL), **change, "descriptor_size": 0}))
        assert network.output_shape == (None, size)
        outputs = intermediates(network)(_images(2, 64, 96, 3))
        np.testing.assert_array_equal(outputs["descriptor"], outputs[before])
    with pytest.raises(InputError, match="--neck=bn_prelu: --descriptor_size=0 has no last layer"):
        DolgConfig(neck="bn_prelu", descriptor_size=0)


@pytest.mark.parametrize(
    ("source", "map_", "local", "fused"),
    [
        ("p3", (2, 8, 12, 256), (2, 8, 12, 256), 512),
        ("p5", (2, 2, 3, 512), (2, 2, 3, 256), 512),
        ("p4+p5", (2, 4, 6, 256), (2, 4, 6, 256), 768),
    ],
)
def test_local_features_from_other_maps(source, map_, local, fused):
    network = build_dolg(DolgConfig(**{**vars(SMALL), "local_source": source}), seed=0)
    outputs = {
        name: np.asarray(x) for name, x in intermediates(network)(_images(2, 64, 96, 3)).items()
    }
    assert outputs[source.split("+")[0]].shape == map_
    assert outputs["local"].shape == local and outputs["attention"].shape == (*local[:3], 1)
    assert outputs["fused"].shape == (2, fused)
    parts = np.split(outputs["fused"].astype(np.float64), fused // 256, axis=1)
    np.testing.assert_allclose(parts[0], outputs["global"], rtol=1e-6)
    for part in parts[1:]:
        lengths = np.linalg.norm(parts[0], axis=1) * np.linalg.norm(part, axis=1)
        assert np.abs(np.sum(parts[0] * part, axis=1) / lengths).max() < 1e-5
    assert local_branches(network) == [(source[:2], "")] + [("p5", "_p5")] * ("+" in source)


def test_a_network_without_local_features_takes_no_source():
    with pytest.raises(InputError, match="--local_source=p5: --fusion=global_only"):
        DolgConfig(fusion="global_only", local_source="p5")


def test_the_kaggle_winners_network_is_his_layers():
    network = build_dolg(DolgConfig(**KAGGLE), seed=0)
    outputs = intermediates(network)(_images(2, 64, 96, 3))
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        "p4": (2, 4, 6, 112),
        "p5": (2, 2, 3, 320),
        "global": (2, 1024),
        "local": (2, 4, 6, 1024),
        "attention": (2, 4, 6, 1),
        "fused": (2, 2048),
        "descriptor": (2, 512),
    }
    conv, norm = network.get_layer("global_conv"), network.get_layer("global_norm")
    x = np.asarray(outputs["p5"]) @ np.asarray(conv.kernel)[0, 0] + np.asarray(conv.bias)
    x = x / np.sqrt(1 + norm.epsilon)
    x = np.maximum(x / (1 + np.exp(-x)), 1e-6)
    pooled = np.mean(x**3, axis=(1, 2)) ** (1 / 3)
    np.testing.assert_allclose(outputs["global"], pooled, rtol=1e-3)
    linear, slope = network.get_layer("neck_linear"), network.get_layer("descriptor").alpha
    assert slope.shape == (1,) and float(slope[0]) == 0.25
    x = np.asarray(outputs["fused"]) @ np.asarray(linear.kernel) + np.asarray(linear.bias)
    x = x / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(
        outputs["descriptor"], np.where(x > 0, x, 0.25 * x), rtol=1e-3, atol=1e-6
    )
    atrous = network.get_layer("multi_atrous")
    assert [tuple(conv.kernel.shape) for conv in atrous.dilated] == [(3, 3, 112, 512)] * 3


@functools.cache
def _small_network():
    return build_dolg(SMALL, seed=1)


@pytest.mark.parametrize("change", [*ABLATIONS, *VARIANTS])
def test_every_switch_changes_the_network(change):
    image = _images(1, 64, 64, 3)
    full = np.asarray(_small_network()(image))
    config = DolgConfig(**{**vars(SMALL), **change})
    assert np.abs(np.asarray(build_dolg(config, seed=1)(image)) - full).max() > 1e-6


def test_gem_exponent_is_trained_only_when_asked():
    for kind in ("gem", "learned", "average"):
        config = DolgConfig(**{**vars(SMALL), "global_pooling": kind})
        names = [v.path for v in build_dolg(config).trainable_variables]
        assert ("gem/p" in names) == (kind == "learned")


def test_seed_decides_the_weights():
    image = _images(1, 64, 64, 3)
    first, same, other = (np.asarray(build_dolg(SMALL, seed=s)(image)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-6


def test_mixed_precision_gives_float32_descriptors_near_the_others():
    image = _images(2, 64, 64, 3)
    exact = np.asarray(build_dolg(SMALL, seed=0)(image))
    mixed = build_dolg(SMALL, "mixed_bfloat16", seed=0)
    assert mixed.get_layer("backbone").layers[2].compute_dtype == "bfloat16"
    rough = mixed(image)
    assert rough.dtype == "float32"
    cosine = (
        np.sum(exact * rough, 1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    )
    assert cosine.min() > 0.99
