import numpy as np
from PIL import Image

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.extract import colour_histogram


def _oracle(image):
    counts = np.zeros(512)
    for red, green, blue in image.reshape(-1, 3).tolist():
        counts[(red // 32) * 64 + (green // 32) * 8 + blue // 32] += 1
    return np.sqrt(counts / counts.sum())


def test_equals_counting():
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 11, 3), dtype=np.uint8)
    images[2] = [255, 0, 31]
    found = colour_histogram.colour_histograms(images)
    expected = np.stack([_oracle(image) for image in images])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert np.flatnonzero(found[2]).tolist() == [7 * 64]


def test_writes_a_set(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"photos/{number}.png")
    settings = colour_histogram.ColourHistogramConfig(
        images=str(tmp_path / "photos"), output=str(tmp_path / "set")
    )
    found = colour_histogram.extract_colour_histograms(settings)
    assert found.ids == ("0", "1", "2")
    expected = colour_histogram.colour_histograms(images)
    np.testing.assert_array_equal(found.descriptors, expected)
    assert descriptors.read(tmp_path / "set").meta["model_hash"] == "colour_histogram_8x8x8"
