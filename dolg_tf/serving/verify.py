"""Checks of a written SavedModel, before it is put in place.

It runs on photos of odd sizes in the C++ loader, which TF Serving and our own stages use, and must
answer as the Keras network does. A mode whose users load it in Python is run there too: Python's
loader restores objects, and may refuse what the C++ loader takes.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.graph.pyramid import scaling_of
from dolg_tf.stage import quiet

# Height and width in pixels; the last size shrinks to 3 x 3 at scale 0.25.
_SIZES = ((97, 130), (32, 45), (10, 10))
_TOLERANCE = 1e-4
_DESCRIPTOR_COSINE, _MAP_COSINE = 0.999, 0.99  # of bfloat16 to float32
_GRAPH_BYTES = 16 << 20  # the most that a model without its weights may have


@dataclasses.dataclass(frozen=True)
class Check:
    """A signature, its inputs, and the outputs of the Keras network for them.

    `compared` makes of outputs what is compared, where that is not the outputs themselves.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    compared: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict


# Runs a check and returns the outputs by name.
Run = Callable[[Check], dict[str, np.ndarray]]


def signature_runner(path: pathlib.Path) -> Run:
    """Returns a function that runs a check through Python's loader."""
    loaded = tf.saved_model.load(str(path))

    def run(check):
        inputs = {name: tf.constant(array) for name, array in check.inputs.items()}
        outputs = loaded.signatures[check.signature](**inputs)
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def verify(
    path: pathlib.Path,
    network: keras.Model,
    checks: Sequence[Check],
    precision: str,
    runner: Callable[[pathlib.Path], Run] | None = signature_runner,
    held: int = 0,
) -> None:
    """Checks a written model.

    Args:
      path: the SavedModel directory.
      network: the Keras network in float32.
      checks: the calls that it must answer as the network does.
      precision: of its convolutions.
      runner: directory -> function that runs a check as users of Python do; None: they do not.
      held: bytes that the model holds besides its weights.

    Raises:
      RuntimeError: when it does not load, does not answer as the network does, or stores the
        weights twice.
    """
    _check_size(path, network, held)
    with CppSession(path) as session, quiet.quietly():
        for check in checks:
            found = session.run(check.signature, check.inputs)
            _compare(check, found, precision, "C++ loader")
    if runner is None:
        return
    with quiet.quietly():
        run = runner(path)
        for check in checks:
            _compare(check, run(check), precision, "Python's loader")


def _check_size(path: pathlib.Path, network, held: int) -> None:
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    needed = held + sum(variable.numpy().nbytes for variable in network.variables)
    if stored > 1.1 * needed + _GRAPH_BYTES:
        raise RuntimeError(
            f"the exported model has {stored:,} bytes for {needed:,} bytes of weights: they are "
            "stored more than once"
        )


def _compare(check: Check, found: dict[str, np.ndarray], precision: str, loader: str) -> None:
    where = f"signature {check.signature!r}, {loader}"
    if set(found) != set(check.expected):
        raise RuntimeError(f"{where}: outputs {sorted(found)}, not {sorted(check.expected)}")
    found = check.compared(found)
    for name, expected in check.compared(check.expected).items():
        expected, array = np.asarray(expected), found[name]
        if array.shape != expected.shape or array.dtype != expected.dtype:
            raise RuntimeError(
                f"{where}: {name} is {array.dtype} {array.shape}, not {expected.dtype} "
                f"{expected.shape}"
            )
        if expected.dtype != np.float32 or precision == "float32":
            error = np.abs(array - expected) / np.maximum(np.abs(expected), 1.0)
            right, text = error.max(initial=0.0) < _TOLERANCE, f"{error.max(initial=0.0):.1e}"
        else:
            descriptors = "descriptor" in name
            rows = (-1, expected.shape[-1]) if descriptors else (1, -1)
            cosine = _cosine(array.reshape(rows), expected.reshape(rows)).min(initial=1.0)
            right = cosine >= (_DESCRIPTOR_COSINE if descriptors else _MAP_COSINE)
            text = f"a cosine of {cosine:.5f}"
        if not right:
            raise RuntimeError(f"{where}: {name} differ from the network's by {text}")


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosines of rows; 1 for two rows of zeros."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both_zero = ~(a.any(-1) | b.any(-1))
    return np.where(both_zero, 1.0, (a * b).sum(-1) / np.maximum(norms, 1e-30))


def random_photos(*batch: int) -> list[np.ndarray]:
    """Returns uint8 RGB photos (*batch, H, W, 3) of odd sizes, the same each time."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*batch, *size, 3), dtype=np.uint8) for size in _SIZES]


class Reference:
    """The Keras network at one scale at a time, without any of the exported graph."""

    def __init__(self, network: keras.Model, whitening: Whitening | None):
        photos = tf.TensorSpec([None, None, None, 3], tf.float32)
        self._network = tf.function(network, input_signature=[photos], autograph=False)
        self._whitening, self._scaling = whitening, scaling_of(network)

    def rows(self, photos: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns descriptors (S, B, D) of uint8 photos (B, H, W, 3), see `pyramid.per_scale`."""
        rows, floats = [], images.to_float(tf.constant(photos))
        for scale in scales:
            size = self._scaling.sized(*photos.shape[1:3], scale)
            found = self._network(images.resize(floats, *size)).numpy()
            rows.append(_unit(found) if self._scaling.unit else found)
        return np.stack(rows)

    def descriptors(self, photos: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns the exported descriptors (B, K)."""
        mean = _unit(self.rows(photos, scales).mean(0))
        if self._whitening is None:
            return mean
        return _unit((mean - self._whitening.mean) @ self._whitening.projection)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of unit L2 norm; a row of zeros stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
