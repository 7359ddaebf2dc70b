"""Mode `serving`: pixels, maps and local features. Encoded photos: ../test_requests.py."""

import dataclasses
import json

import keras
import numpy as np
import odd_photos
import pytest
import tensorflow as tf

from dolg_tf.data import photo_files
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.modes import serving
from dolg_tf.serving.saved_model import Inside


@pytest.fixture(scope="module")
def loaded(export):
    return tf.saved_model.load(str(export()))


def test_images_gives_unit_rows_that_do_not_depend_on_the_batch(loaded, photos):
    batch, scales = photos(3, 61, 83, 3), tf.constant([0.5, 1.0])
    rows = loaded.signatures["images"](images=tf.constant(batch), scales=scales)["descriptors"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    for row, photo in zip(rows, batch, strict=True):
        alone = loaded.signatures["images"](images=tf.constant(photo[None]), scales=scales)
        np.testing.assert_allclose(alone["descriptors"][0], row, atol=1e-5)


def test_tiny_photos_and_an_empty_list_of_scales(loaded, photos):
    call = loaded.signatures["images"]
    tiny = call(images=tf.constant(photos(1, 10, 10, 3)), scales=tf.constant([0.25, 1.0]))
    assert np.isfinite(tiny["descriptors"]).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="scales is empty"):
        call(images=tf.constant(photos(1, 10, 10, 3)), scales=tf.zeros([0]))


def test_maps_are_what_the_network_saw(loaded, network, photos):
    photo = photos(50, 70, 3)
    maps = loaded.signatures["maps"](image=tf.constant(photo))
    seen = intermediates(network)(photo[None].astype(np.float32) / 255)
    f_local = np.asarray(seen["local"], np.float64)[0]
    g = np.asarray(seen["global"], np.float64)[0]
    explained = (f_local @ g / np.linalg.norm(g)) ** 2
    energy = (f_local**2).sum(-1)
    np.testing.assert_allclose(maps["attention"], seen["attention"][0, :, :, 0], rtol=1e-4)
    np.testing.assert_allclose(maps["orthogonal_norm"], np.sqrt(energy - explained), rtol=1e-3)
    np.testing.assert_allclose(maps["explained_energy"], explained / energy, atol=1e-5)


def test_local_features_are_what_the_fusion_gets(loaded, network, photos):
    photo = photos(50, 70, 3)
    features = loaded.signatures["local_features"](image=tf.constant(photo))["features"]
    seen = intermediates(network)(photo[None].astype(np.float32) / 255)
    fused_from = network.get_layer("fusion").input[0]
    expected = keras.Model(network.input, fused_from)(photo[None].astype(np.float32) / 255)
    np.testing.assert_allclose(features, expected[0], atol=1e-5)
    norms = np.linalg.norm(features, axis=-1)
    np.testing.assert_allclose(norms, seen["attention"][0, :, :, 0], rtol=1e-4)


def test_without_local_branch_there_are_no_maps(dolg_config, network):
    config = ExportConfig(model_dir="m", output="o")
    functions = {"serving_default", "images", "local", "maps", "local_features"}
    assert set(serving.functions(network, config, Inside())) == functions
    network = build_dolg(dataclasses.replace(dolg_config, fusion="global_only"))
    assert set(serving.functions(network, config, Inside())) == {
        "serving_default",
        "images",
        "local",
    }


@pytest.mark.parametrize("upright", [True, False])
def test_encoded_photos_are_turned_as_the_export_says(export, upright):
    path = export() if upright else export(upright=False)
    about = json.loads((path / "assets.extra" / "dolg.json").read_text())
    assert about["upright"] is upright
    says = "encoded photos are turned by" if upright else "encoded photos are not turned by"
    assert says in (path / "README.md").read_text()
    model = tf.saved_model.load(str(path))
    for orientation in (1, 6):
        data = odd_photos.turned()["JPEG", orientation]
        found = model.signatures["serving_default"](image_bytes=tf.constant([data]))
        assert found["status"].numpy().tolist() == [0]
        pixels = photo_files.decode(data, upright=upright)
        expected = model.signatures["images"](
            images=tf.constant(pixels[None]), scales=tf.constant(about["scales"])
        )
        np.testing.assert_allclose(found["descriptors"], expected["descriptors"], atol=1e-5)
