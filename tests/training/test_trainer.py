"""A training step: pieces, precision, moving averages, frozen batch norms and replicas."""

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tiny import CLASSES, MODEL, recipe

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage.config import InputError
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.run_log import write_run
from dolg_tf.training.trainer import GRADIENT_NORM, LOSS, Trainer

_RNG = np.random.default_rng(0)
IMAGES = tf.constant(_RNG.random((8, 32, 32, 3)), tf.float32)
LABELS = tf.constant(_RNG.integers(0, CLASSES, 8), tf.int32)
BATCH = IMAGES, LABELS, tf.ones(8)


def _trainer(logdir="", **changes):
    return Trainer(MODEL, recipe(logdir, **changes), CLASSES, 10, make_strategy())


def _values(variables):
    return {variable.path: np.array(variable) for variable in variables}


def _save(trainer, folder):
    data = DataConfig(train_file_pattern="none", num_classes=CLASSES)
    write_run(MODEL, data, trainer.training, None)
    Checkpoints(folder, trainer.state(), 1, True).save()


def _pieces(number):
    return list(zip(*(tf.split(values, number) for values in BATCH), strict=True))


@pytest.mark.parametrize("check", ["--fast", pytest.param("--slow", marks=pytest.mark.slow)])
def test_two_replicas_step_like_one(check):
    """Two logical CPUs, which only a fresh process can create; see two_replicas.py."""
    script = pathlib.Path(__file__).parents[1] / "support" / "two_replicas.py"
    done = subprocess.run(
        [sys.executable, script, check], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_pieces_of_a_batch_are_the_batch_where_batch_norms_are_frozen():
    """Frozen ones keep their initial values."""
    frozen = {"freeze_batch_norm": True, "weight_decay": 0.1, "decay_all": True}
    whole, parts = _trainer(**frozen), _trainer(**frozen, accumulate=2)
    norms = [
        variable.path
        for layer in whole.network._flatten_layers()
        if type(layer).__name__ == "BatchNormalization"
        for variable in layer.variables
    ]
    before = _values(whole.network.variables)
    assert len(norms) > 20
    for _ in range(2):  # the second finds the pieces' sums empty again
        results = [whole.train_step([BATCH]), parts.train_step(_pieces(2))]
        np.testing.assert_allclose(*results, rtol=1e-4)
    found, expected = _values(parts.network.variables), _values(whole.network.variables)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-3, atol=1e-5, err_msg=path)
        kept = path in norms or path == "gem/p"
        assert np.array_equal(value, before[path]) == kept, path


@pytest.mark.slow
def test_the_moving_average_follows_its_formula_and_is_what_is_judged(tmp_path):
    trainer = _trainer(tmp_path, ema_decay=0.5)
    trainer.reset_averages()
    expected = _values(trainer.network.variables)
    start = dict(expected)
    for step in (1, 2, 3, 12):
        trainer.optimizer.iterations.assign(step - 1)
        trainer.train_step([BATCH])
        decay = min(0.5, step / (step + 9))
        for path, value in _values(trainer.network.variables).items():
            expected[path] = decay * expected[path] + (1 - decay) * value
    raw = _values(trainer.network.variables)
    with trainer.averaged():
        found = _values(trainer.network.variables)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert any(np.abs(found[path] - raw[path]).max() > 1e-3 for path in raw)
    assert any(np.abs(found[path] - start[path]).max() > 1e-3 for path in raw)
    for path, value in _values(trainer.network.variables).items():
        np.testing.assert_array_equal(value, raw[path])  # put back

    _save(trainer, tmp_path)
    for weights, values in (("raw", raw), ("ema", found)):
        loaded = _values(load_network(tmp_path, weights=weights).network.variables)
        for path, value in values.items():
            np.testing.assert_array_equal(loaded[path], value)


def test_a_moving_average_that_is_not_there_is_not_given(tmp_path):
    _save(_trainer(tmp_path), tmp_path)
    with pytest.raises(InputError, match=r"--weights=ema: .* was trained without --ema_decay"):
        load_network(tmp_path, weights="ema")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_it_learns_in_half_precision(precision):
    trainer = _trainer(precision=precision)
    losses = [float(trainer.train_step([BATCH])[LOSS]) for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    expected = float(_trainer().train_step([BATCH])[LOSS])
    assert losses[0] == pytest.approx(expected, rel=0.05)
    assert {np.asarray(v).dtype for v in trainer.variables} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_an_overflow_of_float16_is_left_out_and_halves_the_scale():
    trainer = _trainer(precision="float16", accumulate=2, ema_decay=0.5)
    trainer.train_step(_pieces(2))

    def state():
        values = _values([*trainer.variables, *trainer.optimizer.variables])
        with trainer.averaged():
            return values | {f"ema {v.path}": np.array(v) for v in trainer.network.variables}

    before = state()
    trainer._scale.value.assign(2.0**127)
    result = trainer.train_step(_pieces(2)).numpy()
    assert np.isfinite(result[LOSS]) and not np.isfinite(result[GRADIENT_NORM])
    assert float(trainer._scale.value) == 2.0**126
    for path, value in state().items():
        np.testing.assert_array_equal(value, before[path], err_msg=path)
    trainer._scale.value.assign(2.0**10)
    result = trainer.train_step(_pieces(2)).numpy()
    assert np.isfinite(result).all()
    assert any(np.any(value != before[path]) for path, value in state().items())


@pytest.mark.slow
def test_a_compiled_step_is_the_plain_one():
    plain, compiled = _trainer(clip_norm=1.0), _trainer(clip_norm=1.0, jit_compile=True)
    for _ in range(2):
        np.testing.assert_allclose(
            compiled.train_step([BATCH]), plain.train_step([BATCH]), rtol=1e-4
        )
    expected = _values(plain.network.variables)
    for path, value in _values(compiled.network.variables).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-3, atol=1e-4, err_msg=path)


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(InputError, match="--batch_size=8 is not divisible by 1 replicas x"):
        _trainer(accumulate=3)
    with pytest.raises(InputError, match="exclude each other"):
        dataclasses.replace(recipe(""), sync_batch_norm=True, freeze_batch_norm=True)
    with pytest.raises(InputError, match="--jit_compile and --deterministic exclude each other"):
        dataclasses.replace(recipe(""), jit_compile=True, deterministic=True)
