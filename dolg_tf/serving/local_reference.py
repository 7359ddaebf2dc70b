"""What an exported model must answer for local features: the Keras network and NumPy, slowly.

Two features of almost equal strength may stand in either order, and either may be the last that is
taken. So a call that takes all features is compared place by place, and one that takes a few by
their strengths alone.
"""

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.local_features import local_kind, with_local_features
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.graph import pyramid

Outputs = dict[str, np.ndarray]
_HALF_BOX = 145  # pixels, of DELF's receptive field
_STRENGTHS, _VECTORS = ("strengths", "scores"), ("descriptors", "features")
_NAMES = ("positions", "boxes", "scales", *_STRENGTHS, *_VECTORS)  # of a row per feature


class LocalReference:
    """The local features of the Keras network, one scale at a time, without overlaps dropped."""

    def __init__(self, network: keras.Model, reduction: Whitening | None):
        photos = tf.TensorSpec([None, None, None, 3], tf.float32)
        model = with_local_features(network)
        self._maps = tf.function(model, input_signature=[photos], autograph=False)
        self._kind, self._reduction = local_kind(network), reduction
        self._sized = pyramid.scaling_of(network).sized

    def found(
        self, photo: np.ndarray, scales: np.ndarray, limit: int, normalized: bool = True
    ) -> Outputs:
        """Returns the strongest features of a photo.

        Args:
          photo: uint8 RGB (H, W, 3).
          scales: float32 (S,).
          limit: the most of them.
          normalized: whether `descriptors` are unit vectors; HOW's are not, reduced ones always.

        Returns:
          float32 `positions` (N, 2), `boxes` (N, 4), `scales` (N,), `strengths` (N,), `descriptors`
          (N, D), the strongest first.
        """
        parts = [self._at(photo, scale) for scale in scales]
        places, factors, strengths, rows = map(np.concatenate, zip(*parts, strict=True))
        best = np.argsort(-strengths, kind="stable")[:limit]
        places, factors, strengths, rows = (x[best] for x in (places, factors, strengths, rows))
        if self._kind.relative:
            strengths = strengths / strengths.max(initial=0)
        if self._kind.unit and (normalized or self._reduction is not None):
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        if self._reduction is not None:
            rows = self._reduction.apply(rows)
        boxes = np.concatenate([places - _HALF_BOX, places + _HALF_BOX], 1)
        return {
            "positions": places / factors[:, None],
            "boxes": boxes / factors[:, None],
            "scales": 1 / factors,
            "strengths": strengths,
            "descriptors": rows,
        }

    def _at(self, photo: np.ndarray, scale: np.float32) -> tuple[np.ndarray, ...]:
        """Returns places, scale, strengths and features of all cells, row by row."""
        size = self._sized(*photo.shape[:2], scale)
        maps = self._maps(images.resize(images.to_float(tf.constant(photo))[None], *size))
        strengths, features = (maps[name].numpy()[0] for name in ("strength", "features"))
        cells = np.indices(strengths.shape[:2], np.float32).reshape(2, -1).T
        factors = np.full(len(cells), scale, np.float32)
        rows = features.reshape(-1, features.shape[-1])
        return np.float32(self._kind.stride) * cells, factors, strengths.ravel(), rows


def by_place(outputs: Outputs) -> Outputs:
    """Returns outputs sorted by place, and how often the strength of a feature was below the next.

    Vectors longer than 1 are divided by their length, and unit vectors of weaker features by their
    weakness: what remains of the network's rounding is the same for all.
    """
    named = {name: outputs[name] for name in _NAMES if name in outputs}
    (strengths,) = (named[name].reshape(-1) for name in _STRENGTHS if name in named)
    places = named.get("positions", named.get("boxes"))
    order = np.lexsort((*np.round(places).T, named["scales"]))
    found = {name: array[order] for name, array in named.items() if name not in _VECTORS}
    (rows,) = (named[name] for name in _VECTORS if name in named)
    norms = np.linalg.norm(rows, axis=1)
    weights = np.minimum(1, strengths) / np.maximum(1, norms)
    found["vectors"] = (rows * weights[:, None])[order].astype(np.float32)
    found["rises"] = np.asarray((np.diff(strengths) > 0).sum(), np.int32)
    return found | {name: array for name, array in outputs.items() if name not in named}


def strengths_alone(outputs: Outputs) -> Outputs:
    """Returns the strengths, and what is not of local features."""
    left = (*_STRENGTHS, *(name for name in outputs if name not in _NAMES))
    return {name: outputs[name] for name in left if name in outputs}


SCALES = np.asarray((1.0, 0.7071, 0.25), np.float32)  # of the checks
LIMITS = {2**31 - 1: by_place, 5: strengths_alone}  # and their numbers of features
