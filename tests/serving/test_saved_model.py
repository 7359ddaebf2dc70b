"""The exported SavedModel: the authors' descriptors, its signatures, its refusals."""

import dataclasses
import json
import pathlib
import re
import shutil

import bits
import numpy as np
import pytest
import sealed
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.scales import SCALE_SETS
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.runtime.export_files import loading
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving import export as stage
from dolg_tf.serving import saved_model
from dolg_tf.serving import verify as verification
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph.pyramid import per_scale
from dolg_tf.serving.modes import kaggle, serving
from dolg_tf.serving.saved_model import SavedModelMode
from dolg_tf.stage.config import InputError
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.run_log import write_run
from dolg_tf.training.trainer import Trainer

SCALES = SCALE_SETS["five"]
GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
ABOUT = pathlib.Path("assets.extra") / "dolg.json"


@pytest.fixture(scope="module")
def exported(export):
    return export()


def test_five_scale_descriptors_equal_the_authors(official_r50, standin):
    network, _ = official_r50(True)
    golden = np.load(GOLDEN / "r50_multi_scale.npz")
    photo = tf.constant(standin.image(224, 288)[None])
    rows = per_scale(network, photo, tf.constant(SCALES))[:, 0]
    np.testing.assert_allclose(rows, golden["224x288/per_scale"], atol=1e-5)
    # `multi_scale` itself: modes/test_kaggle.py.
    pooled = tf.math.l2_normalize(tf.reduce_mean(rows, 0))
    np.testing.assert_allclose(pooled, golden["224x288/descriptor"], atol=1e-5)


@pytest.mark.slow
def test_five_scale_descriptors_of_the_exports_equal_the_authors(
    official_r50, standin, tmp_path, monkeypatch
):
    monkeypatch.setattr(SavedModelMode, "verify", lambda *_: None)  # the test checks more
    network, config = official_r50(True)
    golden = np.load(GOLDEN / "r50_multi_scale.npz")
    save_dolg(network, config, tmp_path / "model", {})
    for mode in ("serving", "delg", "kaggle"):
        options = {"model_dir": str(tmp_path / "model"), "output": str(tmp_path / mode)}
        stage.export(ExportConfig(**options, mode=mode))
    scales = np.asarray(SCALES, np.float32)
    every = {"input_scales": scales, "input_global_scales_ind": np.arange(5, dtype=np.int32)}
    sizes = sorted({key.split("/")[0] for key in golden.files})
    for mode in ("serving", "kaggle", "delg"):
        with CppSession(tmp_path / mode) as session:
            for size in sizes:
                photo = standin.image(*map(int, size.split("x")))
                descriptor, rows = golden[f"{size}/descriptor"], golden[f"{size}/per_scale"]
                signature, inputs, expected = {
                    "serving": (
                        "images",
                        {"images": photo[None], "scales": scales},
                        descriptor[None],
                    ),
                    "kaggle": ("serving_default", {"input_image": photo}, descriptor),
                    "delg": ("serving_default", {"input_image": photo, **every}, rows),
                }[mode]
                (found,) = session.run(signature, inputs).values()
                np.testing.assert_allclose(found, expected, atol=1e-4)


def test_about_tells_where_it_comes_from(exported):
    about = json.loads((exported / ABOUT).read_text())
    assert about["format_version"] == 1 and about["provenance"] == {"source": "test"}
    assert about["scales"] == list(SCALES) and len(about["weights_sha256"]) == 64
    assert about["preprocessing"]["channel_order"] == "rgb"


