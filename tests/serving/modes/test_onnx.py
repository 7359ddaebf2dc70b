"""Mode `onnx`: the network's descriptors, where the file comes from, and refusals."""

import dataclasses
import importlib.util
import json
import re

import bits
import numpy as np
import pytest

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import save_dolg, weights_hash
from dolg_tf.runtime.one_file import load_onnx
from dolg_tf.serving import export as stage
from dolg_tf.serving import one_file
from dolg_tf.serving.config import ExportConfig
from dolg_tf.stage.config import InputError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("tf2onnx")
mode = pytest.importorskip("dolg_tf.serving.modes.onnx")


@pytest.fixture(scope="module")
def exported(model_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("onnx") / "small.onnx"
    return stage.export(ExportConfig(mode="onnx", model_dir=str(model_dir), output=str(output)))


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(str(exported), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def source(network):
    """The network that the file is compared with."""
    return one_file.Exported(one_file._describe(network), [], {})


@pytest.fixture
def loaded(network, dolg_config, monkeypatch):
    """Makes exports take `network` itself: building it again takes seconds."""
    monkeypatch.setattr(one_file, "load_source", lambda _: (network, dolg_config, {}))


def test_it_gives_the_networks_unit_descriptors(session, network, photos):
    for shape in ((1, 61, 83, 3), (3, 40, 33, 3), (2, 1, 5, 3)):
        floats = photos(*shape).astype(np.float32) / 255
        expected = np.asarray(network(floats))
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
        (found,) = session.run(None, {"image": floats})
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_several_scales_outside_are_the_authors_descriptor(session, many_scales, photos):
    from dolg_tf.data import images

    photo, scales = photos(61, 83, 3), (0.7071, 1.0, 1.4142)
    rows = []
    for scale in scales:
        size = (round(61 * scale), round(83 * scale))
        floats = images.resize(photo[None].astype(np.float32) / 255, *size).numpy()
        rows.append(session.run(["descriptor"], {"image": floats})[0][0])
    mean = np.mean(rows, axis=0)
    expected = many_scales(photo, scales)
    np.testing.assert_allclose(mean / np.linalg.norm(mean), expected, atol=2e-6)


def test_its_names_and_sizes(session):
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type) == ("image", "tensor(float)")
    assert taken.shape == ["batch", "height", "width", 3]
    assert (given.name, given.type, given.shape) == ("descriptor", "tensor(float)", ["batch", 16])


def test_its_metadata_tell_where_it_comes_from(session, network, dolg_config):
    about = session.get_modelmeta().custom_metadata_map
    assert about["mode"] == "onnx" and json.loads(about["provenance"]) == {"source": "test"}
    assert about["weights_sha256"] == weights_hash(network, dolg_config)
    assert json.loads(about["preprocessing"])["channel_order"] == "rgb"


def test_the_code_of_its_card_runs(exported, photos, session, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(exported.parent)
    photo = photos(50, 70, 3)
    Image.fromarray(photo).save("photo.jpg", quality=95)
    (code,) = re.findall(
        "```python\n(.*?)```", (exported.parent / "small.onnx.md").read_text(), re.S
    )
    names = {}
    exec(code, names)
    seen = np.asarray(Image.open("photo.jpg"), np.float32)[None] / 255
    (expected,) = session.run(None, {"image": seen})
    np.testing.assert_array_equal(names["descriptor"], expected[0])


def test_a_missing_model_or_package_leaves_nothing(tmp_path, monkeypatch):
    config = ExportConfig(
        mode="onnx", model_dir=str(tmp_path / "none"), output=str(tmp_path / "o" / "m.onnx")
    )
    with pytest.raises(InputError, match="not a model or run directory"):
        stage.export(config)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else find(name)
    )
    with pytest.raises(
        InputError, match=r"--mode=onnx: tf2onnx is missing; pip install .*\[onnx\]"
    ):
        stage.export(config)
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_is_not_put_in_place(model_dir, loaded, exported, tmp_path, monkeypatch):
    def write(_, path):
        model = onnx.load(exported)
        del model.metadata_props[-1]  # the checksum
        for tensor in model.graph.initializer:
            if list(tensor.dims)[-1:] == [16]:
                values = onnx.numpy_helper.to_array(tensor) + np.float32(0.1)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(mode, "MODE", dataclasses.replace(mode.MODE, write=write))
    with pytest.raises(RuntimeError, match="too far from the network's: largest difference"):
        stage.export(
            ExportConfig(mode="onnx", model_dir=str(model_dir), output=str(tmp_path / "m.onnx"))
        )
    assert not list(tmp_path.iterdir())


def test_existing_files_are_kept_unless_told(model_dir, loaded, exported, tmp_path, monkeypatch):
    data = exported.read_bytes()
    copies = dataclasses.replace(
        mode.MODE,
        write=lambda _, path: path.write_bytes(data),
        check=lambda *_: one_file.Distance(0.0, 1.0),
    )
    monkeypatch.setattr(mode, "MODE", copies)
    config = ExportConfig(mode="onnx", model_dir=str(model_dir), output=str(tmp_path / "m.onnx"))
    for mine in (tmp_path / "m.onnx.md", tmp_path / "m.onnx"):
        mine.write_text("mine")
        with pytest.raises(InputError, match=f"{mine.name} exists; give --overwrite"):
            stage.export(config)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
        mine.unlink()
    (tmp_path / "m.onnx").write_text("mine")
    stage.export(dataclasses.replace(config, overwrite=True))
    assert (tmp_path / "m.onnx").read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.md"}


@pytest.mark.parametrize("wrong", [np.zeros((1, 15), np.float32), np.zeros((1, 16))])
def test_descriptors_of_another_shape_or_dtype_are_refused(source, wrong):
    with pytest.raises(RuntimeError, match=r"descriptors of \(1, 97, 130, 3\) are float"):
        one_file.distance(source, lambda photos: wrong)


def test_a_nan_is_far_from_the_network(source):
    def run(photos):
        found = source.describe(photos)["descriptor"].numpy()
        return found if photos.shape[1] != 32 else found * np.nan

    assert not one_file.distance(source, run).difference <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "efficientnet_lite0"])
def test_the_papers_and_mobile_networks_are_exported(backbone, tmp_path):
    config = DolgConfig(backbone=backbone, local_channels=64)  # tf2onnx needs much memory
    save_dolg(build_dolg(config, seed=1), config, tmp_path / "model", {})
    output = tmp_path / "model.onnx"
    stage.export(ExportConfig(mode="onnx", model_dir=str(tmp_path / "model"), output=str(output)))
    operations = {node.op_type for node in onnx.load(output).graph.node}
    assert "Conv" in operations and not operations & {"Loop", "If", "BatchNormalization"}


def test_a_flipped_bit_is_told(exported):
    """Also in the digits of the checksum itself, at the end."""
    size = exported.stat().st_size
    for at in (0, 100, size // 3, size // 2, size - 40, size - 1):
        with bits.flipped(exported, at), pytest.raises(InputError, match=r"small\.onnx: damaged, "):
            load_onnx(exported)
    assert load_onnx(exported).about["mode"] == "onnx"


def test_a_file_without_a_checksum_is_read(exported, tmp_path):
    old = tmp_path / "old.onnx"
    old.write_bytes(exported.read_bytes()[:-20])
    assert load_onnx(old).about["mode"] == "onnx"
