"""Our dilated convolution beside Keras' own, on the maps of DOLG-R50's multi-atrous block.

    python benchmarks/speed/dilated_conv.py

Prints one table: best and median milliseconds of seven rounds, both layers in one process.
"""

import os
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.modeling.dilated_conv import DilatedConv2D

REPEATS = 7


def functions(layer, x):
    """Returns the compiled forward pass, and forward with backward."""

    @tf.function
    def forward():
        return layer(x)

    @tf.function
    def both():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(layer(x)))
        return tape.gradient(loss, [x, layer.kernel.value])

    return forward, both


def milliseconds(calls) -> list[np.ndarray]:
    """Times the calls in turn, so that a busy machine slows all of them."""
    for call in calls:
        call()
    times = np.zeros((len(calls), REPEATS))
    for repeat in range(REPEATS):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            times[i, repeat] = 1e3 * (time.perf_counter() - start)
    return list(times)


def main() -> None:
    print("| map, dilation | pass | Keras best / median | ours best / median | ratio of bests |")
    print("| --- | --- | --- | --- | --- |")
    for shape, dilation in (((4, 16, 16, 1024), d) for d in (6, 12, 18)):
        x = tf.random.normal(shape)
        layers = [
            keras.layers.Conv2D(512, 3, padding="same", dilation_rate=dilation),
            DilatedConv2D(512, 3, dilation_rate=dilation),
        ]
        for layer in layers:
            layer.build(shape)
        calls = [call for layer in layers for call in functions(layer, x)]
        times = milliseconds(calls)
        for name, theirs, ours in (
            ("forward", times[0], times[2]),
            ("forward + backward", times[1], times[3]),
        ):
            print(
                f"| {shape}, {dilation} | {name} | {theirs.min():.0f} / {np.median(theirs):.0f} | "
                f"{ours.min():.0f} / {np.median(ours):.0f} | {theirs.min() / ours.min():.1f} |"
            )


if __name__ == "__main__":
    main()
