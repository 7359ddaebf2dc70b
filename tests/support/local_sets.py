"""Local features that tests draw, and what meta.json of their sets says."""

import numpy as np
from set_meta import META

from dolg_tf.retrieval.local.features import LocalFeatures

LOCAL_META = META | {
    "kind": "map",
    "reduction": None,
    "threshold": 0.0,
    "max_features": 1000,
}


def draw(rng, count, dimensions=16, size=(300, 400)):
    """Returns `count` random local features of a photo."""
    rows = rng.standard_normal((count, dimensions)).astype(np.float32)
    return LocalFeatures(
        (rng.random((count, 2)) * size).astype(np.float32),
        rng.choice([0.5, 1, 2], count).astype(np.float32),
        np.sort(rng.random(count).astype(np.float32))[::-1].copy(),
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        size,
    )


def same(one, other, tolerance=0.0):
    """Tells whether the local features of two photos are equal, descriptors within a tolerance."""
    parts = ("positions", "scales", "strengths")
    return (
        one.size == other.size
        and all(np.array_equal(getattr(one, part), getattr(other, part)) for part in parts)
        and one.descriptors.shape == other.descriptors.shape
        and np.allclose(one.descriptors, other.descriptors, rtol=0, atol=tolerance)
    )
