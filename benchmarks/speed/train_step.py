"""A training step beside its convolutions and the floor that the processor sets.

    python benchmarks/speed/train_step.py

DOLG-R50 as in configs/r50.flags with 81,313 classes, and the small network of
configs/quickstart.flags; --ema adds a moving average of the weights. Each part of the step is a
graph of its own, over tensors of the shapes that it has in the step. All are timed in turn, so that
a busy machine slows all of them. Shares are of CPU time, all threads, least of several rounds. The
remainder is what the parts leave of the whole: activations, pooling, additions, fusion, attention.
The floor is three times the multiply-adds of the forward pass, including those with the zeros of
padding, at the float32 rate of the faster of a matrix product and a 3x3 convolution.
"""

import argparse
import functools
import os
import pathlib
import tempfile

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from timing import Timer, best_rates, has_bfloat16, peaks, print_columns

from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.summary import count_multiply_adds
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.distribution import make_strategy
from dolg_tf.training.optimizers import clip_and_decay
from dolg_tf.training.run_log import RunLog
from dolg_tf.training.trainer import Trainer

LOG_EVERY = 50  # steps between two reports, the default
COMMON = {"logdir": "", "epochs": 100, "log_every": LOG_EVERY}


def cases(names: list[str], ema: bool) -> dict[str, tuple]:
    """Returns {title: (model, training, classes, image side)} of cases such as "4x256:float32"."""
    found, common = {}, {**COMMON, "ema_decay": 0.999 * ema}
    for name in names:
        shape, precision = name.split(":")
        batch, side = map(int, shape.split("x"))
        training = TrainingConfig(batch_size=batch, precision=precision, **common)
        title = f"R50, {batch} x {side} px, {precision}"
        found[title] = (DolgConfig(), training, 81313, side)
    small = TrainingConfig(batch_size=16, optimizer="adam", decay="decoupled", scale=16.0, **common)
    config = DolgConfig(backbone="resnet17_small", dilations=(1, 2))
    return {**found, "quickstart, 16 x 96 px": (config, small, 60, 96)}


def made_up_batch(trainer: Trainer, batch: int, size: int, seed: int = 0) -> tuple:
    """Returns images, labels and weights as a step takes them."""
    rng = np.random.default_rng(seed)
    images = tf.constant(rng.random((batch, size, size, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, trainer.head.num_classes, batch), tf.int32)
    return images, labels, tf.ones(batch)


# --- the parts of a step ------------------------------------------------------------------


def met_shapes(network: keras.Model, images) -> list[tuple]:
    """Returns (layer, shape of its input) of every convolution and batch norm, in call order."""
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
    """Returns a graph that runs each layer alone, forward and backward.

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
            # One number of each gradient, or the graph would be pruned.
            numbers += [tf.reshape(gradient, [-1])[0] for gradient in gradients]
        return tf.add_n(numbers)

    return run


def head_alone(trainer: Trainer, labels):
    descriptors = tf.random.normal((len(labels), trainer.head.kernel.shape[-1]))

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
    images, labels, _ = piece = made_up_batch(trainer, batch, size)
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


def measure(model, training, classes: int, side: int, repeats: int) -> dict[str, str]:
    """Returns the cells of a case, by row."""
    trainer = Trainer(model, training, classes, 1000, make_strategy())
    products = 3 * training.batch_size * sum(count_multiply_adds(trainer.network, side)[0].values())
    timer = Timer()
    limits = peaks()
    for name, (call, _) in limits.items():
        timer.add(name, call)
    with tempfile.TemporaryDirectory() as folder:
        run_log = RunLog(pathlib.Path(folder), 0, chief=True)
        parts = parts_of(trainer, side, run_log)
        for name, part in parts.items():
            timer.add(name, part)
        timer.run(repeats)
        run_log.close()
    rates = best_rates(timer, limits)
    floor = products / rates
    whole = timer.least("whole step")
    cells = {
        "rate of the floor, GFLOP/s": f"{2e-9 * rates[0]:.0f}",
        "floor, ms": f"{1e3 * floor[0]:.0f}",
        "whole step, best, ms": f"{1e3 * whole[0]:.0f}",
        "whole step, median, ms": f"{1e3 * timer.median('whole step'):.0f}",
        "over the floor": f"{whole[0] / floor[0]:.2f}",
        "over the floor, CPU time": f"{whole[1] / floor[1]:.2f}",
    }
    cpu = {name: timer.least(name)[1] for name in parts if name != "whole step"}
    cpu["report, of one step"] /= LOG_EVERY
    cpu["remainder"] = whole[1] - sum(cpu.values())
    cpu["all outside the convolutions"] = whole[1] - cpu["convolutions"]
    return cells | {name: f"{spent / whole[1]:.1%}" for name, spent in cpu.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    known = ["4x256:float32", "2x512:float32", "8x256:float32"]
    known += ["4x256:bfloat16", "2x512:bfloat16"] if has_bfloat16() else []
    parser.add_argument("--cases", nargs="+", default=known, help="photos x pixels : precision")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--ema", action="store_true", help="keep a moving average of the weights")
    arguments = parser.parse_args()
    columns = {}
    for title, case in cases(arguments.cases, arguments.ema).items():
        columns[title] = measure(*case, arguments.repeats)
        keras.backend.clear_session()
    print_columns("", columns)


if __name__ == "__main__":
    main()
