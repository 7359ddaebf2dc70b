"""The exported SavedModel: the authors' descriptors, its signatures, its refusals."""

import dataclasses
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.runtime.session import CppSession
from dolg_tf.serving import saved_model
from dolg_tf.serving import verify as verification
from dolg_tf.serving.modes import serving
from dolg_tf.serving.saved_model import SCALES, ExportConfig, export_saved_model
from dolg_tf.serving.signatures import per_scale
from dolg_tf.stage.config import InputError
from dolg_tf.stage.whitening import Whitening
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.run_log import write_run
from dolg_tf.training.trainer import Trainer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ABOUT = pathlib.Path("assets.extra") / "dolg.json"


@pytest.fixture(scope="module")
def exported(export):
    return export()


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported))


def test_five_scale_descriptors_equal_the_authors(official_r50, standin):
    network, _ = official_r50(True)
    golden = np.load(GOLDEN / "r50_multi_scale.npz")
    photo = tf.constant(standin.image(224, 288)[None])
    rows = per_scale(network, photo, tf.constant(SCALES))[:, 0]
    np.testing.assert_allclose(rows, golden["224x288/per_scale"], atol=1e-5)
    # What `multi_scale` makes of the rows: test_kaggle_mode.py.
    pooled = tf.math.l2_normalize(tf.reduce_mean(rows, 0))
    np.testing.assert_allclose(pooled, golden["224x288/descriptor"], atol=1e-5)


@pytest.mark.slow
def test_five_scale_descriptors_of_the_exports_equal_the_authors(
    official_r50, standin, tmp_path, monkeypatch
):
    monkeypatch.setattr(verification, "verify", lambda *_: None)  # it is what follows here
    network, config = official_r50(True)
    golden = np.load(GOLDEN / "r50_multi_scale.npz")
    save_dolg(network, config, tmp_path / "model", {})
    for mode in ("serving", "delg", "kaggle"):
        options = {"model_dir": str(tmp_path / "model"), "output": str(tmp_path / mode)}
        export_saved_model(ExportConfig(**options, mode=mode))
    scales = np.asarray(SCALES, np.float32)
    for size in sorted({key.split("/")[0] for key in golden.files}):
        photo = standin.image(*map(int, size.split("x")))
        descriptor, rows = golden[f"{size}/descriptor"], golden[f"{size}/per_scale"]
        for mode, signature, inputs, expected in (
            ("serving", "images", {"images": photo[None], "scales": scales}, descriptor[None]),
            ("kaggle", "serving_default", {"input_image": photo}, descriptor),
            (
                "delg",
                "serving_default",
                {
                    "input_image": photo,
                    "input_scales": scales,
                    "input_global_scales_ind": np.arange(5, dtype=np.int32),
                },
                rows,
            ),
        ):
            with CppSession(tmp_path / mode) as session:
                (found,) = session.run(signature, inputs).values()
            np.testing.assert_allclose(found, expected, atol=1e-4)


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
    functions = {"serving_default", "images", "maps", "local_features"}
    assert set(serving(network, config, None)) == functions
    network = build_dolg(dataclasses.replace(dolg_config, fusion="global_only"))
    assert set(serving(network, config, None)) == {"serving_default", "images"}


def test_about_tells_where_it_comes_from(exported):
    about = json.loads((exported / ABOUT).read_text())
    assert about["format_version"] == 1 and about["provenance"] == {"source": "test"}
    assert about["scales"] == list(SCALES) and len(about["weights_sha256"]) == 64
    assert about["preprocessing"]["channel_order"] == "rgb"


def test_a_model_card_lies_beside_it(exported):
    card = (exported / "README.md").read_text()
    assert "not measured" in card.lower() and "resnet17_small" in card


def test_weights_are_stored_once(exported, network):
    stored = sum(f.stat().st_size for f in (exported / "variables").iterdir())
    assert stored < 1.1 * 4 * network.count_params()


@pytest.fixture
def write_toy(monkeypatch):
    """Makes exports write a model of mode `kaggle` that gives the same descriptor for any photo."""

    def write(network, config, whitening, path):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, "input_image")])
        def describe(input_image):
            return {"global_descriptor": tf.fill([16], 0.25)}

        tf.saved_model.save(tf.Module(), str(path), {"serving_default": describe})

    monkeypatch.setattr(saved_model, "_write", write)
    return write


def test_an_existing_output_is_kept_unless_told(model_dir, tmp_path, write_toy, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *_: None)
    output = tmp_path / "saved_model"
    arguments = {"model_dir": str(model_dir), "output": str(output), "mode": "kaggle"}
    export_saved_model(ExportConfig(**arguments))
    (output / "mine").touch()
    with pytest.raises(InputError, match="--overwrite"):
        export_saved_model(ExportConfig(**arguments))
    assert (output / "mine").exists()
    export_saved_model(ExportConfig(**arguments, overwrite=True))
    assert (output / "saved_model.pb").exists() and not (output / "mine").exists()


