"""A `.keras` file opens in a fresh process, in Keras' safe mode, after one import."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from dolg_tf.modeling import heads
from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg

SMALL = {"backbone": "resnet17_small", "local_channels": 16, "descriptor_size": 16}
NETWORKS = {
    "dolg": {**SMALL, "dilations": (1, 2), "preprocessing": Preprocessing(channel_order="bgr")},
    "kaggle": {
        **SMALL,
        "global_layer": "conv",
        "global_pooling": "learned",
        "dilations": (3, 6, 9),
        "multi_atrous_context": False,
        "fused_pooling": "gem",
        "neck": "bn_prelu",
    },
    "two branches": {
        **SMALL,
        "local_source": "p4+p5",
        "fusion": "concat",
        "multi_atrous": False,
        "fused_pooling": "learned",
    },
    "delg": {**SMALL, "fusion": "global_only"},
    "delg local": {**SMALL, "delg_local": True},
    "plain": {**SMALL, "multi_atrous": False, "self_attention": False},
    "efficientnet": {**SMALL, "backbone": "efficientnet_b0", "stride32": "top_conv"},
    "lite": {**SMALL, "backbone": "efficientnet_lite0"},
    "resnet50": {},
}
HEADS = {
    "arcface": heads.ArcFace(5),
    "margins": heads.ArcFace(5, margin=(0.1, 0.2, 0.3, 0.4, 0.5)),
    "cosface": heads.CosFace(5),
    "subcenter": heads.SubCenterArcFace(5),
    "curricularface": heads.CurricularFace(5),
}
# What a user types: no custom_objects, nothing but the one import.
READER = """
import sys
import keras
import numpy as np
import dolg_tf.modeling.{module}

for name in sys.argv[1:]:
    model = keras.models.load_model(name + ".keras")
    output = model(np.load(name + ".npy"))
    np.savez(name + ".npz", *[variable.numpy() for variable in model.variables], output=output)
"""


def _write(model, folder, name, shape):
    rng = np.random.default_rng(0)
    for variable in model.variables:  # statistics, slopes and exponents too
        variable.assign(variable + rng.uniform(0.01, 0.1, variable.shape))
    inputs = rng.random(shape).astype(np.float32)
    model.save(folder / f"{name}.keras")
    np.save(folder / f"{name}.npy", inputs)
    return model, np.asarray(model(inputs))


def _networks(configs, folder):
    return {
        name: _write(build_dolg(DolgConfig(**config), seed=1), folder, name, (2, 64, 96, 3))
        for name, config in configs.items()
    }


def _heads(folder):
    written, descriptor = {}, keras.Input((16,))
    for name, head in HEADS.items():
        model = keras.Model(descriptor, head(descriptor))
        written[name] = _write(model, folder, name, (2, 16))
    return written


def _check(written, module, folder):
    command = [sys.executable, "-c", READER.format(module=module), *written]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (model, output) in written.items():
        read = np.load(folder / f"{name}.npz")
        arrays = [read[f"arr_{i}"] for i in range(len(read.files) - 1)]
        for ours, theirs in zip(arrays, model.variables, strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name}: {theirs.path}")
            # Another process may add in another order.
            atol = 1e-5 * np.abs(output).max()
            np.testing.assert_allclose(read["output"], output, atol=atol, err_msg=name)


def test_a_network_and_all_heads_open_after_importing_the_heads(tmp_path):
    network = _networks({"kaggle": NETWORKS["kaggle"]}, tmp_path)
    _check(network | _heads(tmp_path), "heads", tmp_path)


@pytest.mark.slow
def test_every_network_opens_after_importing_the_heads(tmp_path):
    _check(_networks(NETWORKS, tmp_path), "heads", tmp_path)
