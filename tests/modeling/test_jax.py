"""Layers, heads and network give the same numbers on JAX as on TensorFlow."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import both_backends
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="JAX is not installed: pip install jax"
)


def _on_jax(folder: pathlib.Path, *parts: str) -> dict[str, np.ndarray]:
    script, output = pathlib.Path(both_backends.__file__), folder / "numbers.npz"
    # Most of the time goes into compiling what runs once.
    environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    done = subprocess.run(
        [sys.executable, str(script), str(output), *parts],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(output) as found:
        return dict(found)


def _check(found: dict, expected: dict, tolerance: float) -> None:
    """Compares arrays, each relative to its own largest number."""
    for key, wanted in expected.items():
        assert found[key].shape == wanted.shape, key
        error = np.abs(found[key] - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        assert error < tolerance, f"{key} is {error:.1e} off"


def test_heads_layers_and_r50_are_those_of_tensorflow_and_of_the_authors(tmp_path):
    found = _on_jax(tmp_path, "heads", "dilated", "official")
    expected = both_backends.numbers(["heads", "dilated"])
    height, width = both_backends.SIZE
    with np.load(both_backends.GOLDEN / "r50.npz") as golden:
        expected |= {k: golden[k] for k in golden.files if k.startswith(f"{height}x{width}/")}
    assert found.keys() == expected.keys() and len(found) == 13 + 5 + 5
    _check(found, expected, 1e-4)


@pytest.mark.slow
def test_a_training_step_is_that_of_tensorflow(tmp_path):
    found, expected = _on_jax(tmp_path, "training"), both_backends.numbers(["training"])
    assert found.keys() == expected.keys()
    # What a batch norm takes away again has no gradient but rounding errors.
    assert np.abs(expected.pop("local/conv/bias")).max() < 1e-3
    _check(found, expected, 1e-3)
