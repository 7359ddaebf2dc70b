"""Exports hold nothing that the oldest release of TensorFlow named for their mode does not know.

A name in a failure is new in the graph: try the export in that release (docs/export.md says how),
then add it to golden/tensorflow_ops.json, or raise the mode's `tensorflow`.
"""

import numpy as np
import older_tensorflow
import pytest
import tensorflow as tf

from dolg_tf.runtime.session import CppSession
from dolg_tf.serving import older_loaders
from dolg_tf.serving.config import MODES
from dolg_tf.serving.graph.folding import as_tensor
from dolg_tf.serving.saved_model import write_signatures

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"mode": "kaggle", "precision": "bfloat16"}, marks=slow),
        pytest.param({"mode": "delg", "features": "both", "iou": 1.0}, marks=slow),
        pytest.param({"mode": "tf1", "features": "both"}, marks=slow),
    ],
    ids=lambda options: options.get("mode", "serving"),
)
def test_an_export_holds_nothing_newer(export, options):
    release = MODES[options.get("mode", "serving")].tensorflow
    assert older_tensorflow.unknown(export(**options), release) == set()


def test_what_only_the_latest_releases_know_is_taken_out(tmp_path, monkeypatch):
    """A variable, the function that saves it, and a function that has a gradient of its own."""
    weights = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 300], tf.float32, "x")], autograph=False)
    def f(x):
        return {"y": tf.nn.silu(tf.matmul(x, as_tensor(weights, tf.float32)))}

    with monkeypatch.context() as patched:
        patched.setattr(older_loaders, "simplify", lambda path: None)
        write_signatures({"serving_default": f}, tmp_path)
    assert older_tensorflow.unknown(tmp_path, "2.2") == {
        "DisableCopyOnRead",
        "VarHandleOp: ['debug_name']",
    }
    older_loaders.simplify(tmp_path)
    assert older_tensorflow.unknown(tmp_path, "2.2") == set()
    x = np.ones((2, 300), np.float32)
    expected = f(tf.constant(x))["y"]
    with CppSession(tmp_path) as session:
        found = session.run("serving_default", {"x": x})["y"]
    np.testing.assert_array_equal(found, expected)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.signatures["serving_default"](x=x)["y"], expected)
    fingerprint = tf.saved_model.experimental.read_fingerprint(str(tmp_path))
    older_loaders.simplify(tmp_path)  # the fingerprint is that of the file as it is
    again = tf.saved_model.experimental.read_fingerprint(str(tmp_path))
    assert again.saved_model_checksum == fingerprint.saved_model_checksum
