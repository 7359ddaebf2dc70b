"""The class heads against their formulas in float64 and against stored values."""

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from check_layer import check_layer

from dolg_tf.modeling.config import HEADS
from dolg_tf.modeling.heads import (
    CLASSES,
    ArcFace,
    CosFace,
    CurricularFace,
    SubCenterArcFace,
    build_head,
    dynamic_margins,
)
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "margin_losses.npz"
every_head = pytest.mark.parametrize("cls", CLASSES.values())


def _training(**options):
    return TrainingConfig(logdir="", **options)


def _normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _cosine(x, w):
    x, w = x.astype(np.float64), w.astype(np.float64)
    return np.clip(x @ w / np.linalg.norm(x) / np.linalg.norm(w), -1, 1)


def _naive_arcface(cosines, labels, margins, scale):
    """Equation 3 of the ArcFace paper, angle by angle, with the authors' fallback."""
    out = scale * np.asarray(cosines, np.float64)
    for i, label in enumerate(labels):
        cosine, margin = np.float64(cosines[i, label]), margins[label]
        angle = np.arccos(np.clip(cosine, -1, 1)) + margin
        out[i, label] = scale * (
            cosine - margin * np.sin(margin) if angle > np.pi else np.cos(angle)
        )
    return out


@every_head
def test_every_head_passes_the_layer_check(cls, tmp_path):
    margin = 0.2 if cls is CurricularFace else [0.1, 0.2, 0.3, 0.4, 0.5]
    check_layer(lambda dtype: cls(5, margin, dtype="float32"), [_normal(4, 8)], tmp_path)


