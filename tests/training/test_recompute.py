"""Blocks computed again in the backward pass leave the numbers of a step unchanged."""

import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import CLASSES, MODEL, recipe

from dolg_tf.modeling.backbones import BACKBONES
from dolg_tf.stage.config import InputError
from dolg_tf.training import recompute
from dolg_tf.training.distribution import distribute, make_strategy
from dolg_tf.training.trainer import LOSS, Trainer

_RNG = np.random.default_rng(0)
BATCH = (
    _RNG.random((8, 32, 32, 3), np.float32),
    _RNG.integers(0, CLASSES, 8).astype(np.int32),
    np.ones(8, np.float32),
)


def _trainer(strategy=None, model=MODEL, **changes):
    """Returns a trainer whose residual blocks do not start as the identity."""
    strategy = strategy or make_strategy()
    trainer = Trainer(model, recipe("", **changes), CLASSES, 10, strategy)
    rng = np.random.default_rng(1)
    for variable in trainer.network.variables:
        if variable.name == "gamma":
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    if trainer._scale is not None:
        trainer._scale.value.assign(1024.0)
    trainer.reset_averages()
    return trainer


def _values(state):
    """Returns the arrays of a checkpoint by name."""
    found = {}
    for name, value in state.items():
        values = value if isinstance(value, dict) else {"": value}
        found |= {f"{name} {key}": np.asarray(values[key]) for key in values}
    return found


def _step(trainer):
    """Returns the results of a step, and the state before and after it."""
    number = trainer.training.accumulate * trainer.strategy.num_replicas_in_sync

    def dataset(*_):
        return tf.data.Dataset.from_tensor_slices(BATCH).batch(8 // number)

    batches = iter(distribute(trainer.strategy, dataset))
    before = _values(trainer.state())
    pieces = [next(batches) for _ in range(trainer.training.accumulate)]
    return trainer.train_step(pieces).numpy(), before, _values(trainer.state())


def _assert_alike(rtol=1e-4, **options):
    """Asserts that a step is the same with and without, and returns the latter."""
    results, before, plain = _step(_trainer(**options))
    found, start, again = _step(_trainer(**options, recompute=True))
    np.testing.assert_allclose(found, results, rtol=rtol)
    assert list(again) == list(plain)  # the names of a checkpoint, in order
    for name, value in plain.items():
        if "moving_" in name:  # of one update; a second one would move them further
            np.testing.assert_allclose(again[name], value, rtol=1e-6, err_msg=name)
        elif value.dtype == np.float32 and value.size:
            np.testing.assert_array_equal(start[name], before[name])
            # By how far it moved, since a gradient has no scale of its own.
            moved, difference = value - before[name], again[name] - value
            bound = rtol * np.abs(moved).max() + 1e-7 * np.abs(value).max()
            assert np.abs(difference).max() <= bound, name
    return results, before, plain


def test_a_step_is_the_same_and_moves_statistics_once():
    _, before, after = _assert_alike(ema_decay=0.5, accumulate=2)
    statistics = [name for name in after if "moving_" in name and name.startswith("network")]
    assert len(statistics) > 30
    assert all(np.any(after[name] != before[name]) for name in statistics)


def test_frozen_batch_norms_stay():
    _, before, after = _assert_alike(freeze_batch_norm=True)
    norms = [name for name in after if "moving_" in name or "gamma" in name]
    assert norms
    for name in norms:
        if name.startswith("network"):
            np.testing.assert_array_equal(after[name], before[name])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision(precision):
    # Sums of three terms are rounded in another order, which a batch norm over 8 numbers magnifies.
    results, _, _ = _assert_alike(rtol=0.2, precision=precision)
    assert np.isfinite(results).all()


@pytest.mark.slow
def test_efficientnets_have_blocks_too():
    model = dataclasses.replace(MODEL, backbone="efficientnet_lite0")
    _assert_alike(model=model, rtol=1e-3)


def test_the_backbone_is_computed_a_second_time():
    numbers = []
    for again in (False, True):
        trainer = _trainer(recompute=again)
        step = tf.function(trainer._replica_gradients).get_concrete_function(*BATCH)
        types = [operation.type for operation in step.graph.get_operations()]
        numbers.append(types.count("FusedBatchNormV3"))
        assert types.count("FusedBatchNormGradV3") == numbers[0]
    in_backbone = [
        layer
        for layer in trainer.network.get_layer("backbone").layers
        if type(layer).__name__ == "BatchNormalization"
    ]
    assert numbers[1] - numbers[0] == len(in_backbone) > 15


def test_what_it_does_not_go_with():
    with pytest.raises(InputError, match="--recompute and --jit_compile exclude each other"):
        recipe("", recompute=True, jit_compile=True)
    with pytest.raises(InputError, match="--recompute saves nothing with --backbone_lr=0"):
        recipe("", recompute=True, backbone_lr=0.0)


@dataclasses.dataclass(frozen=True)
class _Stairs:
    """A made-up family of backbones: five residual blocks, or plain convolutions without any."""

    residual: bool
    conv = functools.partial(keras.layers.Conv2D, padding="same", use_bias=False)

    def build(self, dtype, stride32):
        image = x = keras.Input((None, None, 3))
        maps = []
        for step, width in enumerate((8, 16, 24, 32, 32)):
            name = f"step_{step}_"
            y = self.conv(width, 3, 2, dtype=dtype, name=f"{name}conv")(x)
            y = x = keras.layers.BatchNormalization(dtype=dtype, name=f"{name}bn")(y)
            if self.residual:
                y = self.conv(width, 3, dtype=dtype, name=f"{name}last")(y)
                x = keras.layers.Add(dtype=dtype, name=f"{name}add")([x, y])
            maps.append(x)
        return image, maps[2:]

    def block(self, layer):
        return layer[:6] if self.residual and layer.startswith("step_") else ""


def test_a_new_family_says_where_its_blocks_are(monkeypatch):
    monkeypatch.setitem(BACKBONES, "stairs", _Stairs(residual=True))
    _assert_alike(model=dataclasses.replace(MODEL, backbone="stairs"))
    asked = []
    monkeypatch.setattr(recompute, "_Segment", lambda nodes, _: asked.append(len(nodes)))
    _trainer(model=dataclasses.replace(MODEL, backbone="stairs"), recompute=True)
    assert asked == [4] * 5


def test_a_backbone_without_blocks_is_refused(monkeypatch):
    monkeypatch.setitem(BACKBONES, "stairs", _Stairs(residual=False))
    with pytest.raises(InputError, match="without residual blocks; omit it, or give a larger"):
        _trainer(model=dataclasses.replace(MODEL, backbone="stairs"), recompute=True)


@pytest.mark.slow
def test_two_replicas():
    """Two logical CPUs, which only a fresh process can create."""
    here = pathlib.Path(__file__)
    support = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, here], env=os.environ | support, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _check_two_replicas():
    """Statistics per replica, and over both, which the second computation gathers again."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    losses = [
        _assert_alike(strategy=strategy, sync_batch_norm=synchronised)[0][LOSS]
        for synchronised in (False, True)
    ]
    assert abs(losses[1] - losses[0]) > 1e-3 * losses[0]  # or nothing was synchronised


if __name__ == "__main__":
    _check_two_replicas()
