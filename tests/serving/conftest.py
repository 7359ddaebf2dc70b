"""A small network and its exports, made once per test run."""

import functools

import numpy as np
import pytest

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.serving import export as stage
from dolg_tf.serving.config import ExportConfig

CONFIG = DolgConfig(backbone="resnet17_small", dilations=(1, 2), descriptor_size=16)


@pytest.fixture(scope="session")
def dolg_config():
    return CONFIG


@pytest.fixture(scope="session")
def network():
    return build_dolg(CONFIG, seed=1)


@pytest.fixture(scope="session")
def model_dir(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    save_dolg(network, CONFIG, path, {"source": "test"})
    return path


@pytest.fixture(scope="session")
def export(model_dir):
    """Function of the options of an export of `network` to its directory."""

    @functools.cache
    def make(**options):
        output = model_dir.parent / f"export_{len(list(model_dir.parent.iterdir()))}"
        return stage.export(ExportConfig(model_dir=str(model_dir), output=str(output), **options))

    return make


@pytest.fixture(scope="session")
def photos():
    """Function of a shape to photos of noise."""
    return lambda *shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="session")
def one_scale(network):
    """Function of (photo, scale) to its unit descriptor (D,), the slow way."""
    from dolg_tf.data import images

    def describe(photo, scale):
        height, width = (max(1, round(float(np.float32(s * scale)))) for s in photo.shape[:2])
        floats = images.resize(photo[None].astype(np.float32) / 255, height, width)
        row = np.asarray(network(floats))[0]
        return row / np.linalg.norm(row)

    return describe


@pytest.fixture(scope="session")
def many_scales(one_scale):
    """Function of (photo, scales) to its unit descriptor (D,), the slow way."""

    def describe(photo, scales):
        total = np.mean([one_scale(photo, scale) for scale in scales], axis=0)
        return total / np.linalg.norm(total)

    return describe