@pytest.mark.parametrize("margins", [[0.0] * 5, [0.15] * 5, [0.05, 0.1, 0.2, 0.5, 0.3]])
def test_arcface_logits_are_the_papers(margins):
    x, labels = _normal(6, 8), np.array([0, 4, 2, 2, 1, 3])
    head = ArcFace(5, margins[0] if len(set(margins)) == 1 else margins, 30.0)
    head.build(x.shape)
    kernel = np.asarray(head.kernel)
    x[5] = -kernel[3] + 0.01 * x[5]  # past pi - margin
    cosines = head(x)
    plain = [[_cosine(row, w) for w in kernel] for row in x]
    np.testing.assert_allclose(cosines, plain, rtol=1e-4, atol=1e-5)
    expected = _naive_arcface(np.array(plain), labels, margins, 30.0)
    np.testing.assert_allclose(head.logits(cosines, labels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("margin", [0.35, (0.1, 0.2, 0.3, 0.4, 0.5)])
def test_cosface_subtracts_the_margin_from_the_target(margin):
    x, labels = _normal(4, 8), np.array([0, 4, 2, 2])
    head = CosFace(5, margin, 64.0)
    cosines = np.asarray(head(x))
    expected = 64.0 * cosines
    for i, label in enumerate(labels):
        expected[i, label] -= 64.0 * np.broadcast_to(margin, 5)[label]
    np.testing.assert_allclose(head.logits(cosines, labels), expected, rtol=1e-5)


def test_of_sub_centres_the_nearest_counts():
    x, labels = _normal(4, 8), np.array([0, 4, 2, 2])
    head = SubCenterArcFace(5, 0.3, 30.0, sub_centers=2)
    cosines = head(x)
    kernel = np.asarray(head.kernel)
    assert kernel.shape == (5, 2, 8)
    nearest = np.array([[max(_cosine(row, w) for w in centres) for centres in kernel] for row in x])
    np.testing.assert_allclose(cosines, nearest, rtol=1e-4, atol=1e-5)
    expected = _naive_arcface(nearest, labels, [0.3] * 5, 30.0)
    np.testing.assert_allclose(head.logits(cosines, labels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cls", "name"), [(ArcFace, "arcface"), (CurricularFace, "curricular")])
def test_logits_equal_stored_ones(cls, name):
    golden = np.load(GOLDEN)
    head = cls(20, margin=0.15, scale=30.0)
    head.build((None, 16))
    head.kernel.assign(golden["weight"])
    for step in ("step0", "step1", "step2"):
        cosines = head(golden[f"{step}/features"])
        logits = head.logits(cosines, golden[f"{step}/labels"], training=True)
        expected = golden[f"{step}/{name}_logits"]
        # Rows 0 and 1 have cosine 1 and -1, where the sine is ill conditioned.
        np.testing.assert_allclose(logits[:2], expected[:2], atol=5e-3)
        np.testing.assert_allclose(logits[2:], expected[2:], atol=1e-4)
        if cls is CurricularFace:
            np.testing.assert_allclose(head.t, golden[f"{step}/t"][0], atol=1e-7)


def test_curricularface_moves_its_average_in_training_alone_and_by_counted_photos():
    x, labels = _normal(4, 8), np.array([0, 4, 2, 2])
    head = CurricularFace(5, 0.15, 30.0)
    cosines = np.asarray(head(x))
    head.logits(cosines, labels)
    assert float(head.t) == 0
    head.logits(cosines, labels, np.zeros(4), training=True)
    assert float(head.t) == 0
    head.t.assign(0.5)
    head.logits(cosines, labels, np.array([1, 0, 1, 1]), training=True)
    mean = (cosines[0, 0] + cosines[2, 2] + cosines[3, 2]) / 3
    np.testing.assert_allclose(float(head.t), 0.01 * mean + 0.99 * 0.5, rtol=1e-6)
    assert [variable.name for variable in head.variables] == ["kernel", "t"]


def test_curricularface_weighs_hard_negatives_up():
    head = CurricularFace(3, 0.15, 30.0)
    head.build((None, 2))
    head.t.assign(0.4)
    cosines = np.array([[0.5, 0.45, 0.2]], np.float32)  # cos(acos(0.5) + 0.15) is 0.365
    logits = np.asarray(head.logits(cosines, np.array([0])))
    np.testing.assert_allclose(logits[0, 1:], [30 * 0.45 * (0.4 + 0.45), 30 * 0.2], rtol=1e-5)


def test_curricularface_averages_over_two_replicas():
    script = pathlib.Path(__file__).parents[1] / "support" / "curricular_two_replicas.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@every_head
def test_gradients_are_finite_at_cosine_one_and_minus_one(cls):
    head = cls(3, margin=0.15, scale=30.0)
    head.build((None, 4))
    cosines, labels = tf.constant([[1.0, 0.0, 1.0], [-1.0, 0.0, 0.0]]), np.array([0, 0])
    with tf.GradientTape() as tape:
        tape.watch(cosines)
        logits = head.logits(cosines, labels, training=True)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    assert np.isfinite(tape.gradient(loss, cosines)).all()
    arcface = [np.cos(0.15), -1 - 0.15 * np.sin(0.15)]
    expected = [1 - 0.15, -1 - 0.15] if cls is CosFace else arcface
    np.testing.assert_allclose(logits[:, 0], np.multiply(30, expected), atol=5e-3)


def test_the_gradient_of_the_cosines_is_that_of_the_formula():
    head = ArcFace(5)
    head.build((None, 8))
    head.kernel.assign(3 * _normal(5, 8, seed=2))
    x, upstream = _normal(4, 8), _normal(4, 5, seed=3)
    with tf.GradientTape() as tape:
        tape.watch(inputs := tf.constant(x))
        cosines = head(inputs)
    found = tape.gradient(cosines, [inputs, head.kernel.value], output_gradients=upstream)
    x, kernel = x.astype(np.float64), np.asarray(head.kernel, np.float64)
    expected = np.zeros_like(x), np.zeros_like(kernel)
    for i in range(len(x)):
        for j in range(len(kernel)):
            lengths = np.linalg.norm(x[i]), np.linalg.norm(kernel[j])
            rows = x[i] / lengths[0], kernel[j] / lengths[1]
            cosine = rows[0] @ rows[1]
            expected[0][i] += upstream[i, j] * (rows[1] - cosine * rows[0]) / lengths[0]
            expected[1][j] += upstream[i, j] * (rows[0] - cosine * rows[1]) / lengths[1]
    for gradient, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-6)


@every_head
def test_a_zero_descriptor_or_centre_has_a_finite_gradient(cls):
    head = cls(3, margin=0.15, scale=30.0)
    head.build((None, 4))
    head.kernel.assign(np.zeros(head.kernel.shape))
    x = tf.constant([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.square(head(x) - 1.0))
    for gradient in tape.gradient(loss, [x, head.kernel.value]):
        assert np.isfinite(gradient).all()


@every_head
def test_nothing_is_one_hot(cls):
    """With 81,313 classes, the margin is applied by a scatter."""
    head = cls(7, margin=0.1)
    head.build((None, 4))
    call = tf.function(lambda x, y: head.logits(head(x), y, training=True))
    graph = call.get_concrete_function(tf.TensorSpec([3, 4]), tf.TensorSpec([3], tf.int32)).graph
    kinds = {op.type for op in graph.get_operations()}
    assert "TensorScatterUpdate" in kinds and "OneHot" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "classes"), [(SubCenterArcFace, 81_313), (ArcFace, 203_094)])
def test_the_heads_of_gldv2_train(cls, classes):
    head = cls(classes, np.full(classes, 0.3), 30.0)
    head.build((None, 512))
    x, labels = tf.constant(_normal(8, 512)), tf.constant(np.arange(8) * 10_000)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            logits = head.logits(head(x), labels, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        head.kernel.value.assign_sub(tape.gradient(loss, head.kernel.value))
        return loss

    first, second = float(step()), float(step())
    assert second < first


def test_dynamic_margins_are_larger_for_rarer_classes():
    counts = [16, 1, 0, 81, 256]
    margins = dynamic_margins(counts, 0.05, 0.45)
    assert margins.dtype == np.float32
    low, high = 256 ** (-1 / 4), 1.0
    for count, margin in zip(counts, margins, strict=True):
        share = (max(count, 1) ** (-1 / 4) - low) / (high - low)
        np.testing.assert_allclose(margin, 0.05 + 0.45 * share, rtol=1e-6)
    np.testing.assert_allclose(margins[[1, 2, 4]], [0.5, 0.5, 0.05], rtol=1e-6)
    np.testing.assert_allclose(dynamic_margins([7, 7], 0.05, 0.45), 0.05, rtol=1e-6)


@pytest.mark.parametrize("loss", HEADS)
def test_a_recipe_names_its_head(loss):
    cls = CLASSES[loss]
    head = build_head(_training(loss=loss, margin=0.2, scale=20, sub_centers=4), 5)
    assert type(head) is cls and head.name == "head"
    assert (head.num_classes, head.margin, head.scale) == (5, 0.2, 20)
    assert getattr(head, "sub_centers", 4) == 4
    if loss != "curricularface":
        head = build_head(_training(loss=loss, margin=0.1, margin_range=0.3), 3, [1, 5, 10])
        np.testing.assert_allclose(head.margin, dynamic_margins([1, 5, 10], 0.1, 0.3))


def test_one_seed_gives_one_head():
    kernels = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        head = build_head(_training(loss="subcenter_arcface"), 5)
        head.build((None, 8))
        kernels.append(np.asarray(head.kernel))
    np.testing.assert_array_equal(*kernels)
    assert kernels[0].std() > 0.2


def test_margins_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"--margin_range=0\.3: curricularface has one margin"):
        build_head(_training(loss="curricularface", margin_range=0.3), 3, [1, 2, 3])
    with pytest.raises(ValueError, match="each of the 3 classes"):
        build_head(_training(margin_range=0.3), 3, [1, 2])
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 classes"):
        ArcFace(3, [0.1, 0.2])