def test_a_missing_or_mismatching_model_leaves_nothing(model_dir, tmp_path):
    output = str(tmp_path / "out" / "1")
    with pytest.raises(InputError, match="not a model or run directory"):
        export_saved_model(ExportConfig(model_dir=str(tmp_path / "none"), output=output))
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())
    config["model"]["multi_atrous"] = False
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="does not fit"):
        export_saved_model(ExportConfig(model_dir=str(model), output=output))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_answers_otherwise_is_not_put_in_place(
    model_dir, tmp_path, write_toy, monkeypatch
):
    config = ExportConfig(model_dir=str(model_dir), output=str(tmp_path / "out"), mode="kaggle")
    with pytest.raises(RuntimeError, match=r"C\+\+ loader: global_descriptor differ"):
        export_saved_model(config)

    def write_twice(network, config, whitening, path):
        write_toy(network, config, whitening, path)
        (path / "variables" / "again").write_bytes(bytes(32 << 20))

    monkeypatch.setattr(saved_model, "_write", write_twice)
    with pytest.raises(RuntimeError, match="stored more than once"):
        export_saved_model(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_that_the_cpp_loader_refuses_is_not_put_in_place(model_dir, tmp_path, monkeypatch):
    def write(network, config, whitening, path):
        module = tf.Module()
        module.network = network  # loads in Python, see test_cpp_loader.py
        photo = tf.TensorSpec([None, None, 3], tf.uint8, "input_image")

        def describe(input_image):
            floats = tf.cast(input_image, tf.float32)[None]
            return {"global_descriptor": network(floats, training=False)[0]}

        describe = tf.function(describe, input_signature=[photo])
        tf.saved_model.save(module, str(path), describe)

    monkeypatch.setattr(saved_model, "_write", write)
    config = ExportConfig(model_dir=str(model_dir), output=str(tmp_path / "out"), mode="kaggle")
    with pytest.raises(RuntimeError, match="Could not find variable"):
        export_saved_model(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["serving", "tf1"])
def test_other_modes_export_in_bfloat16(export, mode):
    about = json.loads((export(mode=mode, precision="bfloat16") / ABOUT).read_text())
    assert about["precision"] == "bfloat16"


@pytest.mark.slow
def test_bfloat16_describes_nearly_the_same(export, photos, many_scales):
    photo = photos(61, 83, 3)
    with CppSession(export(mode="kaggle", precision="bfloat16")) as session:
        found = session.run("serving_default", {"input_image": photo})["global_descriptor"]
    cosine = found @ many_scales(photo, SCALES)
    assert 0.999 < cosine < 1 - 1e-6  # below 1, or it did not compute in bfloat16


def test_the_hash_tells_exports_apart_that_describe_otherwise():
    plain = ExportConfig(model_dir="m", output="o", mode="delg")
    half = dataclasses.replace(plain, precision="bfloat16", mode="kaggle")
    whitening = Whitening(np.zeros(16), np.eye(16), "sha")
    hashes = [
        saved_model.export_hash("weights", plain, None),
        saved_model.export_hash("weights", half, None),
        saved_model.export_hash("weights", plain, whitening),
        saved_model.export_hash("weights", half, whitening),
    ]
    assert len(set(hashes)) == 4
    # The mode changes no descriptor, and as it is the network is the export.
    assert hashes[0] == "weights"
    kaggle_config = dataclasses.replace(plain, mode="kaggle")
    assert saved_model.export_hash("weights", kaggle_config, None) == hashes[0]


def test_float32_is_verified_by_distance_and_bfloat16_by_cosine():
    expected = np.eye(3, dtype=np.float32)
    check = verification.Check("s", {}, {"descriptors": expected})
    verification._compare(check, {"descriptors": expected + 5e-5}, "float32", "loader")
    verification._compare(check, {"descriptors": expected + 1e-2}, "bfloat16", "loader")
    for precision, wrong in (
        ("float32", expected + 2e-4),
        ("float32", expected * np.nan),
        ("bfloat16", expected + 1e-1),
        ("bfloat16", expected * np.nan),
    ):
        with pytest.raises(RuntimeError, match="'s', loader: descriptors differ"):
            verification._compare(check, {"descriptors": wrong}, precision, "loader")


def test_the_moving_average_of_a_run_is_exported_when_asked(dolg_config, tmp_path, monkeypatch):
    recipe = DataConfig(train_file_pattern="train-*", num_classes=2)
    training = TrainingConfig(logdir=str(tmp_path / "run"), batch_size=1, ema_decay=0.9)
    trainer = Trainer(dolg_config, training, 2, 1, make_strategy())
    averages = trainer.state()["ema"]
    for average in averages.values():
        average.assign(average + 0.5)
    write_run(dolg_config, recipe, training, None)
    Checkpoints(tmp_path / "run", trainer.state(), 1, chief=True).save()
    written = []
    monkeypatch.setattr(saved_model, "_write", lambda network, *_: written.append(network))
    monkeypatch.setattr(verification, "verify", lambda *_: None)
    hashes = set()
    for kind in ("raw", "ema"):
        output = tmp_path / kind
        arguments = {"model_dir": training.logdir, "output": str(output), "weights": kind}
        export_saved_model(ExportConfig(**arguments))
        about = json.loads((output / ABOUT).read_text())
        assert about["provenance"]["weights"] == kind
        hashes.add(about["weights_sha256"])
    assert len(hashes) == 2
    for raw, variable in zip(trainer.network.variables, written[0].variables, strict=True):
        np.testing.assert_array_equal(variable, raw)
    for variable in written[1].variables:
        np.testing.assert_array_equal(variable, averages[variable.path])
