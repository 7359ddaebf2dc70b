"""One replica and two move the weights alike on the same global batch.

test_trainer.py runs it in a separate process, since two logical CPUs must be requested first.
"""

import functools
import pathlib
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
from tiny import MODEL, recipe, write_records

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.stage.config import InputError
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import distribute
from dolg_tf.training.trainer import GRADIENT_NORM, HITS, LOSS, PHOTOS, STOP, Trainer

_RNG = np.random.default_rng(0)
IMAGES = _RNG.random((8, 32, 32, 3), np.float32)
LABELS = _RNG.integers(0, 3, 8).astype(np.int32)

ONE, TWO = ("CPU:0",), ("CPU:0", "CPU:1")


@functools.cache  # two strategies of the same devices mix up their collective operations
def strategy_on(devices):
    return tf.distribute.MirroredStrategy(devices)


def trainer_on(devices, **changes):
    settings = {"weight_decay": 0.01, "initial_lr": 0.1, **changes}
    return Trainer(MODEL, recipe("", **settings), 3, 10, strategy_on(devices))


def step(trainer, images, labels, stop=False):
    """Returns the results of one step, and variables and moving statistics after it."""
    replicas = trainer.strategy.num_replicas_in_sync
    pieces = trainer.training.accumulate

    def dataset(worker, num_workers, found):
        assert (worker, num_workers, found) == (0, 1, replicas)
        photos = tf.data.Dataset.from_tensor_slices((images, labels, np.ones(8, np.float32)))
        return photos.batch(8 // replicas // pieces)

    iterator = iter(distribute(trainer.strategy, dataset))
    results = trainer.train_step([next(iterator) for _ in range(pieces)], stop).numpy()
    variables = [*trainer.variables, *trainer.network.non_trainable_variables]
    return results, {v.path: np.asarray(v) for v in variables}, trainer.state()


def assert_alike(one, two):
    np.testing.assert_allclose(two[0][[LOSS, GRADIENT_NORM]], one[0][[LOSS, GRADIENT_NORM]], 1e-4)
    assert two[0][HITS] == one[0][HITS] and two[0][PHOTOS] == 8
    assert len(one[1]) > 50
    for path, value in one[1].items():
        np.testing.assert_allclose(two[1][path], value, rtol=1e-3, atol=2e-5, err_msg=path)


def check_halves_alike():
    """Both halves hold the same photos, so batch norms that are not synchronised agree."""
    images, labels = np.tile(IMAGES[:4], (2, 1, 1, 1)), np.tile(LABELS[:4], 2)
    one = step(trainer_on(ONE, clip_norm=0.5), images, labels)
    two = step(trainer_on(TWO, clip_norm=0.5), images, labels, stop=True)
    assert_alike(one, two)
    assert one[0][STOP] == 0 and two[0][STOP] == 2
    return two[-1]


def check_synchronised():
    """Different halves: statistics over all replicas make them one batch."""
    one = step(trainer_on(ONE), IMAGES, LABELS)
    two = step(trainer_on(TWO, sync_batch_norm=True), IMAGES, LABELS)
    assert_alike(one, two)
    alone = step(trainer_on(TWO), IMAGES, LABELS)
    assert abs(alone[0][LOSS] - one[0][LOSS]) > 1e-3 * one[0][LOSS]  # or nothing was proved


def check_accumulation():
    """On two replicas in two pieces; frozen batch norms, since pieces have their own statistics."""
    frozen = {"freeze_batch_norm": True, "clip_norm": 0.5}
    one = step(trainer_on(ONE, **frozen), IMAGES, LABELS)
    two = step(trainer_on(TWO, accumulate=2, **frozen), IMAGES, LABELS)
    assert_alike(one, two)


def check_clipping():
    """The sum of gradients 3 and -1 is 2; clipped to 1, it moves the weight by 1, not by 0."""
    trainer = trainer_on(TWO, clip_norm=1.0, weight_decay=0.0, momentum=0.0, initial_lr=1.0)
    weight, others = trainer.variables[0], trainer.variables[1:]
    values = tf.data.Dataset.from_tensor_slices([3.0, -1.0]).batch(1)
    gradient = next(iter(distribute(trainer.strategy, lambda *_: values)))
    # Replaces the network's gradient: only the first number of the first weight has one.
    size = int(np.prod(weight.shape))

    def gradients(value, *_):
        first = tf.reshape(tf.pad(value, [[0, size - 1]]), weight.shape)
        return tf.zeros(3), [first, *(tf.zeros(v.shape) for v in others)]

    trainer._sums_and_gradients = gradients
    before = [np.asarray(v) for v in trainer.variables]
    norm = trainer.train_step([(gradient, gradient, gradient)])[GRADIENT_NORM]
    assert float(norm) == 2.0
    moved = [was - np.asarray(v) for was, v in zip(before, trainer.variables, strict=True)]
    np.testing.assert_allclose(moved[0].ravel()[0], 1.0, rtol=1e-5)
    assert sum(np.abs(m).sum() for m in moved) == pytest.approx(1.0, rel=1e-5)


def check_checkpoint(state):
    """One replica restores what two saved."""
    saved = {name: variable.numpy() for name, variable in state["network"].items()}
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(pathlib.Path(folder), state, keep=1, chief=True).save()
        state = trainer_on(ONE).state()
        assert any(np.any(state["network"][name].numpy() != saved[name]) for name in saved)
        assert Checkpoints(pathlib.Path(folder), state, 1, True).restore()
    for name, value in saved.items():
        np.testing.assert_array_equal(state["network"][name].numpy(), value)


def check_real_batches():
    """The losses of 20 steps on records."""
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        data = write_records(pathlib.Path(folder))
        for devices in (ONE, TWO):
            training = recipe("", epochs=5, initial_lr=0.002, clip_norm=1.0, sync_batch_norm=True)
            strategy = strategy_on(devices)
            photos = TrainingInput(data, training.batch_size, training.seed)
            trainer = Trainer(MODEL, training, data.num_classes, 4, strategy)

            def dataset(*place, photos=photos):
                return photos.dataset(0, 20, *place)

            batches = distribute(strategy, dataset)
            losses.append([float(trainer.train_step([batch])[LOSS]) for batch in batches])
    assert len(losses[0]) == 20
    # Clipped, since steps that make the loss jump magnify a float's last digit.
    print(losses[0], "largest difference of a loss:", np.abs(np.subtract(*losses)).max())
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    if "--slow" in sys.argv:
        check_clipping()
        check_synchronised()
        check_accumulation()
        check_real_batches()
    else:
        check_checkpoint(check_halves_alike())
        with pytest.raises(InputError, match="--jit_compile works on one device; this run has 2"):
            trainer_on(TWO, jit_compile=True)


if __name__ == "__main__":
    main()
