"""Mode `tf1`: pruned as DELF's extractor prunes it, and run in a session."""

import numpy as np
import openvino_runs
import pytest
import tensorflow as tf

from dolg_tf.runtime.session import CppSession

pytestmark = pytest.mark.slow

SCALES = (0.70710677, 1.0, 1.4142135)
FEEDS = ["input_image:0", "input_scales:0", "input_global_scales_ind:0"]
FETCHES = ["global_descriptors:0"]


@pytest.fixture(scope="module")
def exported(export):
    return export(mode="tf1")


@pytest.fixture(scope="module")
def expected(photos, one_scale):
    return np.stack([one_scale(photos(61, 83, 3), scale) for scale in SCALES])


def test_pruned_with_two_and_with_three_feeds(exported, photos, expected):
    model = tf.saved_model.load(str(exported))
    photo, scales = tf.convert_to_tensor(photos(61, 83, 3)), tf.constant(SCALES)
    # Without indices: all scales.
    every = model.prune(FEEDS[:2], FETCHES)
    np.testing.assert_allclose(every(photo, scales)[0], expected, atol=1e-5)
    np.testing.assert_allclose(every(photo, scales[1:])[0], expected[1:], atol=1e-5)
    some = model.prune(FEEDS, FETCHES)
    indices = tf.constant([2, 0, 2])
    np.testing.assert_allclose(some(photo, scales, indices)[0], expected[[0, 2]], atol=1e-5)
    for wrong in ([], [3], [-1]):
        with pytest.raises(tf.errors.InvalidArgumentError, match="input_global_scales_ind"):
            some(photo, scales, tf.constant(wrong, tf.int32))
    tiny = some(tf.constant(photos(10, 10, 3)), tf.constant([0.25]), tf.constant([0]))[0]
    assert tiny.shape == (1, 16) and np.isfinite(tiny).all()


def test_run_in_a_session(exported, photos, expected):
    with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
        tf.compat.v1.saved_model.load(session, ["serve"], str(exported))
        image, scales, indices = (graph.get_tensor_by_name(name) for name in FEEDS)
        feeds = {image: photos(61, 83, 3), scales: SCALES}
        rows = session.run(FETCHES, feeds)[0]
        np.testing.assert_allclose(rows, expected, atol=1e-5)
        rows = session.run(FETCHES, {**feeds, indices: [1]})[0]
        np.testing.assert_allclose(rows, expected[[1]], atol=1e-5)
        with pytest.raises(tf.errors.InvalidArgumentError, match="an index that has no scale"):
            session.run(FETCHES, {**feeds, indices: [3]})


def test_weights_are_stored_once(exported, network):
    stored = sum(file.stat().st_size for file in exported.rglob("*") if file.is_file())
    assert stored < 1.2 * 4 * network.count_params()


def test_the_cpp_loader_knows_the_default(exported, photos, expected):
    inputs = {"input_image": photos(61, 83, 3), "input_scales": np.asarray(SCALES, np.float32)}
    with CppSession(exported) as session:
        rows = session.run("serving_default", inputs)["global_descriptors"]
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_openvino_gives_the_same_at_all_scales(exported, photos, expected):
    inputs = {"input_image": photos(61, 83, 3), "input_scales": np.asarray(SCALES, np.float32)}
    rows = openvino_runs.run(exported, inputs)["global_descriptors"]
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_local_features_by_delfs_feeds_and_fetches(export, photos, expected):
    model = tf.saved_model.load(str(export(mode="tf1", features="both")))
    names = ("image", "scales", "abs_thres", "max_feature_num", "global_scales_ind")
    fetches = ("boxes", "features", "scales", "scores", "global_descriptors")
    call = model.prune([f"input_{name}:0" for name in names], [f"{name}:0" for name in fetches])
    photo = tf.constant(photos(61, 83, 3))
    found = call(photo, tf.constant(SCALES), tf.constant(0.0), tf.constant(7), tf.constant([2, 0]))
    boxes, features, scales, scores, rows = (tensor.numpy() for tensor in found)
    assert (len(boxes), len(features), scales.shape, scores.shape) == (7, 7, (7,), (7, 1))
    assert (np.diff(scores[:, 0]) <= 0).all()
    np.testing.assert_allclose(
        boxes[:, 2:] - boxes[:, :2], 290 * np.stack([scales, scales], 1), rtol=1e-5
    )
    np.testing.assert_allclose(rows, expected[[0, 2]], atol=1e-5)
