"""Checkpoints of HOW's authors, in both forms, become model directories; strictly."""

import pathlib

import numpy as np
import pytest

from dolg_tf.modeling.config import HowConfig, Preprocessing
from dolg_tf.modeling.how import build_how
from dolg_tf.modeling.model_dir import load_network, save_dolg, weights_hash
from dolg_tf.stage.config import InputError
from dolg_tf.weights.convert import ConvertConfig, convert_checkpoint
from dolg_tf.weights.files.tensors import open_tensors, write_tensors
from dolg_tf.weights.how import detect, how_entries, load_state_dict

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
NET_PARAMS = {
    "architecture": "resnet50",
    "pretrained": None,
    "skip_layer": 1,
    "dim_reduction": {"dim": 128},
    "smoothing": {"kernel_size": 3},
    "runtime": {
        "mean_std": IMAGENET,
        "image_size": 1024,
        "features_num": 1000,
        "scales": [2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25],
        "training_scales": [1],
    },
}
OLD_META = {
    "architecture": "resnet50",
    "skip_layer": 1,
    "dim": 128,
    "feat_pool_k": 3,
    "mean": IMAGENET[0],
    "std": IMAGENET[1],
}


def write_checkpoint(path, state, **beside):
    write_tensors(path, state, beside)
    return path


def _named(state, whitening):
    return {name.replace("dim_reduction", whitening): array for name, array in state.items()}


def _reference(path, standin):
    """Writes what the authors' code computes, for --reference."""
    golden = np.load(GOLDEN / "how_r50.npz")
    names = {"backbone": "features", "smoothed": "smoothed", "reduced": "reduced"}
    arrays = {ours: golden[f"97x130/{theirs}"] for theirs, ours in names.items()}
    arrays |= {
        "image": standin.image(97, 130),
        "input": ((standin.image(97, 130) / 255 - IMAGENET[0]) / IMAGENET[1]).astype(np.float32),
        "attention": golden["97x130/attention_raw"],
    }
    np.savez(path, **arrays)
    return str(path)


def test_both_forms_become_the_same_network(how_state, how_r50, standin, tmp_path):
    reference = _reference(tmp_path / "reference.npz", standin)
    files = {
        "new": write_checkpoint(
            tmp_path / "how_r50-.pth",
            how_state,
            epoch=3,
            optimizer={"param_groups": [{"lr": 1e-6}]},
            net_params=NET_PARAMS,
            _version="how/2020",
        ),
        "old": write_checkpoint(
            tmp_path / "old.pth", _named(how_state, "whiten"), epoch=3, meta=OLD_META
        ),
    }
    digest = weights_hash(*how_r50)
    for name, path in files.items():
        output = tmp_path / name
        convert_checkpoint(ConvertConfig(input=str(path), output=str(output), reference=reference))
        loaded = load_network(output)
        assert weights_hash(loaded.network, loaded.config) == digest
        assert loaded.provenance["source"] == "checkpoint of the HOW authors' code"
        assert loaded.provenance["file"] == path.name


def test_back_to_the_authors_bit_for_bit(how_state, tmp_path):
    first = write_checkpoint(
        tmp_path / "how.pth", how_state, epoch=3, net_params=NET_PARAMS, _version="how/2020"
    )
    model, output = tmp_path / "model", tmp_path / "back.pth"
    convert_checkpoint(ConvertConfig(input=str(first), output=str(model)))
    convert_checkpoint(ConvertConfig(input=str(model), output=str(output), to="official"))
    back = open_tensors(output)
    assert back.values == {
        "net_params": NET_PARAMS | {"pretrained": False},
        "_version": "how/2020",
    }
    assert set(back.tensors) == set(how_state)
    for name, tensor in back.tensors.items():
        expected = np.asarray(how_state[name])
        if name.endswith("num_batches_tracked"):
            expected = np.zeros((), np.int64)
        found = tensor.read()
        assert found.shape == expected.shape and found.dtype == expected.dtype, name
        assert found.tobytes() == expected.tobytes(), name
    with pytest.raises(
        InputError, match=r"back\.npz must end in one of \.pyth, \.pth, \.pt; the other"
    ):
        convert_checkpoint(
            ConvertConfig(input=str(model), output=str(tmp_path / "back.npz"), to="official")
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            HowConfig(backbone="resnet17_small", local_source="p5", dimensions=8),
            "has the backbones resnet18, .*, not resnet17_small",
        ),
        (
            HowConfig(
                backbone="resnet18", dimensions=8, preprocessing=Preprocessing(channel_order="bgr")
            ),
            "authors feeds RGB, this network takes BGR",
        ),
    ],
)
def test_what_the_authors_code_cannot_build_stays(tmp_path, config, message):
    save_dolg(build_how(config), config, tmp_path / "model", {})
    output = tmp_path / "x.pth"
    with pytest.raises(InputError, match=message):
        convert_checkpoint(
            ConvertConfig(input=str(tmp_path / "model"), output=str(output), to="official")
        )
    assert not output.exists()


