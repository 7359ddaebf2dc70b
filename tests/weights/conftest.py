"""What all tests of bad files hold: one sentence, little memory."""

import contextlib
import tracemalloc

import pytest

from dolg_tf.stage.config import InputError


@contextlib.contextmanager
def _peak_below(megabytes):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


@pytest.fixture
def peak_below():
    """Context manager that holds Python's and NumPy's memory below some megabytes."""
    return _peak_below


@pytest.fixture
def refused():
    """Function that holds that a file of weights is refused in one sentence that names it."""
    from dolg_tf.weights.files.tensors import open_tensors

    def hold(path, message, megabytes=16):
        with _peak_below(megabytes), pytest.raises(InputError, match=message) as caught:
            for tensor in open_tensors(path).tensors.values():
                tensor.read()
        text = str(caught.value)
        assert str(path) in text and "\n" not in text and len(text) < 700 + len(str(path))

    return hold
