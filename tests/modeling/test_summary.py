"""The summary of a network: its counts against formulas by hand, with nothing left out."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling import summary
from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.modeling.summary import SummaryConfig, count_multiply_adds, print_summary, summarize
from dolg_tf.stage.config import InputError

SMALL = {
    "backbone": "resnet17_small",
    "local_channels": 16,
    "descriptor_size": 16,
    "preprocessing": Preprocessing(channel_order="bgr"),
}


@pytest.fixture(scope="module")
def small():
    config = DolgConfig(**SMALL)
    return build_dolg(config, seed=0), config


def _resnet_products(blocks, bottleneck, side):
    """Returns the multiply-adds of a ResNet v1.5 without classifier, by its paper's table 1."""
    side //= 2
    total, inputs = side**2 * 7 * 7 * 3 * 64, 64
    side //= 2  # max pooling
    for stage, number in enumerate(blocks):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(number):
            stride = 2 if stage and not block else 1
            after = side // stride
            if bottleneck:
                total += side**2 * inputs * width + after**2 * (9 * width + outputs) * width
            else:
                total += after**2 * 9 * (inputs + width) * width
            if stride == 2 or inputs != outputs:
                total += after**2 * inputs * outputs
            side, inputs = after, outputs
    return total


def _products(blocks, bottleneck, side):
    """Returns the multiply-adds of DOLG by part, including those of padding."""
    c, cells = (1024 if bottleneck else 256), (side // 16) ** 2
    # Halves of c: three 3x3 branches, one 1x1, the reduction of all five; once, the pooled one.
    return {
        "backbone": _resnet_products(blocks, bottleneck, side),
        "multi-atrous": (cells * (3 * 9 + 1 + 5) + 1) * c * c // 2,
        "local features": cells * (c + 1) * c,
        "global branch": 2 * c * c,
        "descriptor": 2 * c * 512,
    }


def test_resnet18_costs_what_its_layers_say():
    network = build_dolg(DolgConfig(backbone="resnet18"), seed=0)
    assert count_multiply_adds(network, 224) == (_products([2, 2, 2, 2], False, 224), {})


@pytest.mark.slow
def test_resnet50_costs_what_its_layers_say(official_r50):
    counted, unknown = count_multiply_adds(official_r50(True)[0], 512)
    assert counted == _products([3, 4, 6, 3], True, 512) and not unknown
    assert counted["backbone"] == pytest.approx(21.4e9, rel=0.005)
    assert counted.total() == pytest.approx(40.1e9, rel=0.005)


def test_every_product_of_a_small_network_is_counted():
    """Depthwise, strided and valid convolutions, against a walk over all their taps."""
    image = keras.Input((None, None, 3), name="image")
    x = keras.layers.DepthwiseConv2D(
        3, strides=2, padding="same", depth_multiplier=2, name="backbone"
    )(image)
    x = keras.layers.Conv2D(4, (2, 3), name="local")(x)  # valid
    x = keras.layers.GlobalAveragePooling2D(name="gem")(x)
    network = keras.Model(image, keras.layers.Dense(5, name="descriptor")(x))

    def walk(rows, columns, height, width, inputs, outputs):
        return sum(1 for _ in np.ndindex(rows, columns, height, width, inputs, outputs))

    assert count_multiply_adds(network, 32) == (
        {
            "backbone": walk(16, 16, 3, 3, 1, 6),
            "local features": walk(15, 14, 2, 3, 6, 4),
            "descriptor": walk(1, 1, 1, 1, 4, 5),
        },
        {},
    )


@keras.saving.register_keras_serializable("tests")
class Strange(keras.layers.Layer):
    """Arithmetic that the summary does not know: a product, and one inside a function."""

    def call(self, x):
        product = tf.function(lambda y: tf.matmul(y, y, transpose_a=True))
        return tf.matmul(x, x, transpose_a=True)[:, 0, 0] + product(x[0, 0])[0]


def test_what_is_not_known_is_said(small):
    image = keras.Input((None, None, 3), name="image")
    network = keras.Model(image, Strange(name="descriptor")(image))
    counted, unknown = count_multiply_adds(network, 32)
    assert not counted and unknown == {"BatchMatMulV2": 1, "PartitionedCall": 1}
    said = summarize(*small, {}, 32)
    assert "NOT COUNTED" not in summary.as_text(said)
    said["not_counted"] = unknown
    assert "NOT COUNTED, though it may cost as much: 1 x BatchMatMulV2" in summary.as_text(said)


VARIANTS = [
    (
        {
            "global_layer": "conv",
            "gem_p": 4.6,
            "global_pooling": "learned",
            "multi_atrous_context": False,
            "fused_pooling": "gem",
            "neck": "bn_prelu",
        },
        [
            "6, 12, 18, without context",
            "4.6 (trained)",
            "SiLU",
            "pooled by GeM with p 3 (fixed)",
            "PReLU",
        ],
    ),
    ({"delg_local": True}, ["DELG's local branch: 128 numbers a feature"]),
    ({"fusion": "global_only"}, ["no local branch", "GeM with p 3 (fixed)\n"]),
    (
        {"fusion": "global_only", "descriptor_size": 0},
        ["descriptor of 512 numbers: no last layer"],
    ),
    (
        {
            "local_source": "p4+p5",
            "fusion": "concat",
            "global_pooling": "average",
            "fused_pooling": "learned",
        },
        ["two local branches", "branch: average pooling", "GeM with p 3 and 3 (trained)"],
    ),
    pytest.param(
        {"multi_atrous": False, "self_attention": False},
        ["local branch: no attention"],
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"backbone": "efficientnet_b0", "stride32": "top_conv"},
        ["efficientnet_b0 (stride 16: 112 channels, stride 32: 1280)"],
        marks=pytest.mark.slow,
    ),
    pytest.param({"backbone": "efficientnet_lite0"}, ["320)"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("change", "words"), VARIANTS)
def test_every_variant_is_told_in_full(change, words):
    config = DolgConfig(**{**SMALL, **change})
    network = build_dolg(config, seed=0)
    said = summarize(network, config, {"source": "test"}, 64)
    assert not said["not_counted"]
    everything = said["parts"].pop("all")
    for column in ("parameters", "trainable", "multiply_adds"):
        assert everything[column] == sum(part[column] for part in said["parts"].values())
    assert everything["parameters"] == network.count_params()
    assert everything["trainable"] == sum(v.numpy().size for v in network.trainable_variables)
    said["parts"]["all"] = everything
    assert json.loads(json.dumps(said)) is not None
    text = summary.as_text(said)
    for word in words:
        assert word in text


def test_the_command_tells_a_stranger_what_it_is(small, tmp_path, capsys):
    provenance = {"source": "checkpoint", "sha256": "4d7a", "steps": 7, "reference": None}
    save_dolg(*small, tmp_path / "model", provenance)
    print_summary(SummaryConfig(model_dir=str(tmp_path / "model"), image_size=64))
    text = capsys.readouterr().out
    for key, value in provenance.items():
        assert f"  {key}: {value}\n" in f"{text}\n"
    assert "channel_order: bgr" in text and "mean: 0.485, 0.456, 0.406" in text
    assert "multi-atrous 6, 12, 18; attention\n" in text and "then a linear layer\n" in text
    assert "64x64" in text and "zeros of padding" in text
    with pytest.raises(InputError, match="not a model or run directory"):
        print_summary(SummaryConfig(model_dir=str(tmp_path)))
    with pytest.raises(InputError, match="--image_size=31 must be at least 32"):
        SummaryConfig(model_dir="model", image_size=31)


def test_a_provenance_of_strangers_does_not_steer_the_terminal(small):
    network, config = small
    text = summary.as_text(summarize(network, config, {"source": "x\x1b[2J"}, 64))
    assert "\x1b" not in text and "x\\x1b[2J" in text
