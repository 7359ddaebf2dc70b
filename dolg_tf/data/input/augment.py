"""Augmentation: random crops, flips and lighting.

The random numbers of many photos are drawn at once. What happens to a photo is a pure function of
its own numbers, so the order of the work changes nothing.

A new augmentation is an option in `data/config.py`, a field of `Draws`, a function here, and a line
in the step that it belongs to: `window`, `before_resizing` or `after_resizing`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dolg_tf.data.config import DataConfig

_TRIES = 10
_ASPECTS = (3 / 4, 4 / 3)
# Principal components of the RGB values of ImageNet (AlexNet): a column of vectors per value.
_EIGENVALUES = np.float32([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.float32(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)
_PHILOX = 1  # TensorFlow's number of the generator
# Drawn per photo, in fours as Philox makes them. Three uniforms and one normal are left over: using
# them changes no other augmentation, while drawing more would change all.
_UNIFORMS, _NORMALS = 36, 4


class Draws(NamedTuple):
    """Random choices for N photos, or for one without the first axis.

    Args:
      tries: float32 (N, 10, 2), height and width of windows for a photo of area 1.
      corner: float32 (N, 2) in [0, 1), position of the window, top and left.
      flipped: bool (N,), whether the photo is mirrored.
      lighting: float32 (N, 3), standard normal weights of the colour components.
    """

    tries: tf.Tensor
    corner: tf.Tensor
    flipped: tf.Tensor
    lighting: tf.Tensor


def draw(key, first, count: int, area_min: float) -> Draws:
    """Draws for the photos `first` to `first + count - 1` of a sequence.

    Args:
      key: uint64 scalar; another key gives another sequence.
      first: int64 scalar, at least 0.
      count: number of photos.
      area_min: smallest fraction of the photo's area that a window keeps.

    Reference: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011 (Philox): any place
    of a sequence can be computed on its own.
    """

    def numbers(op, each, stream):
        block = tf.cast(tf.cast(first, tf.int64) * (each // 4), tf.uint64)
        counter = tf.stack([block, tf.constant(stream, tf.uint64)])
        return op(shape=[count, each], key=key[None], counter=counter, alg=_PHILOX)

    uniforms = numbers(tf.raw_ops.StatelessRandomUniformV2, _UNIFORMS, 0)
    normals = numbers(tf.raw_ops.StatelessRandomNormalV2, _NORMALS, 1)
    area, aspect, exchange = tf.unstack(
        tf.reshape(uniforms[:, : 3 * _TRIES], [count, 3, _TRIES]), axis=1
    )
    area = area_min + (1.0 - area_min) * area
    aspect = _ASPECTS[0] + (_ASPECTS[1] - _ASPECTS[0]) * aspect
    aspect = tf.where(exchange < 0.5, aspect, 1.0 / aspect)  # width / height
    return Draws(
        tries=tf.sqrt(tf.stack([area / aspect, area * aspect], axis=2)),
        corner=uniforms[:, 3 * _TRIES : 3 * _TRIES + 2],
        flipped=uniforms[:, 3 * _TRIES + 2] < 0.5,
        lighting=normals[:, :3],
    )


def centre_window(height, width, share: float = 1.0) -> tf.Tensor:
    """Returns the central square with a side of `share` times the shorter side of the photo.

    Args:
      height, width: int32 scalars, of the photo in pixels.
      share: fraction of the shorter side, in (0, 1].

    Returns:
      int32 (4,): top, left, height, width, in pixels.
    """
    shorter = tf.minimum(height, width)
    side = tf.cast(tf.round(tf.cast(shorter, tf.float32) * share), tf.int32)
    side = tf.maximum(side, 1)
    return tf.stack([(height - side) // 2, (width - side) // 2, side, side])


def crop_window(height, width, draws: Draws) -> tf.Tensor:
    """Returns a random window: area uniform in [area_min, 1], aspect uniform in [3/4, 4/3].

    Height and width are swapped half of the time. The first of 10 tries that fits is taken, else
    the central square, as in the authors' code.

    Args:
      height, width: int32 scalars, of the photo in pixels.
      draws: those of this photo.

    Returns:
      int32 (4,): top, left, height, width, in pixels.
    """
    sides = tf.cast(tf.stack([height, width]), tf.float32)
    tries = tf.maximum(tf.round(draws.tries * tf.sqrt(sides[0] * sides[1])), 1.0)
    fits = tf.reduce_all(tries <= sides, axis=1)
    size = tries[tf.argmax(tf.cast(fits, tf.int32))]  # the first that fits
    free = sides - size + 1.0
    corner = tf.minimum(tf.floor(draws.corner * free), free - 1.0)
    window = tf.cast(tf.concat([corner, size], axis=0), tf.int32)
    return tf.where(tf.reduce_any(fits), window, centre_window(height, width))


def flip(image: tf.Tensor, flipped) -> tf.Tensor:
    """Mirrors (H, W, C) left to right if `flipped`, a bool scalar, is true."""
    # tf.reverse on one branch: image[:, ::-1] under tf.where takes ten times as long.
    return tf.cond(flipped, lambda: tf.reverse(image, [1]), lambda: image)


def lighting(image: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Adds AlexNet's PCA noise: one colour for the whole photo.

    The result is not clipped: it may leave [0, 1] by some hundredths, as in the authors' code.

    Args:
      image: float32 RGB in [0, 1], (H, W, 3).
      weights: float32 (3,), one per component.

    Reference: Krizhevsky et al., ImageNet Classification with Deep CNNs, 2012, section 4.1.
    """
    colour = tf.linalg.matvec(_EIGENVECTORS, weights * _EIGENVALUES)
    # Added as whole rows: TensorFlow is four times slower where the last axis is only 3 long.
    shape = tf.shape(image)
    rows = tf.reshape(image, [shape[0], shape[1] * 3])
    return tf.reshape(tf.nn.bias_add(rows, tf.tile(colour, shape[1:2])), shape)


# --- steps, in the order in which a photo takes them --------------------------------------


def window(height, width, data: DataConfig, draws: Draws) -> tf.Tensor:
    """Returns the window of the photo to decode: int32 (4,), top, left, height, width."""
    return crop_window(height, width, draws) if data.augment_crop else centre_window(height, width)


def before_resizing(image: tf.Tensor, data: DataConfig, draws: Draws) -> tf.Tensor:
    """Augments a window as it was decoded, uint8 (h, w, 3)."""
    return flip(image, draws.flipped) if data.augment_flip else image


def after_resizing(image: tf.Tensor, data: DataConfig, draws: Draws) -> tf.Tensor:
    """Augments a resized photo, float32 RGB in [0, 1], (S, S, 3)."""
    if data.augment_lighting:
        image = lighting(image, data.augment_lighting * draws.lighting)
    return image
