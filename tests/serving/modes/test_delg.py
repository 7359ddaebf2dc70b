"""Mode `delg`: called as DELF's extractor calls it."""

import json

import numpy as np
import openvino_runs
import pytest
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.config import HowConfig
from dolg_tf.modeling.how import build_how
from dolg_tf.modeling.local_features import local_kind
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.runtime.session import CppSession
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.local_reference import LocalReference
from dolg_tf.serving.modes import delg
from dolg_tf.serving.saved_model import Inside
from dolg_tf.stage.config import InputError

SCALES = (0.70710677, 1.0, 1.4142135)


@pytest.fixture(scope="module")
def rows(network):
    """Function of (photo, scales, indices) to the rows, by the extractor's keywords."""
    config = ExportConfig(model_dir="m", output="o", mode="delg")
    extract = delg.functions(network, config, Inside())["serving_default"]

    def call(photo, scales, indices):
        return extract(
            input_image=tf.convert_to_tensor(photo),
            input_scales=tf.convert_to_tensor(list(scales), tf.float32),
            input_global_scales_ind=tf.convert_to_tensor(list(indices), tf.int32),
        )["global_descriptors"]

    return call


def test_a_unit_row_per_scale_by_ascending_index(rows, photos, one_scale):
    photo = photos(61, 83, 3)
    expected = np.stack([one_scale(photo, scale) for scale in SCALES])
    np.testing.assert_allclose(rows(photo, SCALES, range(3)), expected, atol=1e-5)
    # Neither the order nor the number of occurrences of an index matters.
    np.testing.assert_allclose(rows(photo, SCALES, (2, 0, 2)), expected[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(rows(photo, SCALES, [1]), expected[[1]], atol=1e-5)


@pytest.mark.parametrize(
    ("scales", "indices", "message"),
    [
        (SCALES, [], "input_global_scales_ind is empty"),
        (SCALES, [0, 3], "an index that has no scale"),
        (SCALES, [-1], "an index below 0"),
        ([], [0], "an index that has no scale"),
        ([1.0, 0.0], [0, 1], "must be above 0"),
        ([np.inf], [0], "finite"),
    ],
)
def test_bad_indices_and_scales_are_refused(rows, photos, scales, indices, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        rows(photos(20, 20, 3), scales, indices)


def test_any_photo_gives_finite_rows(rows, photos):
    checkers = (np.indices((10, 10)).sum(0) % 2 * 255).astype(np.uint8)
    flat = [np.full((10, 10, 3), level, np.uint8) for level in (0, 128, 255)]
    for photo in (photos(10, 10, 3), np.stack([checkers] * 3, -1), *flat, photos(1, 3, 3)):
        found = rows(photo, (0.25, *SCALES), range(4)).numpy()
        assert found.shape == (4, 16) and np.isfinite(found).all()
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)


def test_delgs_order_of_work_gives_the_same(network, photos):
    """DELG normalises, then resizes; DOLG resizes, then normalises."""
    normalize, photo = network.get_layer("normalization"), photos(61, 83, 3)[None] / np.float32(255)
    for size in ((43, 59), (86, 117)):
        np.testing.assert_allclose(
            images.resize(normalize(photo), *size),
            normalize(images.resize(photo, *size)),
            atol=2e-6,
        )


@pytest.fixture(scope="module")
def loaded(export):
    return tf.saved_model.load(str(export(mode="delg")))


def _delf_extractor(path, image_scales, image_scales_ind=()):
    """Calls a model as tensorflow/models' delf/python/examples/extractor.py does.

    With `is_tf2_exported`, `use_global_features`, and neither local features nor PCA.
    """
    model = tf.saved_model.load(path)
    scales = tf.convert_to_tensor(list(image_scales))
    indices = tf.constant(list(image_scales_ind)) if image_scales_ind else tf.range(len(scales))

    def extract(image):
        predict = model.signatures["serving_default"]
        output = predict(
            input_image=tf.convert_to_tensor(image),
            input_scales=scales,
            input_global_scales_ind=indices,
        )
        normalized = tf.nn.l2_normalize(output["global_descriptors"], axis=1)
        return tf.nn.l2_normalize(tf.reduce_sum(normalized, axis=0), axis=0).numpy()

    return extract


@pytest.mark.slow
def test_delfs_extractor_gives_the_multi_scale_descriptor(export, photos, many_scales):
    photo, path = photos(61, 83, 3), str(export(mode="delg"))
    np.testing.assert_allclose(
        _delf_extractor(path, SCALES)(photo), many_scales(photo, SCALES), atol=1e-5
    )
    np.testing.assert_allclose(
        _delf_extractor(path, SCALES, [0, 2])(photo),
        many_scales(photo, (SCALES[0], SCALES[2])),
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("input_image", tf.float32),
        ("input_scales", tf.float64),
        ("input_global_scales_ind", tf.int64),
    ],
)
def test_dtypes_are_strict(loaded, photos, name, dtype):
    inputs = {
        "input_image": tf.constant(photos(20, 20, 3)),
        "input_scales": tf.constant([1.0]),
        "input_global_scales_ind": tf.constant([0]),
    }
    inputs[name] = tf.cast(inputs[name], dtype)
    with pytest.raises(tf.errors.InvalidArgumentError, match="was expected to be a"):
        loaded.signatures["serving_default"](**inputs)


@pytest.mark.slow
def test_the_signature_is_delgs(loaded):
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    found = {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in specs.items()}
    assert found == {
        "input_image": ("uint8", [None, None, 3]),
        "input_scales": ("float32", [None]),
        "input_global_scales_ind": ("int32", [None]),
    }
    (output,) = signature.structured_outputs.items()
    assert output[0] == "global_descriptors" and output[1].dtype == tf.float32
    assert output[1].shape.as_list() == [None, 16]


@pytest.mark.slow
def test_the_cpp_loader_refuses_bad_indices(export, photos):
    inputs = {"input_image": photos(20, 20, 3), "input_scales": np.asarray(SCALES, np.float32)}
    with CppSession(export(mode="delg")) as session:
        for wrong in ([], [3], [-1]):
            indices = {"input_global_scales_ind": np.asarray(wrong, np.int32)}
            with pytest.raises(RuntimeError, match="input_global_scales_ind"):
                session.run("serving_default", {**inputs, **indices})


@pytest.mark.slow
def test_about_tells_the_mode(export):
    about = json.loads((export(mode="delg") / "assets.extra" / "dolg.json").read_text())
    assert about["mode"] == "delg" and about["precision"] == "float32"
    assert about["whitening"] is None


# --- local features ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(export):
    return export(mode="delg", features="both", iou=1.0)


@pytest.mark.slow
def test_openvino_gives_the_same(both, photos):
    inputs = {
        "input_image": photos(61, 83, 3),
        "input_scales": np.asarray(SCALES, np.float32),
        "input_max_feature_num": np.asarray(7, np.int32),
        "input_abs_thres": np.asarray(0, np.float32),
        "input_global_scales_ind": np.asarray([2, 0], np.int32),
    }
    with CppSession(both) as session:
        expected = session.run("serving_default", inputs)
    found = openvino_runs.run(both, inputs)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def _delf_local(output):
    """Post-processes as delf/python/examples/extractor.py does, without PCA."""
    boxes = output["boxes"].numpy()
    locations = np.stack([boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)], 1)
    descriptors = tf.nn.l2_normalize(output["features"], axis=1).numpy()
    attention = tf.reshape(output["scores"], [-1]).numpy()
    return locations, descriptors, output["scales"].numpy(), attention


