"""An export of HOW against numbers of its authors' code."""

import pathlib

import numpy as np
import older_tensorflow
import pytest

from dolg_tf.data.scales import HOW_SCALES
from dolg_tf.modeling.model_dir import save_dolg
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.serving.config import MODES, ExportConfig
from dolg_tf.serving.export import export

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "how_r50.npz"))
SIZES = ((224, 288), (97, 130))
STRIDE = 16


@pytest.fixture(scope="module")
def exported(how_r50, tmp_path_factory):
    folder = tmp_path_factory.mktemp("how")
    save_dolg(*how_r50, folder / "model", {"source": "test"})
    output = folder / "saved_model"
    return export(ExportConfig(model_dir=str(folder / "model"), output=str(output), scales=(1.0,)))


@pytest.fixture(scope="module")
def model(exported):
    return load_model(exported)


def test_it_holds_nothing_newer_than_the_release_named_for_its_mode(exported):
    assert older_tensorflow.unknown(exported, MODES["serving"].tensorflow) == set()


def test_it_says_what_it_gives(model):
    assert model.about.local == {
        "kind": "how",
        "dimensions": 128,
        "stride": STRIDE,
        "scales": list(HOW_SCALES),
        "threshold": 0.0,
        "reduction": None,
    }


@pytest.mark.parametrize("size", SIZES)
def test_local_features_are_the_authors_one_by_one(model, standin, size):
    found = model.local_of(standin.image(*size))
    golden = {
        name: GOLDEN[f"{size[0]}x{size[1]}/local/{name}"]
        for name in ("xy", "scale", "attention", "descriptors")
    }
    # They give cells, and scales in float16.
    nearest = np.abs(golden["scale"].astype(float)[:, None] - HOW_SCALES).argmin(1)
    scales = np.array(HOW_SCALES)[nearest]
    places = STRIDE * golden["xy"][:, ::-1] / scales[:, None]
    assert len(found) == len(places)
    np.testing.assert_allclose(found.strengths, golden["attention"], atol=1e-5)
    assert found.strengths[0] == 1
    # Where two are nearly equally strong, either may come first; here none are.
    np.testing.assert_allclose(found.positions, places, atol=1e-3)
    np.testing.assert_allclose(found.scales, 1 / scales, rtol=1e-6)
    first = golden["descriptors"]
    rows = found.descriptors[: len(first)]
    assert np.abs(rows - first).max() < 1e-5 * np.abs(first).max()
    norms = np.linalg.norm(found.descriptors, axis=1)
    assert np.abs(norms - 1).max() > 0.1  # ASMK needs them as they are
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, atol=1e-6)


def test_attention_is_divided_by_the_largest_before_the_threshold(model, standin):
    image = standin.image(97, 130)
    everything = model.local_of(image)
    some = model.local_of(image, threshold=0.7)
    count = np.count_nonzero(everything.strengths >= 0.7)
    assert 0 < len(some) == count < len(everything)
    np.testing.assert_array_equal(some.strengths, everything.strengths[:count])
    few = model.local_of(image, max_features=3)
    np.testing.assert_array_equal(few.strengths, everything.strengths[:3])


@pytest.mark.parametrize(
    ("scales", "name"), [((1.0,), "global_train_scale"), (HOW_SCALES, "global_all_scales")]
)
def test_the_descriptor_is_the_sum_over_all_scales(model, standin, scales, name):
    for size in SIZES:
        (found,) = model.describe(standin.image(*size)[None], scales)
        expected = GOLDEN[f"{size[0]}x{size[1]}/{name}"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
