"""The model directory: what is written can be read, and nothing else."""

import dataclasses
import json

import bits
import numpy as np
import pytest
import sealed
import tensorflow as tf

from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.files.config_file import read_config
from dolg_tf.modeling.model_dir import (
    checkpoint_variables,
    load_network,
    reading_checkpoint,
    save_dolg,
    weights_hash,
)
from dolg_tf.stage.config import InputError

CONFIG = DolgConfig(
    backbone="resnet17_small",
    dilations=(1, 2),
    descriptor_size=16,
    preprocessing=Preprocessing(channel_order="bgr"),
)


@pytest.fixture(scope="module")
def network():
    return build_dolg(CONFIG, seed=3)


def _edit(path, change):
    values = json.loads((path / "config.json").read_text())
    change(values)
    values.pop("crc32c")  # as an older release wrote it
    (path / "config.json").write_text(json.dumps(values))


def test_a_network_comes_back_with_its_config(network, tmp_path):
    save_dolg(network, CONFIG, tmp_path / "model", {"source": "test"})
    loaded = load_network(tmp_path / "model")
    assert loaded.config == CONFIG and loaded.provenance == {"source": "test"}
    image = np.random.default_rng(0).random((1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.network(image), network(image))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.weights.h5",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "change",
    [
        {"fusion": "global_only", "global_layer": "conv"},
        {"fusion": "global_only", "descriptor_size": 0, "delg_local": True},
        {"multi_atrous_context": False, "global_layer": "conv", "neck": "bn_prelu"},
        {"local_source": "p4+p5", "fusion": "hadamard", "fused_pooling": "learned"},
        pytest.param(
            {"backbone": "efficientnet_b0", "global_pooling": "learned"}, marks=pytest.mark.slow
        ),
    ],
)
def test_every_variant_of_the_network_comes_back(change, tmp_path):
    config = DolgConfig(**{**vars(CONFIG), "local_channels": 16, **change})
    network = build_dolg(config, seed=3)
    rng = np.random.default_rng(0)
    for variable in network.variables:  # statistics and slopes too
        variable.assign(rng.random(variable.shape))
    save_dolg(network, config, tmp_path / "model", {})
    loaded, found, _ = load_network(tmp_path / "model")
    assert found == config
    for ours, theirs in zip(loaded.variables, network.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_saving_replaces_the_directory_as_a_whole(network, tmp_path):
    save_dolg(network, CONFIG, tmp_path / "model", {"source": "first"})
    (tmp_path / "model" / "stray").write_text("x")
    save_dolg(network, CONFIG, tmp_path / "model", {"source": "second"})
    assert load_network(tmp_path / "model").provenance == {"source": "second"}
    assert not (tmp_path / "model" / "stray").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(format_version=1), "format_version is 1, this release reads 2"),
        (lambda v: v["model"].update(colour="red"), "unknown DolgConfig field 'colour'"),
        (lambda v: v.pop("provenance"), "has no 'provenance'"),
        (lambda v: v["model"].update(descriptor_size=8), "does not fit"),
        (lambda v: v["model"].update(multi_atrous=False), "does not fit"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(network, tmp_path, change, message):
    save_dolg(network, CONFIG, tmp_path / "model", {})
    _edit(tmp_path / "model", change)
    with pytest.raises(InputError, match=message):
        load_network(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "format_version is None, this release reads 2"),
        ('{"model": {}}', "format_version is None"),
        ('{"format_version": "1"}', "format_version is '1'"),
        ('{"format_version": 2, "model": null}', "model is None; it must be an object"),
        (
            '{"format_version": 2, "model": {}, "preprocessing": {}, "provenance": "web"}',
            "provenance is 'web'; it must be an object",
        ),
        (
            '{"format_version": 2, "model": {}, "preprocessing": [], "provenance": {}}',
            r"preprocessing is \[\]; it must be an object",
        ),
        (
            '{"format_version": 2, "model": {"gem_p": NaN}, "preprocessing": {}, "provenance": {}}',
            "gem_p is nan; it must be a finite number",
        ),
        ('{"format_version": 2, "model": {}, "data": {}, "training": 1}', "training is 1"),
    ],
)
def test_a_config_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(tmp_path)