@pytest.mark.slow
def test_delfs_extractor_gets_local_features_and_rows(both, network, photos, one_scale):
    predict = tf.saved_model.load(str(both)).signatures["serving_default"]
    photo, scales = photos(61, 83, 3), np.asarray((0.5, 1.0), np.float32)
    inputs = {
        "input_image": tf.constant(photo),
        "input_scales": tf.constant(scales),
        "input_max_feature_num": tf.constant(1000),
        "input_abs_thres": tf.constant(0.0),
    }
    output = predict(**inputs, input_global_scales_ind=tf.constant([1]))
    expected = LocalReference(network, None).found(photo, scales, 1000)
    locations, descriptors, factors, attention = _delf_local(output)
    order, theirs = (
        np.lexsort((*np.round(at).T, s))
        for at, s in ((locations, factors), (expected["positions"], expected["scales"]))
    )
    names = ("positions", "descriptors", "scales", "strengths")
    found = (locations, descriptors, factors, attention)
    for name, array in zip(names, found, strict=True):
        np.testing.assert_allclose(array[order], expected[name][theirs], atol=1e-3)
    assert (np.diff(attention) <= 0).all()
    np.testing.assert_allclose(output["global_descriptors"][0], one_scale(photo, 1.0), atol=1e-5)
    # As DELG's own: without indices no row, above the strongest no feature.
    none = predict(**inputs, input_global_scales_ind=tf.constant([], tf.int32))
    assert none["global_descriptors"].shape == (0, 16)
    nothing = predict(
        **{**inputs, "input_abs_thres": tf.constant(1e9)}, input_global_scales_ind=tf.constant([0])
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in nothing.items()}
    depth = descriptors.shape[1]
    assert shapes == {
        "boxes": (0, 4),
        "features": (0, depth),
        "scales": (0,),
        "scores": (0, 1),
        "global_descriptors": (1, 16),
    }


@pytest.mark.slow
def test_our_stages_read_local_features_of_it(both, photos, many_scales):
    model, photo = load_model(both), photos(61, 83, 3)
    found = model.local_of(photo, (0.5, 1.0), 20)
    assert len(found) == 20 and found.size == (61, 83)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, rtol=1e-5)
    row = model.describe(photo[None], SCALES)[0]
    np.testing.assert_allclose(row, many_scales(photo, SCALES), atol=1e-5)


@pytest.mark.parametrize("features", ["local", "both"])
def test_a_reduction_inside_is_as_one_applied_afterwards(network, photos, features):
    config = ExportConfig(model_dir="m", output="o", mode="delg", features=features)
    rng = np.random.default_rng(5)
    depth = local_kind(network).dimensions
    arrays = (rng.standard_normal(shape).astype("f4") / 9 for shape in (depth, (depth, 4)))
    reduction = Whitening(*arrays, sha256="")
    inputs = [
        tf.constant(photos(61, 83, 3)),
        tf.constant([0.5, 1.0]),
        tf.constant(20),
        tf.constant(0.0),
    ]
    inputs += [tf.constant([0])] if features == "both" else []
    raw, reduced = (
        delg.functions(network, config, inside)["serving_default"](*inputs)
        for inside in (Inside(), Inside(reduction=reduction))
    )
    units = tf.math.l2_normalize(raw["features"], axis=1).numpy()
    np.testing.assert_allclose(reduced["features"], reduction.apply(units), atol=1e-5)
    np.testing.assert_array_equal(reduced["boxes"], raw["boxes"])
    assert ("global_descriptors" in reduced) == (features == "both")


def test_hows_descriptor_is_no_row_per_scale():
    network = build_how(HowConfig(backbone="resnet17_small", dimensions=8))
    config = ExportConfig(model_dir="m", output="new", mode="delg", features="both")
    with pytest.raises(InputError, match=r"--features=both with a HOW network.*--features=local"):
        delg.functions(network, config, None)
