"""Checkpoints of the authors' code become model directories, and back."""

import io
import json
import logging
import pathlib

import numpy as np
import pytest

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.modeling.dolg import build_dolg, intermediates
from dolg_tf.modeling.model_dir import load_network, save_dolg
from dolg_tf.stage.config import InputError
from dolg_tf.weights import convert
from dolg_tf.weights.convert import ConvertConfig, convert_checkpoint
from dolg_tf.weights.files.tensors import open_tensors, write_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def _shapes(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def _state(standin, file):
    return {name: standin.value(name, shape) for name, shape in _shapes(file).items()}


def _reference(standin, path, file, preprocess=None):
    """Writes the authors' outputs with their inputs: a photo in BGR, normalised."""
    arrays = dict(np.load(GOLDEN / f"{file}.npz"))
    for size in {name.split("/")[0] for name in arrays}:
        image = standin.image(*map(int, size.split("x")))
        mean, std = OFFICIAL_PREPROCESSING.mean, OFFICIAL_PREPROCESSING.std
        arrays[f"{size}/image"] = image
        arrays[f"{size}/input"] = ((image[:, :, ::-1] / 255 - mean) / std).astype(np.float32)
    np.savez(path, **arrays)
    return str(path)


@pytest.fixture(scope="module")
def official(standin):
    """A stand-in official state dict of R50 without multi-atrous."""
    return _state(standin, "r50_no_multi_atrous")


@pytest.fixture(scope="module")
def checkpoint(official, tmp_path_factory):
    """Its file, under other spellings."""
    path = tmp_path_factory.mktemp("official") / "r50.pyth"
    state = {}
    for name, array in official.items():
        for stage in "1234":
            name = name.replace(f"globalmodel.s{stage}.b", f"globalmodel.conv{stage}.block")
        state[f"module.{name}"] = array
    write_tensors(path, state)
    return path


@pytest.fixture(scope="module")
def conversion(checkpoint, standin):
    """The model directory, and what the command said."""
    output = checkpoint.parent / "model"
    reference = _reference(standin, checkpoint.parent / "ref.npz", "r50_no_multi_atrous")
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    convert.log.addHandler(handler)
    convert.log.setLevel(logging.INFO)
    convert.convert_checkpoint(
        ConvertConfig(input=str(checkpoint), output=str(output), reference=reference)
    )
    convert.log.removeHandler(handler)
    return output, said.getvalue()


def test_a_checkpoint_becomes_a_directory_that_needs_no_flags(conversion, official, standin):
    network, config, provenance = load_network(conversion[0])
    assert (
        config.backbone == "resnet50"
        and not config.multi_atrous
        and config.global_pooling == "learned"
    )
    assert config.gem_p == pytest.approx(float(official["pool_g.p"][0]))
    assert config.preprocessing == OFFICIAL_PREPROCESSING
    assert provenance["file"] == "r50.pyth" and provenance["num_classes"] == 100
    assert provenance["reference"] == "ref.npz" and len(provenance["sha256"]) == 64
    expected = np.load(GOLDEN / "r50_no_multi_atrous.npz")
    image = standin.image(224, 288).astype(np.float32)[None] / 255
    ours = np.asarray(network(image))[0]
    theirs = expected["224x288/descriptor"]
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_back_to_the_authors_bit_for_bit(conversion, official):
    converted, _ = conversion
    for suffix in ("pyth", "safetensors"):
        output = converted.parent / f"back.{suffix}"
        config = ConvertConfig(input=str(converted), output=str(output), to="official")
        convert_checkpoint(config)
        back = open_tensors(output).tensors
        assert set(official) - set(back) == {"desc_cls.weight", "desc_cls.t"}
        for name, tensor in back.items():
            found, expected = tensor.read(), official[name]
            np.testing.assert_array_equal(found, expected, name)
            if name.endswith("num_batches_tracked"):
                assert tensor.dtype == "int64"
            else:
                assert found.tobytes() == expected.tobytes()
    with pytest.raises(InputError, match="exists; give --overwrite"):
        convert_checkpoint(config)


def test_the_table_says_what_became_of_each_tensor(conversion):
    _, text = conversion
    assert "sha256" in text and "resnet50, without multi-atrous, GeM p" in text
    assert "100 classes" in text and "network: descriptor" in text
    counted = {}
    for line in text.splitlines():
        cells = line.split()
        if len(cells) > 3 and cells[1].isdigit():
            counted[cells[0]] = (int(cells[1]), cells[3])
    assert counted["desc_cls"] == (2, "ignored:") and "class head" in text
    assert counted["globalmodel"] == (265, "used")
    assert sum(count for count, _ in counted.values()) == 334


def test_what_is_left_out_beside_the_weights_is_named():
    table = convert.table({"fc.bias": np.zeros(2)}, {}, ("epoch", "optimizer_state"))
    assert "optimizer_state" in table and table.count("beside the weights") == 2


def test_a_tensor_begins_no_line_of_its_own():
    table = convert.table({"fc\nok: fine.bias": np.zeros(2)}, {}, ("epoch\nok",))
    assert len(table.splitlines()) == 3 and r"fc\nok: fine" in table and r"epoch\nok" in table


def test_a_file_that_does_not_fit_leaves_nothing_and_is_named(tmp_path, standin):
    small = {"globalmodel.s1.b1.f.a.weight": np.zeros((64, 64, 1, 1), np.float32)}
    path = tmp_path / "other.npz"
    np.savez(path, **small)
    config = ConvertConfig(input=str(path), output=str(tmp_path / "model"))
    with pytest.raises(InputError, match=r"other\.npz: its stages have \[1, 0, 0, 0\] blocks"):
        convert_checkpoint(config)
    np.savez(path, **small, **{f"module.{name}": array for name, array in small.items()})
    with pytest.raises(InputError, match=r"twice, once as module\.globalmodel\.s1"):
        convert_checkpoint(config)
    assert [p.name for p in tmp_path.iterdir()] == ["other.npz"]
    path.unlink()
    with pytest.raises(InputError, match=r"other\.npz"):
        convert_checkpoint(config)


# --- reference -------------------------------------------------------------------------

SMALL = DolgConfig(backbone="resnet17_small", dilations=(1, 2), descriptor_size=16)


@pytest.fixture(scope="module")
def small():
    return build_dolg(SMALL, seed=0)


def _outputs(network, image):
    model = intermediates(network)
    outputs = {k: np.asarray(v)[0] for k, v in model(image[None].astype(np.float32) / 255).items()}
    return {
        "f4": outputs["p5"][:, :, ::2],
        "attention": outputs["attention"][:, :, 0],
        "descriptor": outputs["descriptor"],
    }


def test_errors_of_network_and_preprocessing_are_told_apart(small, standin, tmp_path):
    from dolg_tf.weights.compare import compare

    image, path = standin.image(64, 96), tmp_path / "ref.npz"
    good = _outputs(small, image)
    mean, std = np.array(SMALL.preprocessing.mean), np.array(SMALL.preprocessing.std)
    fed = ((image / 255 - mean) / std).astype(np.float32)

    def rows(**arrays):
        np.savez(path, image=image, **arrays)
        return {what: error for _, what, error in compare(small, path)}

    found = rows(**good, input=fed)
    assert set(found) == {"preprocessing"} | {
        f"{part}: {name}" for part in ("network", "both") for name in good
    }
    assert max(found.values()) < 1e-5
    # Their photo was decoded, or normalised, otherwise: the network is right all the same.
    other = np.clip(image.astype(int) + 8, 0, 255).astype(np.uint8)
    fed = ((other / 255 - mean) / std).astype(np.float32)
    found = rows(**_outputs(small, other), input=fed)
    assert found["preprocessing"] > 1e-3
    assert max(error for what, error in found.items() if what.startswith("network")) < 1e-5
    assert found["both: descriptor"] > 1e-3
    # Their network is another.
    fed = ((image / 255 - mean) / std).astype(np.float32)
    found = rows(**{**good, "descriptor": good["descriptor"] * 1.01}, input=fed)
    assert found["preprocessing"] < 1e-5 and found["network: f4"] < 1e-5
    assert found["network: descriptor"] == pytest.approx(0.01 / 1.01, rel=1e-2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"photo": np.zeros(3)}, "holds no image, only photo"),
        ({"image": np.zeros((4, 4, 3))}, r"image is float64 \(4, 4, 3\), not uint8"),
        ({"image": np.zeros((64, 64, 3), np.uint8)}, "has no output beside it"),
        (
            {"image": np.zeros((64, 64, 3), np.uint8), "descriptor": np.zeros(7)},
            r"descriptor has shape \(7,\), this network gives \(16,\)",
        ),
    ],
)
def test_a_reference_that_tells_nothing_is_refused(small, tmp_path, arrays, message):
    from dolg_tf.weights.compare import compare

    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(InputError, match=message):
        compare(small, tmp_path / "ref.npz")