def test_a_network_too_large_for_any_machine_is_refused(tmp_path):
    model = {"backbone": "resnet17_small", "descriptor_size": 10**30}
    values = {"format_version": 2, "model": model, "preprocessing": {}, "provenance": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "model.weights.h5").touch()
    with pytest.raises(InputError, match=r"config\.json: this network cannot be built"):
        load_network(tmp_path)


def test_the_hash_tells_networks_apart(network):
    def changed(**change):
        return weights_hash(network, dataclasses.replace(CONFIG, **change))

    first = changed()
    assert len(first) == 64 and first == changed()
    assert first != changed(preprocessing=Preprocessing(channel_order="rgb"))
    assert first != changed(dilations=(1, 3))
    variable = network.get_layer("descriptor").bias
    variable.assign(variable + 1e-6)
    assert first != changed()
    variable.assign(variable - 1e-6)


def test_the_hash_is_that_of_earlier_releases():
    network = build_dolg(CONFIG)
    for i, variable in enumerate(network.variables):
        numbers = (np.arange(np.prod(variable.shape)) + i) % 251 / 256
        variable.assign(numbers.astype(np.float32).reshape(variable.shape))
    expected = "9e6a51ee212fd9a70444fa97a3d7da524543b0957be6421624fbd4eb044dacf0"
    assert weights_hash(network, CONFIG) == expected


def test_a_run_of_nan_is_refused(network, tmp_path):
    bias = network.get_layer("descriptor").bias
    before = bias.numpy()
    bias.assign(np.full(16, np.inf))
    state = {"network": checkpoint_variables(network), "step": tf.Variable(7)}
    tf.train.CheckpointManager(
        tf.train.Checkpoint(**state), str(tmp_path / "checkpoints"), max_to_keep=1
    ).save()
    bias.assign(before)
    model = dataclasses.asdict(CONFIG)
    values = {"format_version": 2, "model": model, "data": {}, "training": {}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"ckpt-1: descriptor/bias holds NaN or infinity"):
        load_network(tmp_path)


def test_missing_and_damaged_files_are_named(network, tmp_path):
    with pytest.raises(InputError, match="is not a model or run directory"):
        load_network(tmp_path)
    save_dolg(network, CONFIG, tmp_path / "model", {})
    weights = tmp_path / "model" / "model.weights.h5"
    with bits.flipped(weights, -999), pytest.raises(InputError, match=r"h5: damaged, its checksum"):
        load_network(tmp_path / "model")
    with (
        bits.flipped(tmp_path / "model/config.json", 60),
        pytest.raises(InputError, match=r"config\.json"),
    ):
        load_network(tmp_path / "model")
    sealed.forget(tmp_path / "model/config.json")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"model\.weights\.h5 is damaged, or not an HDF5"):
        load_network(tmp_path / "model")
    weights.unlink()
    with pytest.raises(InputError, match="is an incomplete model directory"):
        load_network(tmp_path / "model")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        # TensorFlow's reader of checkpoints raises no class of its own.
        (
            tf.errors.OpError(None, None, "x.index; Permission denied", 2),
            "cannot be read (x.index;",
        ),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), "does not fit into the memory (OOM)"),
        (tf.errors.DataLossError(None, None, "checksum"), "is damaged (checksum); take another"),
    ],
)
def test_a_checkpoint_is_damaged_only_if_it_is(error, told):
    with pytest.raises(InputError) as caught, reading_checkpoint("ckpt-1"):
        raise error
    assert f"ckpt-1 {told}" in str(caught.value)
    assert ("train again" in str(caught.value)) == ("damaged" in told)