def test_a_flipped_bit_of_any_file_is_told(exported):
    """TensorFlow's loaders take most of them in silence."""
    written = [file for file in exported.rglob("*") if file.is_file()]
    sums = json.loads((exported / ABOUT).read_text())["crc32c"]
    checked = [file for file in written if file.relative_to(exported).as_posix() in sums]
    assert {file.name for file in checked} > {"saved_model.pb", "variables.index"}
    for file in checked:
        for at in (1, file.stat().st_size // 2):
            told = re.escape(str(file))
            with bits.flipped(file, at), pytest.raises(InputError, match=told), loading(exported):
                pytest.fail(f"{file} was taken")
    assert load_model(exported).about.scales == SCALES


def test_a_model_card_lies_beside_it(exported):
    card = (exported / "README.md").read_text()
    assert "not measured" in card.lower() and "resnet17_small" in card
    assert "It runs in TensorFlow 2.4 and newer." in card


def test_weights_are_stored_once(exported, network):
    stored = sum(f.stat().st_size for f in (exported / "variables").iterdir())
    assert stored < 1.1 * 4 * network.count_params()


@pytest.fixture
def write_as(monkeypatch):
    """Function that replaces how mode `kaggle` writes a SavedModel."""
    return lambda write: monkeypatch.setattr(
        kaggle,
        "MODE",
        dataclasses.replace(kaggle.MODE, functions=lambda *_: {}, write=write),
    )


def write_toy(functions, path):
    """Writes a model of mode `kaggle` that gives the same descriptor for any photo."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8, "input_image")])
    def describe(input_image):
        return {"global_descriptor": tf.fill([16], 0.25)}

    tf.saved_model.save(tf.Module(), str(path), {"serving_default": describe})


def test_an_existing_output_is_kept_unless_told(model_dir, tmp_path, write_as, monkeypatch):
    write_as(write_toy)
    monkeypatch.setattr(SavedModelMode, "verify", lambda *_: None)
    output = tmp_path / "saved_model"
    arguments = {"model_dir": str(model_dir), "output": str(output), "mode": "kaggle"}
    stage.export(ExportConfig(**arguments))
    (output / "mine").touch()
    with pytest.raises(InputError, match="--overwrite"):
        stage.export(ExportConfig(**arguments))
    assert (output / "mine").exists()
    stage.export(ExportConfig(**arguments, overwrite=True))
    assert (output / "saved_model.pb").exists() and not (output / "mine").exists()


def test_a_missing_or_mismatching_model_leaves_nothing(model_dir, tmp_path):
    output = str(tmp_path / "out" / "1")
    with pytest.raises(InputError, match="not a model or run directory"):
        stage.export(ExportConfig(model_dir=str(tmp_path / "none"), output=output))
    model = tmp_path / "model"
    shutil.copytree(model_dir, model)
    config = json.loads((model / "config.json").read_text())["model"]
    sealed.change(model / "config.json", model=config | {"multi_atrous": False})
    with pytest.raises(InputError, match="does not fit"):
        stage.export(ExportConfig(model_dir=str(model), output=output))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_answers_otherwise_is_not_put_in_place(model_dir, tmp_path, write_as):
    write_as(write_toy)
    config = ExportConfig(model_dir=str(model_dir), output=str(tmp_path / "out"), mode="kaggle")
    with pytest.raises(RuntimeError, match=r"C\+\+ loader: global_descriptor differ"):
        stage.export(config)

    def write_twice(functions, path):
        write_toy(functions, path)
        (path / "variables" / "again").write_bytes(bytes(32 << 20))

    write_as(write_twice)
    with pytest.raises(RuntimeError, match="stored more than once"):
        stage.export(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_that_the_cpp_loader_refuses_is_not_put_in_place(
    model_dir, network, tmp_path, write_as
):
    def write(functions, path):
        module = tf.Module()
        module.network = network  # loads in Python, see tests/runtime/test_session.py
        photo = tf.TensorSpec([None, None, 3], tf.uint8, "input_image")

        def describe(input_image):
            floats = tf.cast(input_image, tf.float32)[None]
            return {"global_descriptor": network(floats, training=False)[0]}

        describe = tf.function(describe, input_signature=[photo])
        tf.saved_model.save(module, str(path), describe)

    write_as(write)
    config = ExportConfig(model_dir=str(model_dir), output=str(tmp_path / "out"), mode="kaggle")
    with pytest.raises(RuntimeError, match="Could not find variable"):
        stage.export(config)
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
    assert 0.999 < cosine < 1 - 1e-6  # exactly 1 would mean float32


def test_the_hash_tells_exports_apart_that_describe_otherwise():
    whitening = Whitening(np.zeros(16), np.eye(16), "sha")
    hashes = [
        saved_model.export_hash("weights", precision, inside)
        for precision in ("float32", "bfloat16")
        for inside in (None, whitening)
    ]
    assert len(set(hashes)) == 4
    assert hashes[0] == "weights"  # nothing in the export changes them


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
    keep = dataclasses.replace(
        serving.MODE,
        functions=lambda network, *_: written.append(network),
        write=lambda *_: None,
    )
    monkeypatch.setattr(serving, "MODE", keep)
    monkeypatch.setattr(SavedModelMode, "verify", lambda *_: None)
    hashes = set()
    for kind in ("raw", "ema"):
        output = tmp_path / kind
        arguments = {"model_dir": training.logdir, "output": str(output), "weights": kind}
        stage.export(ExportConfig(**arguments))
        about = json.loads((output / ABOUT).read_text())
        assert about["provenance"]["weights"] == kind
        hashes.add(about["weights_sha256"])
    assert len(hashes) == 2
    for raw, variable in zip(trainer.network.variables, written[0].variables, strict=True):
        np.testing.assert_array_equal(variable, raw)
    for variable in written[1].variables:
        np.testing.assert_array_equal(variable, averages[variable.path])


@pytest.mark.parametrize(("output", "name"), [("models/mine/12", "mine"), ("models/mine", "mine")])
def test_a_model_is_called_by_its_name_not_its_version(output, name):
    assert saved_model._name(pathlib.Path(output)) == name