def test_a_reference_that_differs_writes_nothing(how_state, standin, tmp_path):
    path = write_checkpoint(tmp_path / "how.pth", how_state)
    reference = tmp_path / "reference.npz"
    _reference(reference, standin)
    arrays = dict(np.load(reference))
    np.savez(reference, **{**arrays, "attention": arrays["attention"] * np.float32(1.001)})
    config = ConvertConfig(
        input=str(path), output=str(tmp_path / "model"), reference=str(reference)
    )
    with pytest.raises(InputError, match=r"network: attention is 1\.0e-03 off"):
        convert_checkpoint(config)
    assert not (tmp_path / "model").exists()


def test_every_tensor_has_a_place_and_every_variable_is_filled(how_state):
    network = build_how(HowConfig())
    entries = how_entries(network)
    assert {id(v) for _, v, _ in entries} == {id(v) for v in network.variables}
    ignored = load_state_dict(network, how_state)
    assert {name for name, _, _ in entries} | set(ignored) == set(how_state)
    assert len(how_state) == 260
    assert all(name.endswith("num_batches_tracked") for name in ignored)


@pytest.mark.parametrize("change", ["missing", "left over", "twice"])
def test_tensors_that_are_missing_or_too_many_are_named(how_state, tmp_path, change):
    state, message = dict(how_state), ""
    if change == "missing":
        del state["features.5.1.bn2.running_mean"]
        message = r"it has no features\.5\.1\.bn2\.running_mean, which"
    elif change == "left over":
        state["features.8.weight"] = np.zeros(3, np.float32)
        message = r"its features\.8\.weight fits nothing in this network"
    else:
        state["whiten.weight"] = state["dim_reduction.weight"]
        message = r"holds dim_reduction\.weight twice, once as whiten\.weight"
    path = write_checkpoint(tmp_path / "how.pth", state, net_params=NET_PARAMS)
    with pytest.raises(InputError, match=message):
        convert_checkpoint(ConvertConfig(input=str(path), output=str(tmp_path / "model")))
    assert not (tmp_path / "model").exists()


def _shapes_of_resnet18():
    """Names of the tensors that tell a ResNet-18, with arrays of no memory."""
    state = {"features.0.weight": np.zeros((64, 3, 7, 7), np.float32)}
    for part in (4, 5, 6, 7):
        for block in (0, 1):
            state[f"features.{part}.{block}.conv1.weight"] = np.zeros(1, np.float32)
    return state | {"dim_reduction.weight": np.zeros((128, 512, 1, 1), np.float32)}


def test_a_resnet18_is_whole():
    assert detect(_shapes_of_resnet18(), {}) == HowConfig(backbone="resnet18", local_source="p5")


def test_colours_are_normalised_as_the_checkpoint_says(how_state):
    other = {"runtime": {"mean_std": [[0.5, 0.4, 0.3], [0.2, 0.2, 0.1]]}}
    expected = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1))
    assert detect(how_state, {"net_params": other}).preprocessing == expected
    old = {"meta": {"mean": expected.mean, "std": expected.std}}
    assert detect(how_state, old).preprocessing == expected


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"_version": "how/2030"}, "its _version is 'how/2030'; how/2020 is known"),
        (
            {"net_params": {"architecture": "resnet101"}},
            "it says architecture 'resnet101', but its tensors are of a network with resnet50",
        ),
        ({"meta": {"skip_layer": 0}}, "it says skip_layer 0, but its tensors are of .* with 1"),
        ({"meta": {"dim": 64}}, "it says dimensions 64, but"),
        (
            {"net_params": {"smoothing": {"kernel_size": 5}}},
            "its smoothing is over 5 cells; only 3 is known",
        ),
        (
            {"net_params": {"runtime": {"mean_std": [[1, 2], [3, 4, 5]]}}},
            "its mean and deviation of colours are .* must be two lists of three numbers",
        ),
        (
            {"net_params": {"runtime": {"mean_std": "imagenet"}}},
            "its mean and deviation of colours are 'imagenet'",
        ),
    ],
)
def test_what_contradicts_the_tensors_is_told(how_state, beside, message):
    with pytest.raises(InputError, match=message):
        detect(how_state, beside)


def test_other_networks_are_refused(how_state):
    shallow = {name: array for name, array in how_state.items() if "features.6" not in name}
    with pytest.raises(InputError, match=r"its stacks have \[3, 4\] bottleneck blocks"):
        detect(shallow, {})
    flat = how_state | {"dim_reduction.weight": np.zeros((128, 1024), np.float32)}
    with pytest.raises(InputError, match=r"its whitening has shape \(128, 1024\)"):
        detect(flat, {})
