"""Pairs of photos: settings from flags, and what the settings mean."""

import importlib.util

import numpy as np
import pytest

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError

needs_opencv = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed"
)
TRUE = np.array([[0.9, 0.2, 30.0], [-0.3, 1.1, 60.0]])


def _features(positions, descriptors, size=(400, 800)):
    count = len(positions)
    rows = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
    floats = [np.asarray(x, np.float32) for x in (positions, np.ones(count), np.ones(count), rows)]
    return LocalFeatures(*floats, size)


def _photos(seed=0, count=60, noise=0.0):
    """Returns features of a query and of an index photo, of which two thirds are the same."""
    rng = np.random.default_rng(seed)
    places, descriptors = rng.uniform(0, 400, (count, 2)), rng.standard_normal((count, 16))
    seen = np.column_stack([places, np.ones(count)]) @ TRUE.T + rng.normal(0, noise, (count, 2))
    seen[: count // 3] = rng.uniform(0, 400, (count // 3, 2))
    order = rng.permutation(count)
    return _features(seen[order], descriptors[order]), _features(places, descriptors), order


def test_a_pair_is_matched_and_verified():
    query, index, order = _photos()
    found = Verifier(VerifyConfig(max_residual="1")).verify(query, index)
    assert np.array_equal(found.matches.index, order)
    assert np.array_equal(found.inliers, order >= 20) and found.count == 40
    np.testing.assert_allclose(found.map, TRUE, atol=1e-2)


def test_a_residual_is_in_pixels_or_a_share_of_the_query():
    assert VerifyConfig(max_residual="20").residual_of((300, 500)) == 20
    assert VerifyConfig(max_residual="2%").residual_of((300, 500)) == 10
    query, index, _ = _photos(noise=3.0)
    counts = [
        Verifier(VerifyConfig(max_residual=text)).verify(query, index).count
        for text in ("4", "0.5%", "1.5%")
    ]
    assert counts[0] == counts[1] < counts[2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_residual": "two"}, "--max_residual=two is neither"),
        ({"max_residual": "2%%"}, "2%"),
        ({"max_residual": "0"}, "neither"),
        ({"max_residual": "nan%"}, "neither"),
        ({"match_distance": 0.0}, "--match_distance=0.0 must be above 0"),
        ({"ransac_trials": 0}, "--ransac_trials=0 must be at least 1"),
        ({"ransac_seed": -1}, "--ransac_seed=-1 must be at least 0"),
        ({"ransac_seed": 2**31}, "must be below"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        VerifyConfig(**settings)


def test_homography_needs_its_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="cv2 is missing; pip install"):
        VerifyConfig(geometry="homography")


@needs_opencv
def test_a_homography_explains_what_an_affine_map_cannot():
    rng = np.random.default_rng(0)
    places, rows = rng.uniform(0, 800, (80, 2)), rng.standard_normal((80, 16))
    true = np.array([[1.0, 0.2, 10], [-0.1, 0.9, 40], [4e-4, 3e-4, 1]])
    seen = np.column_stack([places, np.ones(80)]) @ true.T
    seen = seen[:, :2] / seen[:, 2:]
    seen[:30] = rng.uniform(0, 800, (30, 2))
    query, index = _features(seen, rows), _features(places, rows)
    flat, full = (
        Verifier(VerifyConfig(geometry=name, max_residual="2")).verify(query, index)
        for name in ("affine", "homography")
    )
    assert flat.count < 40 and np.array_equal(full.inliers, np.arange(80) >= 30)
    np.testing.assert_allclose(full.map / full.map[2, 2], true, atol=1e-3)


@needs_opencv
def test_a_homography_of_mirrored_pairs_or_of_a_line_is_refused():
    rng = np.random.default_rng(0)
    places, rows = rng.uniform(0, 400, (30, 2)), rng.standard_normal((30, 16))
    line = np.column_stack([np.arange(30.0) * 7, np.arange(30.0) * 3]) + rng.normal(0, 1, (30, 2))
    cases = {"mirrored": (places * [1, -1] + [0, 400], places), "line": (line * 1.5, line)}
    cases |= {"tiny": (places / 50, places), "few": (places[:4], places[:4])}
    counts = {}
    for name, (seen, where) in cases.items():
        features = [_features(x, rows[: len(x)]) for x in (seen, where)]
        for plausible in (False, True):
            settings = VerifyConfig(geometry="homography", plausible=plausible)
            counts[name, plausible] = Verifier(settings).verify(*features).count
    refused = {name for name in cases if not counts[name, True]}
    assert refused == set(cases) and counts["line", False] == counts["tiny", False] == 30
    assert not counts["mirrored", False] and not counts["few", False]
