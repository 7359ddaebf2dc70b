"""What all tests of bad files hold: one sentence, little memory."""

import pytest
from peak_memory import peak_below

from dolg_tf.stage.config import InputError


@pytest.fixture
def refused():
    """Function that holds that a file of weights is refused in one sentence that names it."""
    from dolg_tf.weights.files.tensors import open_tensors

    def hold(path, message, megabytes=16):
        with peak_below(megabytes), pytest.raises(InputError, match=message) as caught:
            for tensor in open_tensors(path).tensors.values():
                tensor.read()
        text = str(caught.value)
        assert str(path) in text and "\n" not in text and len(text) < 700 + len(str(path))

    return hold
