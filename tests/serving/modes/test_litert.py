"""Mode `litert`: the network's descriptors in each precision, and where the file comes from."""

import dataclasses
import json
import re
import zipfile

import bits
import numpy as np
import pytest

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.model_dir import save_dolg, weights_hash
from dolg_tf.runtime.one_file import load_litert
from dolg_tf.serving import export as stage
from dolg_tf.serving import one_file
from dolg_tf.serving.config import ExportConfig
from dolg_tf.stage.config import InputError

interpreters = pytest.importorskip("ai_edge_litert.interpreter")
litert = pytest.importorskip("dolg_tf.serving.modes.litert")

pytestmark = pytest.mark.slow  # the converter takes 20 s


@pytest.fixture(scope="module")
def loaded(network, dolg_config):
    """Makes exports take `network` itself: building it again takes seconds."""
    found = (network, dolg_config, {"source": "test"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_file, "load_source", lambda _: found)
        yield


@pytest.fixture(scope="module")
def exported(model_dir, loaded, tmp_path_factory):
    output = tmp_path_factory.mktemp("litert") / "small.tflite"
    return stage.export(ExportConfig(mode="litert", model_dir=str(model_dir), output=str(output)))


def _describe(path):
    return interpreters.Interpreter(str(path)).get_signature_runner("serving_default")


def test_it_gives_the_networks_unit_descriptors(exported, network, photos):
    describe = _describe(exported)
    for shape in ((1, 61, 83, 3), (3, 40, 33, 3), (2, 1, 5, 3)):
        floats = photos(*shape).astype(np.float32) / 255
        expected = np.asarray(network(floats))
        expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(describe(image=floats)["descriptor"], expected, atol=2e-6)


def test_it_needs_no_operations_but_litert_own(exported):
    interpreter = interpreters.Interpreter(str(exported))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["descriptor"]}
    }
    assert not [op for op in interpreter._get_ops_details() if op["op_name"].startswith("Flex")]


def test_it_tells_where_it_comes_from(exported, network, dolg_config):
    with zipfile.ZipFile(exported) as archive:
        about = json.loads(archive.read("dolg.json"))
    assert about["mode"] == "litert" and about["quantize"] == "none"
    assert about["provenance"] == {"source": "test"}
    assert about["weights_sha256"] == weights_hash(network, dolg_config)


def test_the_code_of_its_card_runs(exported, photos, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(exported.parent)
    Image.fromarray(photos(50, 70, 3)).save("photo.jpg", quality=95)
    card = (exported.parent / "small.tflite.md").read_text()
    (code,) = re.findall("```python\n(.*?)```", card, re.S)
    names = {}
    exec(code, names)
    floats = np.asarray(Image.open("photo.jpg"), np.float32)[None] / 255
    np.testing.assert_array_equal(
        names["descriptor"], _describe(exported)(image=floats)["descriptor"][0]
    )


@pytest.mark.parametrize("quantize", ["none", "float16", "dynamic"])
def test_a_file_that_is_too_far_off_is_refused(exported, network, quantize, monkeypatch):
    about = {"quantize": quantize}
    source = one_file.Exported(one_file._describe(network), [], about)
    limit = litert._COSINE.get(quantize)
    right, wrong = (1e-5, 1.1e-5) if limit is None else (limit, limit - 1e-4)
    for far in (right, wrong, np.nan):
        cosine = 1.0 if limit is None else far
        found = one_file.Distance(far if limit is None else 0.1, cosine)
        monkeypatch.setattr(one_file, "distance", lambda *_, found=found: found)
        if far == right:
            assert litert._check(source, exported) == found
        else:
            with pytest.raises(RuntimeError, match=f"--quantize={quantize} are too far"):
                litert._check(source, exported)


def test_a_failure_leaves_nothing(model_dir, loaded, tmp_path, monkeypatch):
    def write(_, path):
        path.write_bytes(b"cut")
        raise OSError("disk full")

    monkeypatch.setattr(litert, "MODE", dataclasses.replace(litert.MODE, write=write))
    config = ExportConfig(
        mode="litert", model_dir=str(model_dir), output=str(tmp_path / "o" / "m.tflite")
    )
    with pytest.raises(OSError, match="disk full"):
        stage.export(config)
    assert not list((tmp_path / "o").iterdir())


@pytest.mark.parametrize(("quantize", "share"), [("float16", 0.51), ("dynamic", 0.26)])
def test_quantised_files_are_smaller_and_near(
    model_dir, loaded, exported, tmp_path, quantize, share
):
    output = tmp_path / "m.tflite"
    arguments = {"model_dir": str(model_dir), "output": str(output), "quantize": quantize}
    stage.export(ExportConfig(mode="litert", **arguments))
    assert output.stat().st_size < share * exported.stat().st_size
    floats = np.random.default_rng(1).random((1, 80, 60, 3), np.float32)
    expected, found = (_describe(p)(image=floats)["descriptor"][0] for p in (exported, output))
    # Near but not equal: it did compute in lower precision.
    assert litert._COSINE[quantize] < found @ expected
    assert np.abs(found - expected).max() > 1e-5


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_b0", "efficientnet_lite0"])
def test_the_papers_and_mobile_networks_are_exported(backbone, tmp_path):
    config = DolgConfig(backbone=backbone)
    save_dolg(build_dolg(config, seed=1), config, tmp_path / "model", {})
    for quantize in ("none", "dynamic"):
        output = tmp_path / f"{quantize}.tflite"
        arguments = {"model_dir": str(tmp_path / "model"), "output": str(output)}
        stage.export(ExportConfig(mode="litert", **arguments, quantize=quantize))


def test_a_flipped_bit_is_told(exported):
    """Of the network by our checksum, of the zip behind it by the zip's own."""
    size = exported.stat().st_size
    for at in (0, 100, size // 3, size // 2):
        with bits.flipped(exported, at), pytest.raises(InputError, match=r"tflite: damaged, "):
            load_litert(exported)
    start = exported.read_bytes().rindex(b'{\n "mode"')
    with bits.flipped(exported, start + 9), pytest.raises(zipfile.BadZipFile):
        load_litert(exported)
    assert load_litert(exported).about["mode"] == "litert"
