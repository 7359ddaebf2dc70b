"""A training step beside its convolutions: what the rest of the step costs.

    python benchmarks/train_step.py

Two recipes: DOLG-R50 as in configs/r50.flags with 81,313 classes, and the small network of
configs/quickstart.flags; both with a moving average of the weights. Each part of the step is its
own graph over tensors of the shapes that it meets in the step, and all are timed in turn, so that a
busy machine is busy for all of them: CPU time of the process, all threads, best of several. What
the parts leave of the whole (activations, pooling, additions, fusion, attention) is the remainder.
"""

import argparse
import functools
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.recipe import DolgConfig, TrainingConfig
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.optimizers import clip_and_decay
from dolg_tf.training.run_log import RunLog
from dolg_tf.training.steps import Trainer

LOG_EVERY = 50  # steps between two reports, as by default


def recipes(arguments) -> dict[str, tuple]:
    """Returns name: (model, training, classes, image side)."""
    common = {"logdir": "", "epochs": 100, "ema_decay": 0.999, "log_every": LOG_EVERY}
    paper = TrainingConfig(batch_size=arguments.batch, **common)
    small = TrainingConfig(batch_size=16, optimizer="adam", decay="decoupled", scale=16.0, **common)
    return {
        f"DOLG-R50, {arguments.batch} x {arguments.size} px, 81,313 classes": (
            DolgConfig(),
            paper,
            81313,
            arguments.size,
        ),
        "quickstart, 16 x 96 px, 60 classes": (
            DolgConfig(backbone="resnet17_small", dilations=(1, 2)),
            small,
            60,
            96,
        ),
    }


# --- the parts of a step ------------------------------------------------------------------


def met_shapes(network: keras.Model, images) -> list[tuple]:
    """Returns (layer, shape of its input) of every convolution and batch norm, in their order."""
    met = []

    def call(layer, original, inputs, **kwargs):
        met.append((layer, inputs.shape))
        return original(inputs, **kwargs)

    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.BatchNormalization)
    layers = network._flatten_layers(include_self=False, recursive=True)
    layers = [layer for layer in layers if isinstance(layer, kinds)]
    for layer in layers:
        layer.call = functools.partial(call, layer, layer.call)
    network(images, training=True)
    for layer in layers:
        del layer.call
    return met


def layers_alone(met: list[tuple], first):
    """Returns a graph that takes each layer by itself, forward and backward.

    Args:
      met: layers and the shapes of their inputs.
      first: the layer whose input, the image, needs no gradient.
    """
    inputs = [tf.random.normal(shape) for _, shape in met]

    @tf.function
    def run():
        numbers = []
        for (layer, _), x in zip(met, inputs, strict=True):
            options = {"training": True} if hasattr(layer, "gamma") else {}
            weights = [variable.value for variable in layer.trainable_variables]
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, **options)
            sources = weights if layer is first else [x, *weights]
            gradients = tape.gradient(y, sources, output_gradients=y)
            # One number of each, or the graph would be pruned.
            numbers += [tf.reshape(gradient, [-1])[0] for gradient in gradients]
        return tf.add_n(numbers)

    return run


def head_alone(trainer: Trainer, labels):
    descriptors = tf.random.normal((len(labels), trainer.model.descriptor_size))

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(descriptors)
            logits = trainer.head.logits(trainer.head(descriptors), labels, training=True)
            losses = keras.ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, [descriptors, trainer.head.kernel.value])

    return run


def update_alone(trainer: Trainer, gradients, norm):
    @tf.function
    def run():
        changes = clip_and_decay(gradients, norm, trainer.variables, trainer.training)
        trainer.optimizer.apply_gradients(zip(changes, trainer.variables, strict=True))

    return run


def average_alone(trainer: Trainer):
    @tf.function
    def run():
        for average, variable in trainer._averages:
            trainer._move_average(average, variable.value)

    return run


def parts_of(trainer: Trainer, size: int, run_log: RunLog) -> dict:
    """Returns the whole step and its parts, by name."""
    batch = trainer.training.batch_size
    rng = np.random.default_rng(0)
    images = tf.constant(rng.random((batch, size, size, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, trainer.head.num_classes, batch), tf.int32)
    piece = (images, labels, tf.ones(batch))
    met = met_shapes(trainer.network, images)
    convolutions = [(layer, shape) for layer, shape in met if hasattr(layer, "strides")]
    norms = [(layer, shape) for layer, shape in met if hasattr(layer, "gamma")]
    gradients = [tf.random.normal(variable.shape, stddev=1e-6) for variable in trainer.variables]
    norm = tf.linalg.global_norm(gradients)

    def report():
        run_log.write(1, "train", trainer.watched())

    return {
        "whole step": lambda: trainer.train_step((piece,)).numpy(),
        "convolutions": layers_alone(convolutions, convolutions[0][0]),
        "batch norms": layers_alone(norms, None),
        "head and loss": head_alone(trainer, labels),
        "optimizer and decay": update_alone(trainer, gradients, norm),
        "moving average": average_alone(trainer),
        "gradient norm": tf.function(lambda: tf.linalg.global_norm(gradients)),
        "report, of one step": report,
    }


# --- the table ----------------------------------------------------------------------------


def best_times(parts: dict, repeats: int) -> dict[str, float]:
    """Returns the least milliseconds of CPU time of each part; one more round warms up."""
    times = {name: [] for name in parts}
    for repeat in range(repeats + 1):
        for name, part in parts.items():
            start = time.process_time()
            part()
            if repeat:
                times[name].append(1e3 * (time.process_time() - start))
    return {name: min(spent) for name, spent in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="side of R50's photos, pixels")
    parser.add_argument("--batch", type=int, default=4, help="R50's photos in a step")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    arguments = parser.parse_args()
    columns = {}
    for title, (model, training, classes, size) in recipes(arguments).items():
        trainer = Trainer(model, training, classes, 1000, make_strategy())
        with tempfile.TemporaryDirectory() as folder:
            run_log = RunLog(pathlib.Path(folder), 0, chief=True)
            times = best_times(parts_of(trainer, size, run_log), arguments.repeats)
            run_log.close()
        times["report, of one step"] /= LOG_EVERY
        whole = times.pop("whole step")
        remainder = whole - sum(times.values())
        outside = whole - times["convolutions"]
        columns[title] = {
            "whole step": whole,
            **times,
            "remainder": remainder,
            "all outside the convolutions": outside,
        }
    print(f"| ms of CPU | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name in next(iter(columns.values())):
        cells = [
            f"{column[name]:.1f} ({column[name] / column['whole step']:.1%})"
            for column in columns.values()
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
