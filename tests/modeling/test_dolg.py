"""The network: against the authors' own outputs, and its parts against each other."""

import pathlib

import keras
import numpy as np
import pytest

from dolg_tf.config import DolgConfig, InputError
from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.modeling.dolg import build_dolg, intermediates

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMALL = DolgConfig(backbone="resnet17_small", dilations=(1, 2, 3), descriptor_size=32)


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
        outputs = {key: np.asarray(x)[0] for key, x in model(image, training=False).items()}
        ours = {
            "f3": outputs["p4"][:, :, ::64],
            "f4": outputs["p5"][:, :, ::64],
            "local": outputs["local"][:, :, ::64],
            "attention": outputs["attention"][:, :, 0],
            "descriptor": outputs["descriptor"],
        }
        for name, value in ours.items():
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


@pytest.mark.parametrize("name", ["resnet18", "resnet17_small"])
def test_backbones_give_stride_16_and_32(name):
    p4, p5 = build_backbone(name)(_images(1, 97, 130, 3))
    assert p4.shape[1:3] == (7, 9) and p5.shape[1:3] == (4, 5)


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


def test_unknown_backbone_is_refused_with_the_choices():
    with pytest.raises(InputError, match="resnet51 is unknown; choose one of resnet18"):
        build_backbone("resnet51")


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


@pytest.mark.parametrize(
    "change", [{"multi_atrous": False}, {"self_attention": False}, {"fused_pooling": "gem"}]
)
def test_every_switch_changes_the_network(change):
    image = _images(1, 64, 64, 3)
    full = build_dolg(SMALL, seed=1)(image)
    config = DolgConfig(**{**vars(SMALL), **change})
    assert np.abs(np.asarray(build_dolg(config, seed=1)(image)) - full).max() > 1e-6


def test_gem_exponent_is_trained_only_when_asked():
    for train in (False, True):
        config = DolgConfig(**{**vars(SMALL), "train_gem_p": train})
        names = [v.path for v in build_dolg(config).trainable_variables]
        assert ("gem/p" in names) == train


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


def test_keras_saves_and_loads_it_in_safe_mode(tmp_path):
    network, image = build_dolg(SMALL), _images(1, 64, 64, 3)
    network.save(tmp_path / "dolg.keras")
    loaded = keras.models.load_model(tmp_path / "dolg.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(image), network(image), rtol=1e-6)
