"""Local features in the exported graph are those of the Keras network, whatever their kind."""

import dataclasses
import types

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.local_features import LocalKind, local_kind, with_local_features
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.graph import local_features
from dolg_tf.serving.graph.folding import FoldedNetwork

KINDS = {
    "delg": ({"delg_local": True}, ("delg", 128, 16)),
    "dolg": ({}, ("dolg", 256, 16)),
    "dolg_p3": ({"local_source": "p3", "self_attention": False}, ("dolg", 256, 8)),
    "map": ({"fusion": "global_only"}, ("map", 256, 16)),
}


@pytest.mark.parametrize("name", KINDS)
def test_folded_features_are_the_networks(dolg_config, photos, name):
    options, (kind, _, stride) = KINDS[name]
    network = build_dolg(dataclasses.replace(dolg_config, **options), seed=2)
    expected = with_local_features(network)(photos(1, 40, 70, 3) / np.float32(255))
    folded = FoldedNetwork(network)
    found = folded.local_features(tf.constant(photos(1, 40, 70, 3) / np.float32(255)))
    for part in ("features", "strength"):
        np.testing.assert_allclose(found[part], expected[part], atol=2e-5)
    dimensions = expected["features"].shape[-1]
    assert folded.local_kind == local_kind(network) == LocalKind(kind, dimensions, stride)
    if kind != "delg":  # the strength is the norm
        norms = np.linalg.norm(expected["features"], axis=-1, keepdims=True)
        np.testing.assert_allclose(found["strength"], norms, rtol=1e-3, atol=1e-5)


def test_reduced_features_have_unit_norm():
    network = types.SimpleNamespace(local_kind=LocalKind("dolg", 8, 16))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5, 8)).astype(np.float32)
    reduction = Whitening(*(rng.standard_normal(s).astype("f4") for s in (8, (8, 3))), sha256="")
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = (units - reduction.mean) @ reduction.projection
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = local_features.unit(network, tf.constant(rows), reduction)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # However weak: an attention of 1e-9 times a unit vector.
    weak = local_features.unit(network, tf.constant(1e-9 * units), None)
    np.testing.assert_allclose(np.linalg.norm(weak, axis=1), 1, rtol=1e-4)
