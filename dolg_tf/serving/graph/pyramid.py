"""Descriptors of uint8 photos at several scales, as graph functions.

The order of work is the authors': resize the [0, 1] floats to round(side x scale), bilinear without
antialias; run the network, which normalises its input itself; unit norm at each scale, mean over
scales, unit norm. DELG normalises before it resizes: interpolation weights sum to one and
normalisation is affine in each channel, so both orders agree up to rounding.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.graph.folding import as_tensor


class Scaling(NamedTuple):
    """How a network sees a photo at several scales.

    Attributes:
      sized: (height, width, scale) -> the sides of the resized photo.
      unit: whether the descriptor of each scale is divided by its norm before they are summed.
    """

    sized: Callable[..., tuple[tf.Tensor, tf.Tensor]]
    unit: bool


_DOLG = Scaling(images.scaled_size, True)
# Its descriptor is the sum over the cells of all scales.
_HOW = Scaling(images.floored_size, False)


def scaling_of(network) -> Scaling:
    """Returns how a network, folded or not, sees a photo at several scales."""
    return _HOW if network.name == "how" else _DOLG


def per_scale(network: keras.Model, photos: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Returns one descriptor per scale and photo.

    Args:
      network: float32 RGB in [0, 1], (B, H, W, 3) -> (B, D).
      photos: uint8 RGB (B, H, W, 3).
      scales: float32 (S,), at least one, each above 0.

    Returns:
      float32 (S, B, D), in the order of `scales`, of unit L2 norm but for HOW's, see `Scaling`.

    Raises:
      tf.errors.InvalidArgumentError: on other scales.
    """
    scales, scaling = checked(scales), scaling_of(network)
    floats = images.to_float(photos)
    shape = tf.shape(floats)

    @tf.autograph.experimental.do_not_convert
    def at_scale(scale):
        height, width = scaling.sized(shape[1], shape[2], scale)
        descriptors = network(images.resize(floats, height, width), training=False)
        return tf.math.l2_normalize(descriptors, axis=-1) if scaling.unit else descriptors

    rows = tf.TensorSpec([None, network.output_shape[-1]], tf.float32)
    # One after the other: in parallel, the maps of all scales are in memory at once, and it is no
    # faster.
    return tf.map_fn(at_scale, scales, fn_output_signature=rows, parallel_iterations=1)


def checked(scales: tf.Tensor) -> tf.Tensor:
    """Returns scales (S,) that fail unless there is at least one, and each is above 0."""
    # The scales must depend on the checks: a TF1 graph runs only what its output depends on.
    checks = [
        tf.debugging.assert_positive(tf.size(scales), "scales is empty; give at least one scale"),
        tf.debugging.assert_positive(scales, "each of scales must be above 0"),
        tf.debugging.assert_all_finite(scales, "each of scales must be finite"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        return tf.identity(scales)


def multi_scale(network: keras.Model, photos: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Returns one unit descriptor per photo, float32 (B, D); arguments of `per_scale`."""
    return tf.math.l2_normalize(tf.reduce_sum(per_scale(network, photos, scales), 0), axis=-1)


def whitened(
    network: keras.Model, photos: tf.Tensor, scales: tf.Tensor, whitening: Whitening | None
) -> tf.Tensor:
    """Returns one unit descriptor per photo: `multi_scale`, whitened unless `whitening` is None."""
    descriptors = multi_scale(network, photos, scales)
    if whitening is None:
        return descriptors
    return whiten(descriptors, whitening)


def whiten(rows: tf.Tensor, whitening: Whitening) -> tf.Tensor:
    """Returns rows (N, D) whitened: (N, K), unit L2 norm."""
    projection = as_tensor(whitening.projection, tf.float32)
    return tf.math.l2_normalize((rows - whitening.mean) @ projection, axis=-1)
