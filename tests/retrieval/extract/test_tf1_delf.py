"""A DELF extractor of TensorFlow 1, known by the names of its tensors alone, is run as it is."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.extract.stage import ExtractConfig, extract
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.local.making import LocalConfig
from dolg_tf.stage.config import InputError

v1 = tf.compat.v1
SIDE = 16  # of a cell, pixels


def _write(path):
    """Means of cells as features, their green as score; DELF's names, and no signature."""
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.uint8, [None, None, 3], "input_image")
        scales = v1.placeholder(tf.float32, [None], "input_scales")
        limit = v1.placeholder(tf.int32, [], "input_max_feature_num")
        least = v1.placeholder(tf.float32, [], "input_abs_thres")
        kernel = v1.Variable(tf.eye(3) + 0.5, use_resource=True)
        means = tf.nn.avg_pool2d(tf.cast(image, tf.float32)[None], SIDE, SIDE, "VALID")[0]
        shape = tf.shape(means)
        rows = tf.matmul(tf.reshape(means, [-1, 3]), kernel)
        kept = tf.where(rows[:, 1] >= least)[:, 0]
        best = tf.math.top_k(tf.gather(rows[:, 1], kept), tf.minimum(limit, tf.size(kept))).indices
        kept = tf.cast(tf.gather(kept, best), tf.int32)
        corners = tf.cast(tf.stack([kept // shape[1], kept % shape[1]], 1) * SIDE, tf.float32)
        tf.identity(tf.concat([corners, corners + SIDE], 1) / scales[0], "boxes")
        tf.identity(tf.gather(rows, kept), "features")
        tf.identity(tf.fill([tf.size(kept)], 1 / scales[0]), "scales")
        tf.identity(tf.gather(rows, kept)[:, 1:2], "scores")
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING])
        builder.save()


@pytest.fixture(scope="module")
def delf(tmp_path_factory):
    path = tmp_path_factory.mktemp("delf") / "saved_model"
    _write(path)
    return path


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    return pixels


def _naive(pixels):
    """Rows, centres and scores of all cells, the strongest first."""
    cells = [
        ((y + SIDE / 2, x + SIDE / 2), pixels[y : y + SIDE, x : x + SIDE].mean((0, 1)))
        for y in range(0, 48, SIDE)
        for x in range(0, 64, SIDE)
    ]
    rows = np.array([row for _, row in cells]) @ (np.eye(3) + 0.5)
    order = np.argsort(-rows[:, 1], kind="stable")
    return np.array([place for place, _ in cells])[order], rows[order]


def test_its_tensors_are_its_signature(delf, photo):
    found = load_model(delf, [1.0]).local_of(photo, [1.0], 5, 0.0)
    places, rows = _naive(photo)
    np.testing.assert_allclose(found.positions, places[:5])
    np.testing.assert_allclose(found.strengths, rows[:5, 1], rtol=1e-5)
    unit = rows[:5] / np.linalg.norm(rows[:5], axis=1, keepdims=True)
    np.testing.assert_allclose(found.descriptors, unit, atol=1e-6)


def test_extraction_takes_it_with_its_threshold(delf, photo, tmp_path):
    _, rows = _naive(photo)
    least = float(rows[3, 1]) - 0.01
    settings = {
        "saved_model": str(delf),
        "images": str(tmp_path / "photos"),
        "image_root": str(tmp_path / "photos"),
        "output": str(tmp_path / "set"),
        "scales": (1.0,),
    }
    with pytest.raises(InputError, match="give --local_scales"):
        extract(ExtractConfig(**settings), LocalConfig(local=True))
    local = LocalConfig(local=True, local_scales=(1.0,), local_threshold=least)
    extract(ExtractConfig(**settings), local)
    (found,) = feature_set.read(tmp_path / "set.local")
    np.testing.assert_allclose(found.strengths, rows[:4, 1], rtol=1e-5)
    assert feature_set.read(tmp_path / "set.local").meta["threshold"] == pytest.approx(least)
    # DELF gives no descriptor: the sum of its features, attended, is taken for one.
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows[:, 1:2] * unit).sum(0)
    (row,) = descriptors.read(tmp_path / "set").descriptors[:]
    np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-5)
