"""SavedModels that extraction takes: DELG's extractor, ours or another's."""

import json

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.retrieval.extract.model import open_describer
from dolg_tf.stage.config import InputError

SCALES = (0.5, 1.0, 2.0)


class _Delg(tf.Module):
    """One row a scale, of any length, as DELG's own extractors give them."""

    def __init__(self, name_of_output="global_descriptors", more=()):
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal((3, 8), (0, 1)))
        spec = [
            tf.TensorSpec([None, None, 3], tf.uint8, "input_image"),
            tf.TensorSpec([None], tf.float32, "input_scales"),
            tf.TensorSpec([None], tf.int32, "input_global_scales_ind"),
            *more,
        ]

        def extract(input_image, input_scales, input_global_scales_ind, *_):
            tf.debugging.assert_equal(tf.rank(input_image), 3)
            scales = tf.gather(input_scales, input_global_scales_ind)
            colour = tf.reduce_mean(tf.cast(input_image, tf.float32), (0, 1))
            # Rows of different lengths and directions.
            rows = tf.einsum("s,c->sc", scales, colour) + tf.cos(scales)[:, None] * 99
            return {name_of_output: rows @ self.kernel}

        self.serving_default = tf.function(extract, input_signature=spec)


def _save(path, model, info=None):
    tf.saved_model.save(model, str(path), {"serving_default": model.serving_default})
    if info is not None:
        (path / "assets.extra").mkdir()
        info = {"format_version": 1, "scales": SCALES, "weights_sha256": "abc"} | info
        (path / "assets.extra/dolg.json").write_text(json.dumps(info))
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("model") / "foreign", _Delg())


def _expected(images, scales):
    kernel = tf.random.stateless_normal((3, 8), (0, 1)).numpy().astype(np.float64)
    found = []
    for image in images:
        colour = image.astype(np.float64).mean((0, 1))
        rows = [(scale * colour + np.cos(scale) * 99) @ kernel for scale in scales]
        total = sum(row / np.linalg.norm(row) for row in rows)
        found.append(total / np.linalg.norm(total))
    return np.array(found)


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("scales", [SCALES, (0.7,)])
def test_rows_of_the_scales_are_averaged(foreign, scales):
    describe = open_describer(foreign, scales).load()
    np.testing.assert_allclose(describe(IMAGES), _expected(IMAGES, scales), atol=1e-5)


def test_our_own_mode_delg_says_scales_and_hash(tmp_path):
    path = _save(tmp_path / "model", _Delg(), {"whitening": {"sha256": "w"}})
    found = open_describer(path, ())
    assert (found.model_hash, found.scales) == ("abc", SCALES)
    assert found.whitening == {"sha256": "w"}
    np.testing.assert_allclose(found.load()(IMAGES), _expected(IMAGES, SCALES), atol=1e-5)
    assert open_describer(path, (1.0,)).scales == (1.0,)


def test_a_foreign_extractor_is_told_by_its_files(foreign, tmp_path):
    with pytest.raises(InputError, match=r"has no assets.extra/dolg.json.*such as --scales"):
        open_describer(foreign, ())
    first = open_describer(foreign, SCALES)
    assert first.whitening is None
    model = _Delg()
    model.kernel.assign_add(tf.ones_like(model.kernel))
    other = _save(tmp_path / "other", model)
    assert open_describer(other, SCALES).model_hash != first.model_hash


def test_what_is_no_extractor(tmp_path):
    local = _save(tmp_path / "local", _Delg("local_descriptors"))
    more = _save(tmp_path / "more", _Delg(more=[tf.TensorSpec([], tf.float32, "input_abs_thres")]))
    for path in (local, more):
        with pytest.raises(InputError, match="is no extractor of DELG's global descriptors"):
            open_describer(path, SCALES).load()
    with pytest.raises(InputError, match="no SavedModel there"):
        open_describer(tmp_path, SCALES)
