"""The start of a run: the network of another run, and its class head for the same landmarks."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
import sealed
import tensorflow as tf
import tiny

from dolg_tf.data.records.classes import write_classes
from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig, Preprocessing
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.heads import build_head
from dolg_tf.modeling.model_dir import load_head, load_network, save_dolg
from dolg_tf.stage.config import InputError
from dolg_tf.training import loop, start
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.run_log import check_run, write_run
from dolg_tf.training.start import adopt_network, adopt_preprocessing, initialize
from dolg_tf.training.trainer import Trainer

BGR = dataclasses.replace(tiny.MODEL, preprocessing=OFFICIAL_PREPROCESSING)
FIRST, OTHER = "a" * 64, "b" * 64  # landmarks_sha256 of two sets of records


def _trainer(training, model=BGR):
    return Trainer(model, training, tiny.CLASSES, 10, make_strategy())


@pytest.fixture(scope="module")
def source(data, tmp_path_factory):
    """A run directory with checkpoints of steps 3 and 4, and the trainer of the latter."""
    training = tiny.recipe(tmp_path_factory.mktemp("source") / "run", seed=7)
    trainer = _trainer(training)
    write_run(BGR, data, training, FIRST)
    logdir = tmp_path_factory.getbasetemp() / training.logdir
    checkpoints = Checkpoints(logdir, trainer.state(), 2, chief=True)
    for step in (3, 4):
        trainer.step.assign(step)
        for variable in (*trainer.network.variables, *trainer.head.variables):
            variable.assign(variable.value + 0.125)
        checkpoints.save()
    return training.logdir, trainer


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A trainer that tests restart, since building one takes a second."""
    return _trainer(tiny.recipe(tmp_path_factory.mktemp("fresh"), ema_decay=0.9))


def test_the_network_before_the_first_step_is_built_again(source):
    logdir, trainer = source
    network, config, _ = start.initial_network(logdir)
    assert config == BGR
    for before, after in zip(network.variables, trainer.network.variables, strict=True):
        np.testing.assert_allclose(before + 0.25, after, atol=1e-6, err_msg=before.path)


def _start(trainer, init_from, landmarks, caplog) -> str:
    """Starts a trainer whose network holds zeros; returns the last line of the log."""
    caplog.set_level(logging.INFO)
    for variable in trainer.network.variables:
        variable.assign(np.zeros(variable.shape))
    trainer.training = dataclasses.replace(trainer.training, init_from=str(init_from))
    initialize(trainer, landmarks, None)
    return caplog.messages[-1]


def _assert_same(ours, theirs):
    for variable, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)


def test_a_run_gives_its_latest_network_and_the_head_of_the_same_landmarks(source, fresh, caplog):
    path, theirs = source
    said = _start(fresh, path, FIRST, caplog)
    _assert_same(fresh.network, theirs.network)
    _assert_same(fresh.head, theirs.head)
    assert said.endswith("class head: adopted, since the landmarks are the same")
    state = fresh.state()
    for path, average in state["ema"].items():
        raw = state["network"].get(path, fresh.head.kernel)
        np.testing.assert_array_equal(average, raw)


def test_a_model_directory_gives_its_network_alone(source, fresh, tmp_path, caplog):
    _, theirs = source
    save_dolg(theirs.network, BGR, tmp_path / "model", {})
    before = [np.asarray(variable) for variable in fresh.head.variables]
    said = _start(fresh, tmp_path / "model", FIRST, caplog)
    _assert_same(fresh.network, theirs.network)
    assert said.endswith("class head: random, since a model directory has none")
    for variable, was in zip(fresh.head.variables, before, strict=True):
        np.testing.assert_array_equal(variable, was)


