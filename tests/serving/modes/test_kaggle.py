"""Mode `kaggle`: called as the scorer of Landmark Retrieval 2020 calls it; whitening."""

import hashlib
import json
import zipfile

import numpy as np
import openvino_runs
import pytest
import tensorflow as tf

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.whitening.stages import WhitenedRows
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.whitening import load_whitening, write_whitening
from dolg_tf.serving import export as stage
from dolg_tf.serving import saved_model
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.modes import kaggle
from dolg_tf.serving.saved_model import Inside
from dolg_tf.stage.config import InputError

SCALES = (0.7071, 1.0)


@pytest.fixture(scope="module")
def whitening_file(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("whitening") / "whitening.npz", np.random.default_rng(0)
    np.savez(path, mean=rng.normal(size=16) / 8, projection=rng.normal(size=(16, 5)))
    return path


@pytest.fixture(scope="module")
def exported(export, whitening_file):
    return export(mode="kaggle", scales=SCALES, zip=True, whitening=str(whitening_file))


def _whitened(row, path):
    stored = np.load(path)
    row = (row - stored["mean"]) @ stored["projection"]
    return row / np.linalg.norm(row)


@pytest.mark.slow
def test_the_scorer_gets_one_unit_descriptor(
    exported, tmp_path, photos, many_scales, whitening_file
):
    zipfile.ZipFile(exported / "submission.zip").extractall(tmp_path)
    image = tf.convert_to_tensor(photos(61, 83, 3))
    found = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](image)[
        "global_descriptor"
    ]
    assert found.dtype == tf.float32 and found.shape == (5,)
    np.testing.assert_allclose(np.linalg.norm(found), 1.0, rtol=1e-5)
    expected = _whitened(many_scales(photos(61, 83, 3), SCALES), whitening_file)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_openvino_gives_the_same(exported, photos, many_scales, whitening_file):
    for size in ((61, 83), (10, 10)):
        photo = photos(*size, 3)
        found = openvino_runs.run(exported, {"input_image": photo})["global_descriptor"]
        expected = _whitened(many_scales(photo, SCALES), whitening_file)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_models_files_lie_at_the_root_of_the_archive(tmp_path):
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / name).write_text(name)
    config = ExportConfig(model_dir="m", output="o", mode="kaggle", zip=True)
    kaggle.MODE.add_files(tmp_path, config)
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["saved_model.pb", "variables/variables.index"]


@pytest.mark.slow
def test_about_tells_the_whitening(exported, whitening_file):
    about = json.loads((exported / "assets.extra" / "dolg.json").read_text())
    sha256 = hashlib.sha256(whitening_file.read_bytes()).hexdigest()
    assert about["whitening"] == {"sha256": sha256}
    assert about["mode"] == "kaggle" and about["scales"] == list(SCALES)


@pytest.mark.parametrize("whitened", [False, True])
def test_scales_and_whitening_are_inside(network, photos, many_scales, whitening_file, whitened):
    config = ExportConfig(model_dir="m", output="o", mode="kaggle", scales=SCALES)
    whitening = load_whitening(whitening_file, 16) if whitened else None
    describe = kaggle.functions(network, config, Inside(whitening))["serving_default"]
    for size in ((40, 60), (10, 10)):
        photo = photos(*size, 3)
        expected = many_scales(photo, SCALES)
        if whitened:
            # So does the command that whitens descriptors extracted without it.
            (row,) = WhitenedRows(DescriptorSet(("x",), expected[None]), whitening)[:1]
            expected = _whitened(expected, whitening_file)
            np.testing.assert_allclose(row, expected, atol=1e-6)
        np.testing.assert_allclose(describe(photo)["global_descriptor"], expected, atol=1e-5)


@pytest.mark.slow
def test_images_and_encoded_photos_are_whitened_too(export, photos, many_scales, whitening_file):
    photo = photos(40, 60, 3)
    expected = _whitened(many_scales(photo, SCALES), whitening_file)
    inputs = {"images": photo[None], "scales": np.asarray(SCALES, np.float32)}
    png = tf.io.encode_png(photo).numpy()
    with CppSession(export(scales=SCALES, whitening=str(whitening_file))) as session:
        for found in (
            session.run("images", inputs)["descriptors"],
            session.run("serving_default", {"image_bytes": [png]})["descriptors"],
        ):
            np.testing.assert_allclose(found, expected[None], atol=1e-5)


def test_a_whitening_of_another_model_is_refused(model_dir, tmp_path):
    path, output = tmp_path / "whitening.npz", tmp_path / "model"
    write_whitening(path, np.zeros(16), np.eye(16), "another")
    config = ExportConfig(model_dir=str(model_dir), output=str(output), whitening=str(path))
    with pytest.raises(InputError, match=r"was learned on descriptors of model another, .* is "):
        stage.export(config)
    assert not output.exists()


def test_a_whitening_fits_the_model_in_either_precision(tmp_path):
    config = ExportConfig(model_dir="m", output="o", whitening=str(tmp_path / "w.npz"))
    for learned_on in ("weights", saved_model.export_hash("weights", "bfloat16", None)):
        write_whitening(tmp_path / "w.npz", np.zeros(4), np.eye(4), learned_on)
        assert saved_model._learned("--whitening", 4, config, "weights").model_hash == learned_on
