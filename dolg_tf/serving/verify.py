"""Checks a written SavedModel before it is put in place.

It is run through the C++ loader, which TF Serving uses, and through Python's, on photos of odd
sizes, and must answer as the Keras network does.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.dolg import has_local_branch, intermediates
from dolg_tf.runtime.session import CppSession
from dolg_tf.serving import requests, signatures
from dolg_tf.stage.whitening import Whitening

# Height and width in pixels; the last ones shrink to 3 x 3 at scale 0.25.
_SIZES = ((97, 130), (32, 45), (10, 10))
_TOLERANCE = 1e-4
_DESCRIPTOR_COSINE, _MAP_COSINE = 0.999, 0.99  # of bfloat16 to float32
_GRAPH_BYTES = 16 << 20  # at most, of a model without its weights


@dataclasses.dataclass(frozen=True)
class Check:
    """A signature, its inputs, and what the Keras network makes of them."""

    signature: str
    inputs: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]


def verify(path: pathlib.Path, network, config, whitening: Whitening | None) -> None:
    """Checks a written model.

    Args:
      path: the SavedModel directory.
      network: the Keras network in float32.
      config: the `ExportConfig` it was written with.
      whitening: what is inside it.

    Raises:
      RuntimeError: when it does not load, answers otherwise than the network, or holds the
        weights twice.
    """
    _check_size(path, network)
    checks = _CHECKS[config.mode](network, config, whitening)
    with CppSession(path) as session:
        for check in checks:
            found = session.run(check.signature, check.inputs)
            _compare(check, found, config.precision, "C++ loader")
    run = _python_loader(path, config.mode)
    for check in checks:
        _compare(check, run(check), config.precision, "Python's loader")


def _check_size(path: pathlib.Path, network) -> None:
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    needed = sum(variable.numpy().nbytes for variable in network.variables)
    if stored > 1.1 * needed + _GRAPH_BYTES:
        raise RuntimeError(
            f"the exported model has {stored:,} bytes for {needed:,} bytes of weights: they are "
            "stored more than once"
        )


def _python_loader(path: pathlib.Path, mode: str) -> Callable[[Check], dict[str, np.ndarray]]:
    """Returns a function that runs a check as users of Python do."""
    loaded = tf.saved_model.load(str(path))
    prune = functools.cache(loaded.prune) if mode == "tf1" else None

    def run(check):
        inputs = {name: tf.constant(array) for name, array in check.inputs.items()}
        if prune is None:
            outputs = loaded.signatures[check.signature](**inputs)
        else:
            fetches = tuple(f"{name}:0" for name in check.expected)
            found = prune(tuple(f"{name}:0" for name in inputs), fetches)(*inputs.values())
            outputs = dict(zip(check.expected, found, strict=True))
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


def _compare(check: Check, found: dict[str, np.ndarray], precision: str, loader: str) -> None:
    where = f"signature {check.signature!r}, {loader}"
    if set(found) != set(check.expected):
        raise RuntimeError(f"{where}: outputs {sorted(found)}, not {sorted(check.expected)}")
    for name, expected in check.expected.items():
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


def _photos(*batch: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*batch, *size, 3), dtype=np.uint8) for size in _SIZES]


class _Reference:
    """What the Keras network says, one scale at a time, without any of the exported graph."""

    def __init__(self, network: keras.Model, whitening: Whitening | None):
        photos = tf.TensorSpec([None, None, None, 3], tf.float32)
        self._network = tf.function(network, input_signature=[photos], autograph=False)
        self._whitening = whitening

    def rows(self, photos: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns unit descriptors (S, B, D) of uint8 photos (B, H, W, 3)."""
        rows, floats = [], images.to_float(tf.constant(photos))
        for scale in scales:
            size = images.scaled_size(*photos.shape[1:3], scale)
            rows.append(_unit(self._network(images.resize(floats, *size)).numpy()))
        return np.stack(rows)

    def descriptors(self, photos: np.ndarray, scales: Sequence[float]) -> np.ndarray:
        """Returns the exported descriptors (B, K)."""
        mean = _unit(self.rows(photos, scales).mean(0))
        if self._whitening is None:
            return mean
        return _unit((mean - self._whitening.mean) @ self._whitening.projection)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Returns rows of unit L2 norm; a row of zeros stays one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)


def _serving(network: keras.Model, config, whitening: Whitening | None) -> list[Check]:
    reference, checks = _Reference(network, whitening), []
    scales = np.asarray(config.scales, np.float32)
    for photos in _photos(2):
        expected = {"descriptors": reference.descriptors(photos, scales)}
        checks.append(Check("images", {"images": photos, "scales": scales}, expected))
    checks.append(_encoded(checks))
    if has_local_branch(network):
        seen, spec = intermediates(network), tf.TensorSpec([None, None, 3], tf.uint8)
        for signature, of in signatures.OF_LOCAL_BRANCH.items():
            compute = tf.function(of(seen), input_signature=[spec], autograph=False)
            for photo in _photos():
                expected = {name: x.numpy() for name, x in compute(tf.constant(photo)).items()}
                checks.append(Check(signature, {"image": photo}, expected))
    return checks


def _encoded(checks: list[Check]) -> Check:
    """Returns a check of photos of all sizes in one request, with one among them that is none."""
    photos = [tf.io.encode_png(check.inputs["images"][0]).numpy() for check in checks]
    rows = [check.expected["descriptors"][0] for check in checks]
    expected = {
        "descriptors": np.stack([*rows, np.zeros_like(rows[0])]),
        "status": np.asarray([requests.OK] * len(rows) + [requests.UNDECODABLE], np.int32),
    }
    image_bytes = np.asarray([*photos, b"no photo"], object)
    return Check("serving_default", {"image_bytes": image_bytes}, expected)


def _delg(network: keras.Model, config, whitening: None) -> list[Check]:
    reference, checks = _Reference(network, whitening), []
    scales = np.asarray((0.7071, 1.0, 1.4142, 0.25), np.float32)
    asked = np.asarray((3, 0, 3, 1), np.int32)
    for photo in _photos():
        rows = reference.rows(photo[None], scales)[:, 0]
        inputs = {"input_image": photo, "input_scales": scales}
        some = {**inputs, "input_global_scales_ind": asked}
        checks.append(Check("serving_default", some, {"global_descriptors": rows[[0, 1, 3]]}))
        if config.mode == "tf1":  # there the indices have a default
            checks.append(Check("serving_default", inputs, {"global_descriptors": rows}))
    return checks


def _kaggle(network: keras.Model, config, whitening: Whitening | None) -> list[Check]:
    reference, checks = _Reference(network, whitening), []
    for photo in _photos():
        expected = {"global_descriptor": reference.descriptors(photo[None], config.scales)[0]}
        checks.append(Check("serving_default", {"input_image": photo}, expected))
    return checks


_CHECKS = {"serving": _serving, "delg": _delg, "kaggle": _kaggle, "tf1": _delg}