def test_a_file_that_is_no_reference_is_refused(small, tmp_path):
    from dolg_tf.weights.compare import compare

    with pytest.raises(InputError, match="no such file"):
        compare(small, tmp_path / "none.npz")
    (tmp_path / "ref.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(InputError, match="is damaged"):
        compare(small, tmp_path / "ref.npz")


def test_a_network_too_far_from_the_reference_is_not_written(checkpoint, standin, tmp_path):
    reference = _reference(standin, tmp_path / "ref.npz", "r50_no_multi_atrous")
    arrays = dict(np.load(reference))
    arrays["224x288/attention"] = arrays["224x288/attention"] * 1.001
    np.savez(reference, **arrays)
    config = ConvertConfig(
        input=str(checkpoint), output=str(tmp_path / "model"), reference=reference
    )
    with pytest.raises(InputError, match=r"224x288/network: attention is 1\.0e-03 off"):
        convert_checkpoint(config)
    assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]


def test_only_what_the_authors_code_can_build_goes_back(small, tmp_path):
    save_dolg(small, SMALL, tmp_path / "model", {})
    config = ConvertConfig(
        input=str(tmp_path / "model"), output=str(tmp_path / "x.pyth"), to="official"
    )
    with pytest.raises(InputError, match="not resnet17_small"):
        convert_checkpoint(config)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["r50", "r101", "r101_no_multi_atrous"])
def test_the_authors_other_networks(standin, tmp_path, file):
    path, output = tmp_path / "official.npz", tmp_path / "model"
    np.savez(path, **_state(standin, file))
    reference = _reference(standin, tmp_path / "ref.npz", file)
    convert_checkpoint(ConvertConfig(input=str(path), output=str(output), reference=reference))
    _, config, _ = load_network(output)
    assert config.backbone == f"resnet{file[1:].split('_')[0]}"
    assert config.multi_atrous == ("no" not in file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"weights": "ema"}, "--checkpoint and --weights are for runs"),
        ({"checkpoint": "best"}, "--checkpoint and --weights are for runs"),
        ({"to": "official", "reference": "x.npz"}, "--reference is for checkpoints"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        ConvertConfig(input="in", output="out", **flags)


def test_a_wrong_suffix_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"back\.bin must end in"):
        convert_checkpoint(
            ConvertConfig(input="nowhere", output=str(tmp_path / "back.bin"), to="official")
        )
