"""The exported SavedModel: the authors' descriptors, its signatures, its refusals."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.config import InputError
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.recipe import DataConfig, DolgConfig, TrainingConfig
from dolg_tf.serving import saved_model
from dolg_tf.serving.saved_model import SCALES, ExportConfig, export_saved_model
from dolg_tf.serving.signatures import multi_scale
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.run_log import write_run
from dolg_tf.training.steps import Trainer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CONFIG = DolgConfig(backbone="resnet17_small", dilations=(1, 2), descriptor_size=16)


@pytest.fixture(scope="module")
def network():
    return build_dolg(CONFIG, seed=1)


@pytest.fixture(scope="module")
def model_dir(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model"
    save_dolg(network, CONFIG, path, {"source": "test"})
    return path


@pytest.fixture(scope="module")
def exported(model_dir):
    return export_saved_model(
        ExportConfig(model_dir=str(model_dir), output=str(model_dir.parent / "saved_model"))
    )


def _photos(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_five_scale_descriptors_equal_the_authors(official_r50, standin):
    network, _ = official_r50(True)
    golden = np.load(GOLDEN / "r50_multi_scale.npz")
    for size in sorted({key.split("/")[0] for key in golden.files}):
        height, width = map(int, size.split("x"))
        photo = tf.constant(standin.image(height, width)[None])
        ours = multi_scale(network, photo, tf.constant(SCALES))[0]
        np.testing.assert_allclose(ours, golden[f"{size}/descriptor"], atol=1e-5)
        for scale, expected in zip(SCALES, golden[f"{size}/per_scale"], strict=True):
            one = multi_scale(network, photo, tf.constant([scale]))[0]
            np.testing.assert_allclose(one, expected, atol=1e-5)


def test_images_gives_unit_rows_that_do_not_depend_on_the_batch(exported):
    loaded = tf.saved_model.load(str(exported))
    photos, scales = _photos(3, 61, 83, 3), tf.constant([0.5, 1.0])
    rows = loaded.signatures["images"](images=tf.constant(photos), scales=scales)["descriptors"]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-5)
    for row, photo in zip(rows, photos, strict=True):
        alone = loaded.signatures["images"](images=tf.constant(photo[None]), scales=scales)
        np.testing.assert_allclose(alone["descriptors"][0], row, atol=1e-5)


def test_tiny_photos_and_an_empty_list_of_scales(exported):
    loaded = tf.saved_model.load(str(exported))
    call = loaded.signatures["images"]
    tiny = call(images=tf.constant(_photos(1, 10, 10, 3)), scales=tf.constant([0.25, 1.0]))
    assert np.isfinite(tiny["descriptors"]).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="scales is empty"):
        call(images=tf.constant(_photos(1, 10, 10, 3)), scales=tf.zeros([0]))


def test_maps_are_what_the_network_saw(exported, network):
    photo = _photos(50, 70, 3)
    maps = tf.saved_model.load(str(exported)).signatures["maps"](image=tf.constant(photo))
    seen = intermediates(network)(photo[None].astype(np.float32) / 255)
    f_local = np.asarray(seen["local"], np.float64)[0]
    g = np.asarray(seen["global"], np.float64)[0]
    explained = (f_local @ g / np.linalg.norm(g)) ** 2
    energy = (f_local**2).sum(-1)
    np.testing.assert_allclose(maps["attention"], seen["attention"][0, :, :, 0], rtol=1e-4)
    np.testing.assert_allclose(maps["orthogonal_norm"], np.sqrt(energy - explained), rtol=1e-3)
    np.testing.assert_allclose(maps["explained_energy"], explained / energy, atol=1e-5)


def test_without_local_branch_there_are_no_maps(tmp_path):
    config = dataclasses.replace(CONFIG, fusion="global_only")
    save_dolg(build_dolg(config, seed=1), config, tmp_path / "model", {})
    exported = export_saved_model(
        ExportConfig(model_dir=str(tmp_path / "model"), output=str(tmp_path / "saved_model"))
    )
    assert list(tf.saved_model.load(str(exported)).signatures) == ["images"]


def test_about_tells_where_it_comes_from(exported):
    about = json.loads((exported / "assets.extra" / "dolg.json").read_text())
    assert about["format_version"] == 1 and about["provenance"] == {"source": "test"}
    assert about["scales"] == list(SCALES) and len(about["weights_sha256"]) == 64
    assert about["preprocessing"]["channel_order"] == "rgb"


def test_weights_are_stored_once(exported, network):
    stored = sum(f.stat().st_size for f in (exported / "variables").iterdir())
    assert stored < 1.1 * 4 * network.count_params()


def test_an_existing_output_is_kept_unless_told(exported, model_dir):
    arguments = {"model_dir": str(model_dir), "output": str(exported)}
    with pytest.raises(InputError, match="--overwrite"):
        export_saved_model(ExportConfig(**arguments))
    before = (exported / "saved_model.pb").stat().st_ino
    export_saved_model(ExportConfig(**arguments, overwrite=True))
    assert (exported / "saved_model.pb").stat().st_ino != before


def test_a_failed_export_leaves_nothing(model_dir, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no model or run directory"):
        export_saved_model(
            ExportConfig(model_dir=str(tmp_path / "none"), output=str(tmp_path / "out"))
        )
    # A model that answers otherwise than the network does is not put in place.
    monkeypatch.setattr(
        saved_model, "_write", lambda network, path: _write_other(path, model_dir.parent)
    )
    with pytest.raises(RuntimeError, match="differ"):
        export_saved_model(ExportConfig(model_dir=str(model_dir), output=str(tmp_path / "out")))
    assert not list(tmp_path.iterdir())


def test_the_moving_average_of_a_run_is_exported_when_asked(tmp_path, monkeypatch):
    recipe = DataConfig(train_file_pattern="train-*", num_classes=2)
    training = TrainingConfig(logdir=str(tmp_path / "run"), batch_size=1, ema_decay=0.9)
    trainer = Trainer(CONFIG, training, 2, 1, make_strategy())
    averages = trainer.state()["ema"]
    for average in averages.values():
        average.assign(average + 0.5)
    write_run(CONFIG, recipe, training, None)
    Checkpoints(tmp_path / "run", trainer.state(), 1, chief=True).save()
    written = []
    monkeypatch.setattr(saved_model, "_write", lambda network, path: written.append(network))
    monkeypatch.setattr(saved_model, "_verify", lambda *_: None)
    hashes = set()
    for kind in ("raw", "ema"):
        output = tmp_path / kind
        arguments = {"model_dir": training.logdir, "output": str(output), "weights": kind}
        export_saved_model(ExportConfig(**arguments))
        about = json.loads((output / "assets.extra" / "dolg.json").read_text())
        assert about["provenance"]["weights"] == kind
        hashes.add(about["weights_sha256"])
    assert len(hashes) == 2
    for raw, variable in zip(trainer.network.variables, written[0].variables, strict=True):
        np.testing.assert_array_equal(variable, raw)
    for variable in written[1].variables:
        np.testing.assert_array_equal(variable, averages[variable.path])


def _write_other(path, _):
    class Other(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, None, 3], tf.uint8, "images"),
                tf.TensorSpec([None], tf.float32, "scales"),
            ]
        )
        def images(self, images, scales):
            rows = tf.zeros([tf.shape(images)[0], 16]) + tf.reduce_sum(scales)
            return {"descriptors": tf.math.l2_normalize(rows, -1)}

    module = Other()
    tf.saved_model.save(module, str(path), signatures={"images": module.images})
