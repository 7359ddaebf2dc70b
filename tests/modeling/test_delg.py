"""DELG's local branch against numbers of its authors' code."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling.delg import DelgLocal, attended_mean, reconstruction_error
from dolg_tf.modeling.heads import ArcFace

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "delg_branch.npz"
LABELS, CLASSES = np.array([3, 7]), 11
LAYERS = {  # ours: theirs
    "encode": "autoencoder.conv1",
    "expand": "autoencoder.conv2",
    "conv": "attention.conv1",
    "score": "attention.conv2",
}


def _branch(standin):
    """Returns the branch and both classifiers with the stand-in weights of seed 0."""
    branch = DelgLocal(name="delg")
    branch.build((None, None, None, 1024))
    for name, theirs in LAYERS.items():
        layer = getattr(branch, name)
        *_, inputs, outputs = layer.kernel.shape
        kernel = standin.value(f"{theirs}.weight", (outputs, inputs, 1, 1))
        layer.kernel.assign(kernel.transpose(2, 3, 1, 0))
        layer.bias.assign(standin.value(f"{theirs}.bias", (outputs,)))
    for variable, theirs in (
        (branch.norm.gamma, "weight"),
        (branch.norm.beta, "bias"),
        (branch.norm.moving_mean, "running_mean"),
        (branch.norm.moving_variance, "running_var"),
    ):
        variable.assign(standin.value(f"attention.conv1_bn.{theirs}", (512,)))
    classifier = keras.layers.Dense(CLASSES)
    classifier.build((None, 1024))
    kernel = standin.value("attention_classifier.weight", (CLASSES, 1024))
    classifier.kernel.assign(kernel.T)
    classifier.bias.assign(standin.value("attention_classifier.bias", (CLASSES,)))
    head = ArcFace(CLASSES, margin=0.1, scale=45.25)
    head.build((None, 512))
    head.kernel.assign(standin.value("descriptor_classifier.weight", (CLASSES, 512)))
    return branch, classifier, head


def _inputs():
    rng = np.random.default_rng([0, 3])
    block3 = np.maximum(rng.standard_normal((2, 9, 12, 1024)), 0).astype("float32")
    return tf.constant(block3), tf.constant(rng.standard_normal((2, 512)).astype("float32"))


def _cross_entropy(logits):
    return tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(LABELS, logits, True))


def _results(standin, training):
    branch, classifier, head = _branch(standin)
    block3, prelogits = _inputs()
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([block3, prelogits])
        found = dict(
            zip(
                ("features", "attention", "expanded"),
                branch(block3, training=training),
                strict=True,
            )
        )
        pooled = attended_mean(found["attention"], found["expanded"])
        logits, cosines = classifier(pooled), head(prelogits)
        described = head.logits(cosines, LABELS) if training else head.scale * cosines
        losses = {
            "descriptor": _cross_entropy(described),
            "attention": _cross_entropy(logits),
            "reconstruction": tf.reduce_mean(reconstruction_error(block3, found["expanded"])),
        }
        losses["total"] = losses["descriptor"] + losses["attention"] + 10 * losses["reconstruction"]
    return block3, branch, classifier, head, found, (pooled, logits, described), losses, tape


def _close(found, expected, atol=3e-6):
    scale = max(float(np.abs(expected).max()), 1e-12)
    np.testing.assert_allclose(np.asarray(found) / scale, expected / scale, atol=atol)


def _check_outputs(kind, found, pooled, losses):
    golden = np.load(GOLDEN)
    features = np.asarray(found["features"])
    if kind == "training":
        features = features[:, ::4, ::4]
    _close(found["attention"][..., 0], golden[f"{kind}/attention"])
    _close(features, golden[f"{kind}/features"])
    _close(found["expanded"][..., ::64], golden[f"{kind}/reconstructed"])
    names = ("attention_prelogits", "attention_logits", "descriptor_logits")
    for values, name in zip(pooled, names, strict=True):
        _close(values, golden[f"{kind}/{name}"])
    _close([losses[name].numpy() for name in losses], golden[f"{kind}/losses"])


def test_inference_is_the_authors(standin):
    *_, found, pooled, losses, _ = _results(standin, training=False)
    _check_outputs("inference", found, pooled, losses)


@pytest.fixture(scope="module")
def trained(standin):
    return _results(standin, training=True)


def test_training_is_the_authors(trained, standin):
    _, branch, *_, found, pooled, losses, _ = trained
    _check_outputs("training", found, pooled, losses)
    golden, norm = np.load(GOLDEN), branch.norm
    _close(norm.moving_mean.value, golden["training/moving_mean"])
    count = 2 * 9 * 12
    start = 0.99 * standin.value("attention.conv1_bn.running_var", (512,))
    # TensorFlow's fused batch norm counts N / (N - 1), ours does not.
    biased = start + (golden["training/moving_variance"] - start) * (count - 1) / count
    _close(norm.moving_variance.value, biased)


def test_gradients_are_the_authors(trained):
    _, branch, classifier, head, *_, losses, tape = trained
    golden = np.load(GOLDEN)
    kernels = {theirs: getattr(branch, name).kernel for name, theirs in LAYERS.items()}
    kernels |= {"attention_classifier": classifier.kernel, "descriptor_classifier": head.kernel}
    for theirs, variable in kernels.items():
        expected = golden[f"training/total_gradient/{theirs}.weight"]
        gradient = tf.convert_to_tensor(tape.gradient(losses["total"], variable.value)).numpy()
        if theirs == "descriptor_classifier":  # ours has a row per class
            gradient = gradient.T
        gradient = gradient.reshape(gradient.shape[-2:])
        if expected.ndim == 1:
            gradient = gradient[:, 0]
        # Parts of it: every so many rows and columns.
        steps = [
            slice(None, None, a // b) for a, b in zip(gradient.shape, expected.shape, strict=True)
        ]
        _close(gradient[tuple(steps)], expected, 1e-5)


def test_which_loss_reaches_what(trained):
    block3, branch, classifier, head, *_, losses, tape = trained
    parts = {
        "encode": branch.encode.kernel,
        "expand": branch.expand.kernel,
        "conv": branch.conv.kernel,
        "score": branch.score.kernel,
        "classifier": classifier.kernel,
        "head": head.kernel,
    }
    reached = {
        loss: {
            name for name, v in parts.items() if tape.gradient(losses[loss], v.value) is not None
        }
        for loss in ("descriptor", "attention", "reconstruction")
    }
    assert tape.gradient(losses["total"], block3) is None
    assert reached == {
        "descriptor": {"head"},
        "attention": {"encode", "expand", "conv", "score", "classifier"},
        "reconstruction": {"encode", "expand"},
    }
