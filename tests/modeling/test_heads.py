"""ArcFace against the formula in float64 and against stored values."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
from check_layer import check_layer

from dolg_tf.modeling.heads import ArcFace

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "margin_losses.npz"


def _naive_logits(descriptors, kernel, labels, margin, scale):
    """Equation 3 of the ArcFace paper, angle by angle."""
    out = np.zeros((len(descriptors), len(kernel)))
    for i, x in enumerate(descriptors.astype(np.float64)):
        for j, w in enumerate(kernel.astype(np.float64)):
            cosine = np.clip(x @ w / np.linalg.norm(x) / np.linalg.norm(w), -1, 1)
            angle = np.arccos(cosine) + (margin if j == labels[i] else 0)
            past = angle > np.pi
            out[i, j] = scale * (cosine - margin * np.sin(margin) if past else np.cos(angle))
    return out


def test_the_head_passes_the_layer_check(tmp_path):
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    check_layer(lambda dtype: ArcFace(5, dtype="float32"), [x], tmp_path)


@pytest.mark.parametrize("margin", [0.0, 0.15, 0.5])
def test_logits_are_the_papers(margin):
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((6, 8)).astype(np.float32), np.array([0, 4, 2, 2, 1, 3])
    head = ArcFace(5, margin, 30.0)
    head.build(x.shape)
    x[5] = -np.asarray(head.kernel)[3] + 0.01 * x[5]  # past pi - margin
    cosines = head(x)
    expected = _naive_logits(x, np.asarray(head.kernel), labels, margin, 30.0)
    np.testing.assert_allclose(head.logits(cosines, labels), expected, rtol=1e-4, atol=1e-4)
    plain = _naive_logits(x, np.asarray(head.kernel), labels, 0.0, 1.0)
    np.testing.assert_allclose(cosines, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", ["step0", "step1", "step2"])
def test_logits_equal_stored_ones(step):
    golden = np.load(GOLDEN)
    head = ArcFace(20, margin=0.15, scale=30.0)
    head.build((None, 16))
    head.kernel.assign(golden["weight"])
    logits = head.logits(head(golden[f"{step}/features"]), golden[f"{step}/labels"])
    expected = golden[f"{step}/arcface_logits"]
    # Rows 0 and 1 have cosine 1 and -1, where the sine is ill conditioned.
    np.testing.assert_allclose(logits[:2], expected[:2], atol=5e-3)
    np.testing.assert_allclose(logits[2:], expected[2:], atol=1e-4)


def test_gradients_are_finite_at_cosine_one_and_minus_one():
    head = ArcFace(3, margin=0.15)
    head.build((None, 4))
    head.kernel.assign(np.eye(3, 4))
    x = tf.constant([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]])
    labels = np.array([0, 0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = head.logits(head(x), labels)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    for gradient in tape.gradient(loss, [x, head.kernel.value]):
        assert np.isfinite(gradient).all()
    np.testing.assert_allclose(
        logits[:, 0], [30 * np.cos(0.15), 30 * (-1 - 0.15 * np.sin(0.15))], atol=5e-3
    )


def test_nothing_is_one_hot():
    """81,313 classes: the margin is put on with a scatter."""
    head = ArcFace(7)
    head.build((None, 4))
    call = tf.function(lambda x, y: head.logits(head(x), y))
    graph = call.get_concrete_function(tf.TensorSpec([3, 4]), tf.TensorSpec([3], tf.int32)).graph
    kinds = {op.type for op in graph.get_operations()}
    assert "TensorScatterUpdate" in kinds and "OneHot" not in kinds
