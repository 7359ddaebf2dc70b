"""Random crops, flips and lighting, each a pure function of its arguments and a seed.

A seed is int64 of shape (2,), one a photo and epoch, so the order of the work changes nothing.
"""

import numpy as np
import tensorflow as tf

_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)
# Principal components of the RGB values of ImageNet (AlexNet): a column of vectors per value.
_EIGENVALUES = np.float32([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.float32(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def split_seed(seed, count: int) -> list[tf.Tensor]:
    """Returns `count` independent seeds made from one."""
    return tf.unstack(tf.random.split(tf.cast(seed, tf.int64), count, alg="philox"))


def _uniform(seed, shape, low=0.0, high=1.0):
    return tf.random.stateless_uniform(shape, seed, low, high, alg="philox")


def centre_window(height, width, share: float = 1.0) -> tf.Tensor:
    """Returns the central square whose side is `share` of the shorter side of the photo.

    Args:
      height, width: int32 scalars, of the photo in pixels.
      share: of the shorter side, in (0, 1].

    Returns:
      int32 (4,): top, left, height, width, in pixels.
    """
    shorter = tf.minimum(height, width)
    side = tf.cast(tf.round(tf.cast(shorter, tf.float32) * share), tf.int32)
    side = tf.maximum(side, 1)
    return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


def crop_window(height, width, area_min: float, seed) -> tf.Tensor:
    """Returns a random window: area uniform in [area_min, 1], aspect uniform in [3/4, 4/3].

    Height and width are exchanged half of the time. The first of 10 tries that fits is taken, else
    the central square, as the authors' code does.

    Args:
      height, width: int32 scalars, of the photo in pixels.
      area_min: smallest share of the photo's area.
      seed: int64 (2,).

    Returns:
      int32 (4,): top, left, height, width, in pixels.
    """
    seeds = split_seed(seed, 4)
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    areas = _uniform(seeds[0], [_TRIES], area_min, 1.0) * sides[0] * sides[1]
    aspects = _uniform(seeds[1], [_TRIES], *_ASPECTS)
    aspects = tf.where(_uniform(seeds[2], [_TRIES]) < 0.5, aspects, 1.0 / aspects)
    tries = tf.round(tf.sqrt(tf.stack([areas / aspects, areas * aspects], axis=1)))
    tries = tf.maximum(tries, 1.0)
    fits = tf.reduce_all(tries <= sides, axis=1)
    size = tries[tf.argmax(tf.cast(fits, tf.int32))]  # the first that fits
    free = sides - size + 1.0
    corner = tf.minimum(tf.floor(_uniform(seeds[3], [2]) * free), free - 1.0)
    window = tf.cast(tf.concat([corner, size], axis=0), tf.int32)
    return tf.where(tf.reduce_any(fits), window, centre_window(height, width))


def flip(image: tf.Tensor, seed) -> tf.Tensor:
    """Mirrors (H, W, C) left to right, half of the time."""
    # tf.reverse on one branch: image[:, ::-1] under tf.where takes ten times as long.
    return tf.cond(_uniform(seed, []) < 0.5, lambda: tf.reverse(image, [1]), lambda: image)


def lighting(image: tf.Tensor, std: float, seed) -> tf.Tensor:
    """Adds AlexNet's PCA noise, one colour for the whole photo.

    The result is not clipped: it may leave [0, 1] by some hundredths, as in the authors' code.

    Args:
      image: float32 RGB in [0, 1], (H, W, 3).
      std: standard deviation of the weight of each component.
      seed: int64 (2,).

    Reference: Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 4.1.
    """
    weights = tf.random.stateless_normal([3], seed, stddev=std, alg="philox")
    colour = tf.linalg.matvec(_EIGENVECTORS, weights * _EIGENVALUES)
    # Added as whole rows: TensorFlow is four times slower where the last axis is only 3 long.
    shape = tf.shape(image)
    rows = tf.reshape(image, [shape[0], shape[1] * 3]) + tf.tile(colour, shape[1:2])
    return tf.reshape(rows, shape)