@pytest.mark.parametrize(
    ("landmarks", "classes", "loss", "message"),
    [
        (OTHER, 4, "arcface", "random, since the 4 classes are other landmarks (relabeling.csv"),
        (FIRST, 5, "arcface", "random, since this run has 5 classes and that one 4"),
        (FIRST, 4, "curricularface", "random, since that run has another --loss or --sub_centers"),
        (FIRST, 4, "subcenter_arcface", "random, since that run has another --loss or --sub_cent"),
        (None, 4, "arcface", "adopted, with 4 classes; without relabeling.csv they cannot be"),
    ],
    ids=["landmarks", "classes", "variables", "shapes", "unknown"],
)
def test_a_head_of_other_landmarks_or_classes_or_loss_is_left(
    source, fresh, caplog, monkeypatch, landmarks, classes, loss, message
):
    path, theirs = source
    monkeypatch.setattr(start, "load_network", lambda _: (theirs.network, BGR, {}))  # tested above
    head = build_head(dataclasses.replace(fresh.training, loss=loss), classes)
    head.build((None, BGR.descriptor_size))
    before = [np.asarray(variable) for variable in head.variables]
    monkeypatch.setattr(fresh, "head", head)
    assert f"class head: {message}" in _start(fresh, path, landmarks, caplog)
    if message.startswith("adopted"):
        _assert_same(head, theirs.head)
    else:
        for variable, was in zip(head.variables, before, strict=True):
            np.testing.assert_array_equal(variable, was)


def test_the_network_is_the_sources_without_any_flag(source, caplog):
    caplog.set_level(logging.INFO)
    path, _ = source
    assert adopt_network(DolgConfig(), path) == BGR  # preprocessing too
    assert f"backbone resnet17_small, as in {path}" in caplog.messages


def test_a_flag_that_contradicts_the_source_is_refused_by_name(source, tmp_path):
    path, _ = source
    for name, value in (("backbone", "resnet18"), ("multi_atrous", False), ("gem_p", 4.6)):
        with pytest.raises(InputError, match=f"has {name} .*, this run {value}; omit --{name}"):
            adopt_network(DolgConfig(**{name: value}), path)
    assert adopt_network(DolgConfig(global_pooling="learned"), path).global_pooling == "learned"
    with pytest.raises(InputError, match="has fused_pooling average, this run gem"):
        adopt_network(DolgConfig(fused_pooling="gem"), path)
    with pytest.raises(InputError, match="nowhere is not a model or run directory"):
        adopt_network(DolgConfig(), str(tmp_path / "nowhere"))


def test_a_chain_of_sizes_keeps_the_head_and_needs_its_source_once(
    data, tmp_path, monkeypatch, caplog
):
    """256, then 448: each run starts from the one before. The steps themselves are not run."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: tf.constant([1.0, 0.0, 8.0, 0.0, 1.0]))
    monkeypatch.setattr(loop, "attention_pictures", lambda *_: None)
    folder = tmp_path / "records"
    shutil.copytree(data.train_file_pattern.removesuffix("/train-*"), folder)
    write_classes(folder, "abcd", np.full(tiny.CLASSES, 8))
    pattern = str(folder / "train-*")
    small = dataclasses.replace(data, train_file_pattern=pattern, validation_file_pattern="")
    large = dataclasses.replace(small, image_size=48)
    first, second = tmp_path / "small", tmp_path / "large"
    loop.train(tiny.MODEL, small, tiny.recipe(first, max_steps=1))
    training = tiny.recipe(second, init_from=str(first), seed=1, max_steps=1)
    loop.train(DolgConfig(), large, training)
    assert any("the landmarks are the same" in line for line in caplog.messages)
    heads = [load_head(path)["kernel"] for path in (first, second)]
    np.testing.assert_array_equal(*heads)
    # What the run needs is its own now.
    shutil.rmtree(first)
    loop.train(DolgConfig(), large, dataclasses.replace(training, max_steps=2))
    assert tf.train.latest_checkpoint(str(second / "checkpoints")).endswith("ckpt-2")


def test_preprocessing_comes_with_the_weights_and_stays(data, tmp_path, monkeypatch, caplog):
    """In the network, in config.json, in a run that continues, and in one that starts from it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(Trainer, "train_step", lambda *_: tf.constant([1.0, 0.0, 8.0, 0.0, 1.0]))
    monkeypatch.setattr(loop, "attention_pictures", lambda *_: None)
    lite = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    asked, filled = [], []
    monkeypatch.setattr(start, "preprocessing", lambda *given: asked.append(given) or lite)
    monkeypatch.setattr(start, "load_backbone", lambda *given: filled.append(given))
    data = dataclasses.replace(data, validation_file_pattern="")
    training = tiny.recipe(tmp_path, backbone_weights="efficientnet_lite0", max_steps=1)
    loop.train(tiny.MODEL, data, training)
    assert asked == [("efficientnet_lite0", tiny.MODEL)]
    [(network, source)] = filled
    assert source == "efficientnet_lite0"
    assert network.get_layer("normalization").std == lite.std
    assert any(line.startswith("preprocessing of efficientnet_lite0: ") for line in caplog.messages)
    assert load_network(tmp_path).config == dataclasses.replace(tiny.MODEL, preprocessing=lite)
    # They are needed once: the package may be gone.
    loop.train(tiny.MODEL, data, dataclasses.replace(training, max_steps=2))
    assert len(asked) == len(filled) == 1
    assert tf.train.latest_checkpoint(str(tmp_path / "checkpoints")).endswith("ckpt-2")
    assert adopt_network(DolgConfig(), str(tmp_path)).preprocessing == lite


