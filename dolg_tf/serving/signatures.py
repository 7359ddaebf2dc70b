"""What an exported network computes: graph functions over uint8 photos.

The multi-scale order of work is the authors': resize the [0, 1] floats with bilinear
interpolation and no antialias to round(side x scale), then the network, which normalises
its input itself; unit norm at each scale, mean over scales, unit norm.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.dolg import intermediates
from dolg_tf.modeling.layers import orthogonal_components


def multi_scale(network: keras.Model, photos: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Returns one unit descriptor a photo.

    Args:
      network: float32 RGB in [0, 1], (B, H, W, 3) -> (B, D).
      photos: uint8 RGB (B, H, W, 3).
      scales: float32 (S,), at least one.

    Returns:
      float32 (B, D), unit L2 norm.
    """
    floats = images.to_float(photos)
    shape = tf.shape(floats)
    tf.debugging.assert_positive(tf.size(scales), "scales is empty; give at least one scale")

    def at_scale(i, total):
        height, width = images.scaled_size(shape[1], shape[2], scales[i])
        descriptors = network(images.resize(floats, height, width), training=False)
        return i + 1, total + tf.math.l2_normalize(descriptors, axis=-1)

    size = network.output_shape[-1]
    _, total = tf.while_loop(
        lambda i, _: i < tf.size(scales),
        at_scale,
        (0, tf.zeros([shape[0], size])),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([None, size])),
    )
    return tf.math.l2_normalize(total, axis=-1)


def maps(network: keras.Model) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns a function from one photo to what the local branch of the network saw in it.

    It takes uint8 RGB (H, W, 3) and gives, float32 (h, w) at stride 16:
      attention: weight of each local feature, above 0;
      orthogonal_norm: L2 norm of its part orthogonal to the global feature;
      explained_energy: share of its squared norm that the global feature explains, in [0, 1].
    """
    network = intermediates(network)

    def compute(image):
        outputs = network(images.to_float(image)[None], training=False)
        f_local = outputs["local"]  # (1, h, w, C)
        orthogonal = orthogonal_components(f_local, outputs["global"])
        left = tf.reduce_sum(tf.square(orthogonal), -1)[0]
        energy = tf.reduce_sum(tf.square(f_local), -1)[0]
        explained = 1.0 - tf.math.divide_no_nan(left, energy)
        return {
            "attention": outputs["attention"][0, :, :, 0],
            "orthogonal_norm": tf.sqrt(left),
            "explained_energy": tf.clip_by_value(explained, 0.0, 1.0),
        }

    return compute
