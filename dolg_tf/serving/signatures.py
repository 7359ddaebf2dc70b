"""What an exported network computes: graph functions over uint8 photos.

The multi-scale order of work is the authors': resize the [0, 1] floats with bilinear
interpolation and no antialias to round(side x scale), then the network, which normalises
its input itself; unit norm at each scale, mean over scales, unit norm. DELG normalises first and
resizes then: the weights of the interpolation sum to one and normalisation is affine in each
channel, so that both orders give the same up to rounding.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.layers import fuse


def per_scale(network: keras.Model, photos: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Returns one unit descriptor a scale and photo.

    Args:
      network: float32 RGB in [0, 1], (B, H, W, 3) -> (B, D).
      photos: uint8 RGB (B, H, W, 3).
      scales: float32 (S,), at least one, each above 0.

    Returns:
      float32 (S, B, D), unit L2 norm, in the order of `scales`.

    Raises:
      tf.errors.InvalidArgumentError: on other scales.
    """
    # As data, not only beside it: a TF1 graph runs nothing but what its output depends on.
    checks = [
        tf.debugging.assert_positive(tf.size(scales), "scales is empty; give at least one scale"),
        tf.debugging.assert_positive(scales, "each of scales must be above 0"),
        tf.debugging.assert_all_finite(scales, "each of scales must be finite"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        scales = tf.identity(scales)
    floats = images.to_float(photos)
    shape = tf.shape(floats)

    @tf.autograph.experimental.do_not_convert
    def at_scale(scale):
        height, width = images.scaled_size(shape[1], shape[2], scale)
        descriptors = network(images.resize(floats, height, width), training=False)
        return tf.math.l2_normalize(descriptors, axis=-1)

    rows = tf.TensorSpec([None, network.output_shape[-1]], tf.float32)
    # One after the other, else the scales hold their maps in memory together, and are no faster.
    return tf.map_fn(at_scale, scales, fn_output_signature=rows, parallel_iterations=1)


def multi_scale(network: keras.Model, photos: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Returns one unit descriptor a photo: the arguments of `per_scale` -> float32 (B, D)."""
    return tf.math.l2_normalize(tf.reduce_sum(per_scale(network, photos, scales), 0), axis=-1)


def chosen_scales(scales: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns the scales that DELG's `input_global_scales_ind` asks for.

    Args:
      scales: float32 (S,).
      indices: int32 (N,), in any order; one that stands there twice counts once.

    Returns:
      float32 (rows,), by ascending index.

    Raises:
      tf.errors.InvalidArgumentError: when there is no index, or one is outside [0, S).
    """
    name, count = "input_global_scales_ind", tf.size(scales)
    checks = [
        tf.debugging.assert_positive(tf.size(indices), f"{name} is empty; give at least one index"),
        tf.debugging.assert_non_negative(indices, f"{name} holds an index below 0"),
        tf.debugging.assert_less(indices, count, f"{name} holds an index that has no scale"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        asked = tf.equal(tf.range(count)[:, None], indices[None, :])  # (S, N)
    return tf.boolean_mask(scales, tf.reduce_any(asked, axis=1))


def maps(intermediates: Callable[[tf.Tensor], dict]) -> Callable[[tf.Tensor], dict]:
    """Returns a function from one photo to what the local branch of a network saw in it.

    Args:
      intermediates: `dolg.intermediates` of the network, or its folded form's.

    It takes uint8 RGB (H, W, 3) and gives, float32 (h, w) at the stride of the local features:
      attention: weight of each local feature, above 0;
      orthogonal_norm: L2 norm of its part orthogonal to the global feature;
      explained_energy: share of its squared norm that the global feature explains, in [0, 1].
    """

    def compute(image):
        outputs = intermediates(images.to_float(image)[None])
        f_local = outputs["local"]  # (1, h, w, C)
        orthogonal = fuse("orthogonal", f_local, outputs["global"])
        left = tf.reduce_sum(tf.square(orthogonal), -1)[0]
        energy = tf.reduce_sum(tf.square(f_local), -1)[0]
        explained = 1.0 - tf.math.divide_no_nan(left, energy)
        return {
            "attention": outputs["attention"][0, :, :, 0],
            "orthogonal_norm": tf.sqrt(left),
            "explained_energy": tf.clip_by_value(explained, 0.0, 1.0),
        }

    return compute


def local_features(intermediates: Callable[[tf.Tensor], dict]) -> Callable[[tf.Tensor], dict]:
    """Returns a function from one photo to its local features, as the fusion sees them.

    Args:
      intermediates: `dolg.intermediates` of the network, or its folded form's.

    It takes uint8 RGB (H, W, 3) and gives `features`, float32 (h, w, C): unit vectors times the
    attention that `maps` gives, or without attention whatever length the batch norm gives them.
    Of two local branches it is the finer one.
    """

    def compute(image):
        return {"features": intermediates(images.to_float(image)[None])["local"][0]}

    return compute


# The signatures of one photo that a network with a local branch has.
OF_LOCAL_BRANCH = {"maps": maps, "local_features": local_features}
