"""One step of one replica and of two, on the same global batch, moves the weights alike.

Run by test_trainer.py in a process of its own. Both halves of the batch hold the same photos, so
that the batch norms of the replicas, which are not synchronised, see the same statistics.
"""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from dolg_tf.recipe import DataConfig, DolgConfig, TrainingConfig
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.distribution import distribute
from dolg_tf.training.trainer import Trainer

MODEL = DolgConfig(backbone="resnet17_small", dilations=(1,), descriptor_size=16)
DATA = DataConfig(train_file_pattern="", num_classes=3)


def step(devices, clip):
    """Returns loss, accuracy and the weights after a step, and the state for a checkpoint."""
    training = TrainingConfig(
        logdir="", batch_size=8, initial_lr=0.1, warmup_epochs=0, clip_norm=clip, weight_decay=0.01
    )
    trainer = Trainer(MODEL, DATA, training, 10, tf.distribute.MirroredStrategy(devices))
    rng = np.random.default_rng(0)
    images = np.tile(rng.random((4, 32, 32, 3), np.float32), (2, 1, 1, 1))
    labels = np.tile(np.array([0, 1, 2, 0], np.int32), 2)

    def dataset(worker, num_workers, replicas):
        assert (worker, num_workers, replicas) == (0, 1, len(devices))
        return tf.data.Dataset.from_tensor_slices((images, labels)).batch(8 // replicas)

    batch = next(iter(distribute(trainer.strategy, dataset)))
    loss, accuracy = (float(value) for value in trainer.train_step(batch))
    return loss, accuracy, [np.asarray(v) for v in trainer.variables], trainer.state()


def main() -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for clip in (0.0, 0.5):
        *one, weights, _ = step(["CPU:0"], clip)
        *two, other, state = step(["CPU:0", "CPU:1"], clip)
        np.testing.assert_allclose(two, one, rtol=1e-4)
        for ours, theirs in zip(other, weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    # What two replicas saved, one restores.
    saved = {name: variable.numpy() for name, variable in state["network"].items()}
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(pathlib.Path(folder), state, keep=1, chief=True).save()
        state = step(["CPU:0"], 0.0)[-1]
        assert any(np.any(state["network"][name].numpy() != saved[name]) for name in saved)
        assert Checkpoints(pathlib.Path(folder), state, 1, True).restore(pathlib.Path(folder))
    for name, value in saved.items():
        np.testing.assert_array_equal(state["network"][name].numpy(), value)


if __name__ == "__main__":
    main()
