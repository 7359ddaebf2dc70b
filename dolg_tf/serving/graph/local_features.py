"""Local features of a uint8 photo at several scales, as graph functions."""

import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.graph import local_selection, pyramid
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.graph.local_selection import Found, Maps


def specs(*names: str) -> list[tf.TensorSpec]:
    """Returns the inputs that `of_photo` takes besides the photo: scales, number, threshold."""
    kinds = (([None], tf.float32), ([], tf.int32), ([], tf.float32))
    return [tf.TensorSpec(*kind, name) for kind, name in zip(kinds, names, strict=True)]


def of_photo(
    network: FoldedNetwork,
    photo: tf.Tensor,
    scales: tf.Tensor,
    max_features: tf.Tensor,
    threshold: tf.Tensor,
    *,
    iou: float = 1.0,
    described: tf.Tensor | None = None,
) -> Found:
    """Returns the strongest local features of a photo; the network runs once at each scale.

    Args:
      network: whose they are.
      photo: uint8 RGB (H, W, 3).
      scales: float32 (S,), at least one, each above 0.
      max_features, threshold, iou: see `local_selection.select`.
      described: bool (S,), the scales at which the descriptor of the whole photo is taken too; it
        becomes one of the `rows`, with unit L2 norm. None: at none.

    Raises:
      tf.errors.InvalidArgumentError: on other scales, or `max_features` below 0.
    """
    scales, floats = pyramid.checked(scales), images.to_float(photo)[None]
    sized = pyramid.scaling_of(network).sized
    shape = tf.shape(floats)
    kind, size = network.local_kind, network.output_shape[-1] if described is not None else 0

    def maps_at(index, scale):
        resized = images.resize(floats, *sized(shape[1], shape[2], scale))
        if described is None:
            return _maps(network.local_features(resized), tf.zeros([0, 0]))
        return tf.cond(
            described[index],
            lambda: _with_descriptor(network.local_features(resized)),
            lambda: _maps(network.local_features(resized), tf.zeros([0, size])),
        )

    found = local_selection.select(
        maps_at,
        scales,
        max_features,
        -np.inf if kind.relative else threshold,
        stride=kind.stride,
        widths=(kind.dimensions, size),
        iou=iou,
    )
    return local_selection.relative(found, threshold) if kind.relative else found


def _with_descriptor(outputs: dict[str, tf.Tensor]) -> Maps:
    return _maps(outputs, tf.math.l2_normalize(outputs["descriptor"], axis=-1))


def _maps(outputs: dict[str, tf.Tensor], rows: tf.Tensor) -> Maps:
    """Returns the maps of one photo at one scale."""
    return Maps(outputs["features"][0], outputs["strength"][0, :, :, 0], rows)


def unit(network: FoldedNetwork, features: tf.Tensor, reduction: Whitening | None) -> tf.Tensor:
    """Returns a network's features (N, D) with unit L2 norm, reduced to (N, K) by a reduction.

    HOW's keep their length, and are reduced with it.
    """
    rows = features
    if network.local_kind.unit:
        rows = tf.math.l2_normalize(features, axis=-1, epsilon=1e-24)
    return rows if reduction is None else pyramid.whiten(rows, reduction)