def test_without_weights_the_preprocessing_is_the_runs(tmp_path):
    assert adopt_preprocessing(BGR, tiny.recipe(tmp_path)) == BGR


def test_a_run_of_a_release_without_an_option_goes_on(data, tmp_path):
    training = tiny.recipe(tmp_path)
    write_run(tiny.MODEL, data, training, None)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "checkpoint").touch()
    values = json.loads((tmp_path / "config.json").read_text())["model"]
    del values["stride32"]
    sealed.change(tmp_path / "config.json", model=values)
    check_run(tiny.MODEL, data, training, None)
    assert adopt_network(DolgConfig(), str(tmp_path)) == tiny.MODEL
    changed = dataclasses.replace(tiny.MODEL, stride32="top_conv")
    with pytest.raises(InputError, match="with --stride32=last_block, not top_conv"):
        check_run(changed, data, training, None)


def test_a_run_without_checkpoint_takes_its_source_as_it_is_now(data, source, tmp_path):
    logdir, _ = source
    training = tiny.recipe(tmp_path / "run", init_from=logdir)
    write_run(tiny.MODEL, data, training, FIRST)  # died before its first checkpoint; RGB then
    adopted = adopt_network(DolgConfig(), logdir, str(training.logdir))
    assert adopted.preprocessing == OFFICIAL_PREPROCESSING


def test_the_average_of_a_head_is_read_when_asked(tmp_path, data):
    training = tiny.recipe(tmp_path / "run", ema_decay=0.9)
    trainer = _trainer(training)
    write_run(BGR, data, training, FIRST)
    for average in trainer.state()["ema"].values():
        average.assign(average + 0.5)
    Checkpoints(tmp_path / "run", trainer.state(), 1, chief=True).save()
    raw, averaged = (load_head(training.logdir, weights=kind)["kernel"] for kind in ("raw", "ema"))
    np.testing.assert_array_equal(raw, trainer.head.kernel)
    np.testing.assert_allclose(averaged, raw + 0.5, rtol=1e-6)


def test_whether_exponents_are_trained_is_the_runs_own_choice(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    both = {"backbone": "resnet17_small", "multi_atrous": False, "descriptor_size": 16}
    config = DolgConfig(**both, global_pooling="learned", fused_pooling="learned")
    save_dolg(build_dolg(config, seed=0), config, tmp_path, {})
    found = adopt_network(DolgConfig(), str(tmp_path))
    assert (found.global_pooling, found.fused_pooling) == ("gem", "learned")
    assert "--global_pooling=learned trains it further" in caplog.text
    found = adopt_network(DolgConfig(fused_pooling="gem"), str(tmp_path))
    assert found.fused_pooling == "gem"
    with pytest.raises(InputError, match="has global_pooling learned, this run average"):
        adopt_network(DolgConfig(global_pooling="average"), str(tmp_path))
