"""Training and inference of DOLG-R50 on one GPU, beside the GPU's peak rate.

    python benchmarks/speed/gpu_step.py [--batch 32 64]
    python benchmarks/speed/gpu_step.py --cpu --backend=jax --size=64 --batch=2

The training step is complete: forward, ArcFace over 81,313 classes, backward, momentum and weight
decay. The photos are already on the device. If TensorFlow sees a GPU, the step is the trainer's
own. Otherwise JAX runs the same computation by `stateless_call`, as one compiled function.
Multiply-adds are those of the network and the head, including those with the zeros of padding, and
three times as many in training. The peak is the faster of a matrix product and a 3x3 convolution in
the same precision and process. All are timed in turn after a warm-up, and the device is
synchronised before each look at the clock.
"""

import argparse
import functools
import importlib.metadata
import os
import subprocess
import sys

import numpy as np
from timing import Timer

ROUNDS = 5
# Programs that print the GPU's name, or nothing. They run in their own process: the backend must be
# known before Keras is imported, and the driver may list a GPU that the library cannot use.
_SEES_GPU = {
    "tensorflow": """
import tensorflow as tf
for gpu in tf.config.list_physical_devices("GPU"):
    print(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
""",
    "jax": """
import importlib.util
if importlib.util.find_spec("jax"):
    import jax
    if jax.default_backend() == "gpu":
        print(jax.devices()[0].device_kind)
""",
}
# Always on TensorFlow, since the summary counts its graphs.
_COUNT = """
import sys
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.summary import count_multiply_adds
from dolg_tf.modeling.config import DolgConfig
counted, unknown = count_multiply_adds(build_dolg(DolgConfig()), int(sys.argv[1]))
assert not unknown, unknown
print(sum(counted.values()))
"""


def _last_line(code: str, *arguments, **environment) -> str:
    """Returns the last line that a Python process prints; "" if it fails and shows its error."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    return lines[-1] if lines and done.returncode == 0 else ""


def choose(asked: str, cpu: bool) -> tuple[str, str, str]:
    """Returns backend, device name and the reason; empty strings without a GPU."""
    if cpu:
        return asked or "tensorflow", "CPU", "--cpu"
    for backend in [asked] if asked else _SEES_GPU:
        device = _last_line(_SEES_GPU[backend])
        if device:
            return backend, device, "--backend" if asked else "the first that sees a GPU"
    return "", "", ""


# --- the backends: functions that return when the device has done `steps` -----------------------


def _photos(batch: int, size: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    photos = rng.random((batch, size, size, 3), np.float32)
    return photos, rng.integers(0, classes, batch).astype(np.int32)


def on_tensorflow(precision: str, batch: int, arguments) -> dict:
    """Returns "training step" and "inference"."""
    import tensorflow as tf

    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.training.config import TrainingConfig
    from dolg_tf.training.distribution import make_strategy
    from dolg_tf.training.trainer import Trainer

    training = TrainingConfig(logdir="", batch_size=batch, precision=precision)
    trainer = Trainer(DolgConfig(), training, arguments.classes, 1000, make_strategy())
    photos, labels = map(tf.constant, _photos(batch, arguments.size, arguments.classes))
    piece = (photos, labels, tf.ones(batch))
    infer = tf.function(functools.partial(trainer.network, training=False))
    return {
        "training step": lambda: _tensorflow_waits(
            lambda: trainer.train_step((piece,)), arguments.steps
        ),
        "inference": lambda: _tensorflow_waits(lambda: infer(photos), arguments.steps),
    }


def _tensorflow_waits(call, steps: int) -> None:
    import tensorflow as tf

    for _ in range(steps):
        call()
    tf.test.experimental.sync_devices()


def tensorflow_peaks(precision: str, side: int, steps: int) -> dict:
    import tensorflow as tf

    matrix = tf.cast(tf.random.normal((side, side)), precision)
    maps = tf.cast(tf.random.normal((side // 512, 64, 64, 512)), precision)
    kernel = tf.cast(tf.random.normal((3, 3, 512, 512)), precision)
    product = tf.function(lambda: tf.matmul(matrix, matrix))
    convolution = tf.function(lambda: tf.nn.conv2d(maps, kernel, 1, "SAME"))
    return _peaks(product, convolution, maps.shape, side, _tensorflow_waits, steps)


def on_jax(precision: str, batch: int, arguments) -> dict:
    """Returns "training step" and "inference"; the formulas are the trainer's."""
    import jax
    from keras import ops

    from dolg_tf.modeling.config import DolgConfig
    from dolg_tf.modeling.dolg import build_dolg
    from dolg_tf.modeling.heads import build_head
    from dolg_tf.training.config import TrainingConfig
    from dolg_tf.training.optimizers import is_decayed

    training = TrainingConfig(logdir="", batch_size=batch, precision=precision)
    policy = "mixed_bfloat16" if precision == "bfloat16" else precision
    network = build_dolg(DolgConfig(), policy, seed=0)
    head = build_head(training, arguments.classes)
    head.build((None, network.output_shape[-1]))
    photos, labels = map(jax.device_put, _photos(batch, arguments.size, arguments.classes))
    trained = network.trainable_variables
    decays = [
        training.weight_decay * is_decayed(v, training)
        for v in [*trained, *head.trainable_variables]
    ]

    def loss(values, others, photos, labels):
        descriptors, others = network.stateless_call(
            values[: len(trained)], others, photos, training=True
        )
        cosines, _ = head.stateless_call(values[len(trained) :], [], descriptors)
        logits = head.logits(cosines, labels, training=True)
        losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return ops.mean(losses), others

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(values, momenta, others, photos, labels):
        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(
            values, others, photos, labels
        )
        gradients = [g + d * v for g, d, v in zip(gradients, decays, values, strict=True)]
        momenta = [
            training.momentum * m - training.initial_lr * g
            for m, g in zip(momenta, gradients, strict=True)
        ]
        values = [v + m for v, m in zip(values, momenta, strict=True)]
        return values, momenta, others, value

    @jax.jit
    def infer(values, others, photos):
        return network.stateless_call(values, others, photos, training=False)[0]

    # Copies, since a step reuses the memory of its arguments.
    values = [v.value.copy() for v in [*trained, *head.trainable_variables]]
    others = [v.value.copy() for v in network.non_trainable_variables]
    state = [values, [v * 0 for v in values], others]

    def train():
        *state[:], value = step(*state, photos, labels)
        return value, state[0]

    def describe():
        return infer(state[0][: len(trained)], state[2], photos)

    return {
        "training step": lambda: _jax_waits(train, arguments.steps),
        "inference": lambda: _jax_waits(describe, arguments.steps),
    }


