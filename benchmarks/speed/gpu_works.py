"""What `gpu_check.py` measures, in the process of one precision.

    KERAS_BACKEND=jax python benchmarks/speed/gpu_works.py float32 --batch=16

It prints a line of JSON as soon as it has a result. If Keras runs on TensorFlow, the training step
is the trainer's own. On JAX it is the same computation by `stateless_call`, as one compiled
function. Photos are on the device before; it is synchronised before each look at the clock.
"""

import argparse
import functools
import json
import pathlib
import runpy
from collections.abc import Callable

import keras
import numpy as np
from timing import Timer, peak_memory, restart_peak_memory

from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.heads import build_head
from dolg_tf.training.config import TrainingConfig
from dolg_tf.weights import official

ROUNDS = 5
_GOLDEN = pathlib.Path(__file__).parents[2] / "tests" / "golden"
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


# --- the backends -------------------------------------------------------------------------------


class OnTensorflow:
    """TensorFlow's side: functions that return when the device has done `steps`."""

    def __init__(self, precision: str, steps: int):
        import tensorflow as tf

        self._tf, self._precision, self._steps = tf, precision, steps
        self._gpu = bool(tf.config.list_physical_devices("GPU"))

    def exact_products(self, exact: bool) -> None:
        """Whether products of float32 numbers are computed as such, or as TF32."""
        self._tf.config.experimental.enable_tensor_float_32_execution(not exact)

    def restart_memory(self) -> None:
        if self._gpu:
            self._tf.config.experimental.reset_memory_stats("GPU:0")
        else:
            restart_peak_memory()

    def memory(self) -> int:
        """Returns the peak bytes on the device; on a CPU, those of the process."""
        if self._gpu:
            return self._tf.config.experimental.get_memory_info("GPU:0")["peak"]
        return peak_memory()

    def inference(self, photos: np.ndarray) -> Callable[[], None]:
        network = build_dolg(DolgConfig(), _POLICIES[self._precision], seed=0)
        call = self._tf.function(functools.partial(network, training=False))
        return self._waiting(functools.partial(call, self._tf.constant(photos)))

    def training_step(self, photos: np.ndarray, labels: np.ndarray, classes: int):
        from dolg_tf.training.distribution import make_strategy
        from dolg_tf.training.trainer import Trainer

        options = TrainingConfig(logdir="", batch_size=len(photos), precision=self._precision)
        trainer = Trainer(DolgConfig(), options, classes, 1000, make_strategy())
        tf = self._tf
        piece = (tf.constant(photos), tf.constant(labels), tf.ones(len(photos)))
        return self._waiting(lambda: trainer.train_step((piece,)))

    def peaks(self, side: int) -> dict[str, tuple[Callable, int]]:
        """Returns {name: (function, multiply-adds per step)}."""
        tf = self._tf
        matrix = tf.cast(tf.random.normal((side, side)), self._precision)
        maps = tf.cast(tf.random.normal((side // 512, 64, 64, 512)), self._precision)
        kernel = tf.cast(tf.random.normal((3, 3, 512, 512)), self._precision)
        product = tf.function(lambda: tf.matmul(matrix, matrix))
        convolution = tf.function(lambda: tf.nn.conv2d(maps, kernel, 1, "SAME"))
        return _named_peaks(side, self._waiting(product), self._waiting(convolution))

    def _waiting(self, call: Callable) -> Callable[[], None]:
        def steps():
            for _ in range(self._steps):
                call()
            self._tf.test.experimental.sync_devices()

        return steps


class OnJax:
    """The same of JAX; the formulas of the step are the trainer's."""

    def __init__(self, precision: str, steps: int):
        import jax

        self._jax, self._precision, self._steps = jax, precision, steps

    def exact_products(self, exact: bool) -> None:
        self._jax.config.update("jax_default_matmul_precision", "highest" if exact else None)

    def restart_memory(self) -> None:
        restart_peak_memory()  # that of a GPU cannot be restarted: it is the peak so far

    def memory(self) -> int:
        counted = self._jax.devices()[0].memory_stats()
        return counted["peak_bytes_in_use"] if counted else peak_memory()

    def inference(self, photos: np.ndarray) -> Callable[[], None]:
        network = build_dolg(DolgConfig(), _POLICIES[self._precision], seed=0)
        photos = self._jax.device_put(photos)
        values = [v.value for v in network.trainable_variables]
        others = [v.value for v in network.non_trainable_variables]

        @self._jax.jit
        def infer(values, others, photos):
            return network.stateless_call(values, others, photos, training=False)[0]

        return self._waiting(lambda: infer(values, others, photos))

    def training_step(self, photos: np.ndarray, labels: np.ndarray, classes: int):
        from keras import ops

        jax = self._jax
        options = TrainingConfig(logdir="", batch_size=len(photos), precision=self._precision)
        network = build_dolg(DolgConfig(), _POLICIES[self._precision], seed=0)
        head = build_head(options, classes)
        head.build((None, network.output_shape[-1]))
        photos, labels = map(jax.device_put, (photos, labels))
        trained = network.trainable_variables
        every = [*trained, *head.trainable_variables]
        decays = [options.weight_decay * (v.path.rsplit("/", 1)[-1] == "kernel") for v in every]

        def loss(values, others):
            descriptors, others = network.stateless_call(
                values[: len(trained)], others, photos, training=True
            )
            cosines, _ = head.stateless_call(values[len(trained) :], [], descriptors)
            logits = head.logits(cosines, labels, training=True)
            losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            return ops.mean(losses), others

        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def step(values, momenta, others):
            (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(values, others)
            gradients = [g + d * v for g, d, v in zip(gradients, decays, values, strict=True)]
            momenta = [
                options.momentum * m - options.initial_lr * g
                for m, g in zip(momenta, gradients, strict=True)
            ]
            values = [v + m for v, m in zip(values, momenta, strict=True)]
            return values, momenta, others, value

        # Copies, since a step reuses the memory of its arguments.
        values = [v.value.copy() for v in every]
        others = [v.value.copy() for v in network.non_trainable_variables]
        state = [values, [v * 0 for v in values], others]

        def train():
            *state[:], value = step(*state)
            return value, state[0]

        return self._waiting(train)

    def peaks(self, side: int) -> dict[str, tuple[Callable, int]]:
        jax = self._jax
        keys = jax.random.split(jax.random.key(0), 3)
        matrix = jax.random.normal(keys[0], (side, side), self._precision)
        maps = jax.random.normal(keys[1], (side // 512, 64, 64, 512), self._precision)
        kernel = jax.random.normal(keys[2], (3, 3, 512, 512), self._precision)
        product = functools.partial(jax.jit(lambda x: x @ x), matrix)

        @jax.jit
        def convolve(maps, kernel):
            layout = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                maps, kernel, (1, 1), "SAME", dimension_numbers=layout
            )

        convolution = functools.partial(convolve, maps, kernel)
        return _named_peaks(side, self._waiting(product), self._waiting(convolution))

    def _waiting(self, call: Callable) -> Callable[[], None]:
        def steps():
            for _ in range(self._steps):
                last = call()
            self._jax.block_until_ready(last)

        return steps


def _named_peaks(side: int, product: Callable, convolution: Callable) -> dict:
    return {
        f"matrix product, {side} cubed": (product, side**3),
        "3x3 convolution, 512 channels": (convolution, side // 512 * 64**2 * 9 * 512**2),
    }


# --- what is measured ---------------------------------------------------------------------------


def golden(precision: str, on: OnTensorflow | OnJax):
    """Yields the distance from descriptors that the authors' code computed, by name."""
    standin = runpy.run_path(str(_GOLDEN / "standin_weights.py"))
    shapes = json.loads((_GOLDEN / "r50.json").read_text(encoding="utf-8"))
    state = {name: standin["value"](name, shape) for name, shape in shapes.items()}
    network = build_dolg(
        DolgConfig(preprocessing=OFFICIAL_PREPROCESSING), _POLICIES[precision], seed=0
    )
    official.load_state_dict(network, state)
    with np.load(_GOLDEN / "r50.npz") as arrays:
        wanted = {key: arrays[key] for key in arrays.files if key.endswith("/descriptor")}
    for exact in (True, False) if precision == "float32" else (False,):
        on.exact_products(exact)
        network.make_predict_function(force=True)  # JAX reads the setting when it traces
        errors, cosines = [], []
        for key, theirs in wanted.items():
            height, width = map(int, key.split("/")[0].split("x"))
            photo = standin["image"](height, width).astype(np.float32)[None] / 255
            ours = np.asarray(network.predict_on_batch(photo))[0]
            errors.append(np.abs(ours - theirs).max() / np.abs(theirs).max())
            cosines.append(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        name = f"{precision}, exact products" if exact else precision
        yield {"golden": name, "error": float(max(errors)), "cosine": float(min(cosines))}


def timed(name: str, prepare: Callable, work: int, arguments, on: OnTensorflow | OnJax) -> dict:
    """Returns a row: seconds and memory of a step, and rates in multiply-adds a second."""
    on.restart_memory()
    call = prepare()
    call()
    memory, timer = on.memory(), Timer()
    timer.add(name, call)
    peaks = on.peaks(arguments.side)
    for peak, (function, _) in peaks.items():
        timer.add(peak, function)
    timer.run(ROUNDS)
    steps = arguments.steps
    rates = {peak: macs * steps / timer.least(peak)[0] for peak, (_, macs) in peaks.items()}
    return {
        "work": name,
        "best": timer.least(name)[0] / steps,
        "median": timer.median(name) / steps,
        "memory": memory,
        "rate": work * steps / timer.least(name)[0],
        "peaks": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("precision", choices=_POLICIES)
    parser.add_argument("--batch", type=int, default=8, help="photos per step")
    parser.add_argument("--size", type=int, default=512, help="their side, pixels")
    parser.add_argument("--classes", type=int, default=81313, help="landmarks")
    parser.add_argument("--macs", type=int, default=1, help="multiply-adds of a photo")
    parser.add_argument("--steps", type=int, default=10, help="timed at once")
    parser.add_argument("--side", type=int, default=8192, help="of the matrix product")
    arguments = parser.parse_args()
    on = {"tensorflow": OnTensorflow, "jax": OnJax}[keras.backend.backend()](
        arguments.precision, arguments.steps
    )

    def tell(result: dict) -> None:
        print(json.dumps(result), flush=True)

    for result in golden(arguments.precision, on):
        tell(result)
    rng = np.random.default_rng(0)
    photos = rng.random((arguments.batch, arguments.size, arguments.size, 3), np.float32)
    labels = rng.integers(0, arguments.classes, arguments.batch).astype(np.int32)
    macs = arguments.macs * arguments.batch
    tell(timed("inference", lambda: on.inference(photos), macs, arguments, on))
    keras.backend.clear_session()
    macs = 3 * (macs + arguments.batch * 512 * arguments.classes)
    train = functools.partial(on.training_step, photos, labels, arguments.classes)
    tell(timed("training step", train, macs, arguments, on))


if __name__ == "__main__":
    main()
