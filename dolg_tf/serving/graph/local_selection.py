"""The strongest local features of a photo over several scales, chosen by DELF's rules.

A cell counts whose strength is at least the threshold. Of the cells of all scales together the
strongest are taken; of equal ones, those of the earlier scale, then by row and column. Their places
in the photo do not know that its sides were rounded when it was resized.

Reference: research/delf, training/model/export_model_utils.py and feature_extractor.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

# Pixels on both sides of a cell's centre that the network is taken to see, at scale 1: half the
# receptive field of DELF's ResNet-50. Matters only where boxes that overlap are dropped.
_HALF_BOX = 145.0


class Maps(NamedTuple):
    """What a network gives at one scale.

    Attributes:
      features: float32 (h, w, D).
      strength: float32 (h, w).
      rows: float32 (n, R), anything else, of which all scales' rows are returned one after another.
    """

    features: tf.Tensor
    strength: tf.Tensor
    rows: tf.Tensor


class Found(NamedTuple):
    """Features of all scales, the strongest first.

    Attributes:
      places: float32 (N, 2), row and column in pixels of the resized photo.
      factors: float32 (N,), the scale s at which it was resized.
      scales: float32 (N,), 1 / s: how much larger a region is than at scale 1.
      strengths: float32 (N,).
      features: float32 (N, D).
      rows: float32 (M, R), see `Maps`.
    """

    places: tf.Tensor
    factors: tf.Tensor
    scales: tf.Tensor
    strengths: tf.Tensor
    features: tf.Tensor
    rows: tf.Tensor

    @property
    def positions(self) -> tf.Tensor:
        """Row and column in pixels of the photo, float32 (N, 2)."""
        return self.places / self.factors[:, None]

    @property
    def boxes(self) -> tf.Tensor:
        """Regions in pixels of the photo: ymin, xmin, ymax, xmax, float32 (N, 4)."""
        sides = tf.concat([self.places - _HALF_BOX, self.places + _HALF_BOX], 1)
        return sides / self.factors[:, None]


def select(
    maps_at: Callable[[tf.Tensor, tf.Tensor], Maps],
    scales: tf.Tensor,
    max_features: tf.Tensor,
    threshold: tf.Tensor,
    *,
    stride: int,
    widths: tuple[int, int],
    iou: float = 1.0,
) -> Found:
    """Chooses features, one scale after the other.

    Args:
      maps_at: (index, scale) -> the maps of the photo resized by this scale.
      scales: float32 (S,), checked.
      max_features: int32 scalar, the most features of all scales together.
      threshold: float32 scalar, the least strength.
      stride: of the maps, in pixels of the resized photo.
      widths: D and R of `Maps`.
      iou: of two boxes that overlap by more, intersection over union, the weaker goes; 1: none.

    Raises:
      tf.errors.InvalidArgumentError: when `max_features` is below 0.
    """
    check = tf.debugging.assert_non_negative(max_features, "give a number of features of 0 or more")
    with tf.control_dependencies([check] if check is not None else []):
        limit = tf.identity(max_features)

    def step(index, found):
        scale = scales[index]
        maps = maps_at(index, scale)
        new = _candidates(maps, scale, threshold, stride, limit if iou >= 1 else None)
        joined = Found(*(tf.concat(pair, 0) for pair in zip(found, new, strict=True)))
        # What is not among the strongest so far never will be. With boxes it may be: the one that
        # would drop it may itself be dropped by one of a later scale.
        return index + 1, _strongest(joined, limit) if iou >= 1 else joined

    none = Found(*(tf.zeros([0, *shape]) for shape in ((2,), (), (), (), widths[:1], widths[1:])))
    shapes = Found(*(tf.TensorShape([None, *tensor.shape[1:]]) for tensor in none))
    _, found = tf.while_loop(
        lambda index, _: index < tf.size(scales),
        step,
        (tf.constant(0), none),
        shape_invariants=(tf.TensorShape([]), shapes),
        parallel_iterations=1,  # or the maps of all scales are in memory at once
    )
    if iou >= 1:
        return found
    most = tf.minimum(limit, tf.size(found.strengths))
    return _rows(found, tf.image.non_max_suppression(found.boxes, found.strengths, most, iou))


def relative(found: Found, threshold: tf.Tensor) -> Found:
    """Returns features with strengths over the largest, HOW's attention, from `threshold` on.

    The strongest is among those that were chosen, so they could be chosen before.
    """
    strengths = found.strengths / tf.reduce_max(found.strengths)
    found = found._replace(strengths=strengths)
    return _rows(found, tf.where(strengths >= threshold)[:, 0])


def _candidates(
    maps: Maps, scale: tf.Tensor, threshold: tf.Tensor, stride: int, limit: tf.Tensor | None
) -> Found:
    """Returns the cells of one scale that may be chosen."""
    shape = tf.shape(maps.strength)
    strengths = tf.reshape(maps.strength, [-1])
    cells = tf.where(strengths >= threshold)[:, 0]
    if limit is not None:
        cells = tf.gather(cells, _top(tf.gather(strengths, cells), limit))
    columns = tf.cast(shape[1], cells.dtype)
    places = tf.stack([cells // columns, cells % columns], 1)
    return Found(
        places=stride * tf.cast(places, tf.float32),
        factors=tf.fill(tf.shape(cells), scale),
        # Of a whole row, TensorFlow's reciprocals of 1 are not all 1.
        scales=tf.fill(tf.shape(cells), 1.0 / scale),
        strengths=tf.gather(strengths, cells),
        features=tf.gather(tf.reshape(maps.features, [-1, maps.features.shape[-1]]), cells),
        rows=maps.rows,
    )


def _strongest(found: Found, limit: tf.Tensor) -> Found:
    return _rows(found, _top(found.strengths, limit))


def _top(strengths: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """Returns the places of the strongest; `top_k` puts the earlier of equal ones first."""
    return tf.math.top_k(strengths, tf.minimum(limit, tf.size(strengths))).indices


def _rows(found: Found, places: tf.Tensor) -> Found:
    kept = {name: tf.gather(getattr(found, name), places) for name in Found._fields[:-1]}
    return Found(**kept, rows=found.rows)