def _jax_waits(call, steps: int) -> None:
    import jax

    for _ in range(steps):
        last = call()
    jax.block_until_ready(last)


def jax_peaks(precision: str, side: int, steps: int) -> dict:
    import jax

    keys = jax.random.split(jax.random.key(0), 3)
    matrix = jax.random.normal(keys[0], (side, side), precision)
    maps = jax.random.normal(keys[1], (side // 512, 64, 64, 512), precision)
    kernel = jax.random.normal(keys[2], (3, 3, 512, 512), precision)
    product = functools.partial(jax.jit(lambda x: x @ x), matrix)

    @jax.jit
    def convolve(maps, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(maps, kernel, (1, 1), "SAME", dimension_numbers=layout)

    convolution = functools.partial(convolve, maps, kernel)
    return _peaks(product, convolution, maps.shape, side, _jax_waits, steps)


def _peaks(product, convolution, maps, side: int, waits, steps: int) -> dict:
    """Returns {name: (function, multiply-adds per step)}."""
    return {
        f"matrix product, {side} cubed": (lambda: waits(product, steps), side**3),
        f"3x3 convolution, {' x '.join(map(str, maps))}": (
            lambda: waits(convolution, steps),
            np.prod(maps) * 9 * maps[-1],
        ),
    }


BACKENDS = {"tensorflow": (on_tensorflow, tensorflow_peaks), "jax": (on_jax, jax_peaks)}


# --- the table ---------------------------------------------------------------------------------


def measure(backend: str, precision: str, batch: int, macs: int, arguments) -> list[list[str]]:
    """Returns the cells of each row, without the backend."""
    calls, peaks = BACKENDS[backend]
    side = 1024 if arguments.cpu else 8192
    head = arguments.classes * 512
    work = {"training step": 3 * batch * (macs + head), "inference": batch * macs}
    timer = Timer()
    for name, call in calls(precision, batch, arguments).items():
        timer.add(name, call)
    for name, (call, products) in peaks(precision, side, arguments.steps).items():
        timer.add(name, call)
        work[name] = products
    timer.run(ROUNDS)
    seconds = {name: timer.least(name)[0] / arguments.steps for name in work}
    rates = {name: 2e-12 * work[name] / seconds[name] for name in work}  # TFLOP/s
    photos = ("training step", "inference")
    peak = max(rate for name, rate in rates.items() if name not in photos)
    rows = []
    for name, spent in seconds.items():
        rows.append(
            [
                name,
                precision,
                str(batch) if name in photos else "",
                f"{1e3 * spent:.2f}",
                f"{1e3 * timer.median(name) / arguments.steps:.2f}",
                f"{batch / spent:.1f}" if name in photos else "",
                f"{rates[name]:.3g}",
                f"{rates[name] / peak:.0%}",
            ]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--size", type=int, default=512, help="side of the photos, pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="photos per step")
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--classes", type=int, default=81313, help="landmarks")
    parser.add_argument("--steps", type=int, default=0, help="timed at once; 0: 10, or 1 on a CPU")
    parser.add_argument("--backend", choices=BACKENDS, help="default: the first that sees a GPU")
    parser.add_argument("--cpu", action="store_true", help="try the code without a GPU")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (1 if arguments.cpu else 10)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.cpu:
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
    else:  # one GPU
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
    backend, device, why = choose(arguments.backend, arguments.cpu)
    if not backend:
        print("no GPU found, so nothing was measured")
        return
    os.environ["KERAS_BACKEND"] = backend
    hidden = {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    macs = int(_last_line(_COUNT, arguments.size, **hidden))
    import keras

    label = f"{backend} {importlib.metadata.version(backend)}, {device}"
    print(
        f"{label} ({why}), Keras {keras.__version__}. DOLG-R50, "
        f"{arguments.size} px: {macs / 1e9:.2f} GMAC per photo. {ROUNDS} rounds of "
        f"{arguments.steps} steps; rates are of the best. The backend chooses how it computes "
        "float32 products: on recent GPUs, as TF32.\n"
    )
    print("| on | work | precision | photos | best ms | median ms | photos/s | TFLOP/s | of peak |")
    print("| --- " * 9 + "|")
    for precision in arguments.precision:
        for batch in arguments.batch:
            keras.backend.clear_session()
            for cells in measure(backend, precision, batch, macs, arguments):
                print(f"| {' | '.join([label, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
