"""Encoded photos of strangers in one batch: a fault in one affects its own row alone.

A graph has no "try", and an op that fails aborts the whole batch. A dataset can ignore the errors
of its elements, so each photo is decoded in a dataset of one element inside the graph, followed by
a second element that replaces the first if it is lost.
"""

from collections.abc import Callable

import tensorflow as tf

from dolg_tf.data import headers, images
from dolg_tf.data.formats import exif_graph, jpeg_graph

OK, UNDECODABLE, TOO_LARGE = 0, 1, 2

# The network's coarsest map has one cell per 32 pixels, and at least one: a photo of one row takes
# as much memory as one of 32.
_LEAST_SIDE = 32


def load(data: tf.Tensor, max_pixels: int, upright: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a photo that may be damaged, or larger than memory, and never fails.

    Args:
      data: scalar string, an encoded photo or anything else.
      max_pixels: the most pixels, by its header, that a photo may have to be decoded; a side
        below 32 counts as 32.
      upright: turn it by its EXIF orientation.

    Returns:
      (image, status): uint8 RGB (H, W, 3), as `images.decode` gives it, and int32 scalar OK; or
      (0, 0, 3) and UNDECODABLE or TOO_LARGE, which a JPEG of more than 32 scans is, too: it takes
      the time of as many photos.
    """

    def decode(data):
        sides = tf.maximum(headers.photo_size(data), _LEAST_SIDE)
        pixels = tf.reduce_prod(tf.cast(sides, tf.float64))  # as integers it may overflow
        return tf.cond(
            (pixels > max_pixels) | _many_scans(data),
            lambda: _no_photo(TOO_LARGE),
            lambda: (decoded(data), tf.constant(OK)),
        )

    def decoded(data):
        image = images.decode(data)
        return exif_graph.turn(image, exif_graph.orientation(data)) if upright else image

    photo = tf.data.Dataset.from_tensors(data).map(decode).ignore_errors()
    stand_in = tf.data.Dataset.from_tensors(_no_photo(UNDECODABLE))
    return photo.concatenate(stand_in).take(1).get_single_element()


def describe_encoded(
    describe: Callable[[tf.Tensor], tf.Tensor],
    image_bytes: tf.Tensor,
    max_pixels: int,
    descriptor_size: int,
    upright: bool = False,
) -> dict[str, tf.Tensor]:
    """Describes encoded photos of any sizes, one after the other.

    Memory is that of the largest photo, whatever the batch. A row does not depend on the others.

    Args:
      describe: uint8 RGB (1, H, W, 3) -> float32 (1, D).
      image_bytes: string (B,), encoded photos or anything else.
      max_pixels: see `load`.
      descriptor_size: D.
      upright: turn photos by their EXIF orientation.

    Returns:
      `descriptors`, float32 (B, D), zeros where the status is not 0; `status`, int32 (B,):
      0 described, 1 undecodable, 2 larger than `max_pixels`, or of too many scans.
    """

    def row(data):
        photo, status = load(data, max_pixels, upright)
        descriptor = tf.cond(
            tf.equal(status, OK),
            lambda: tf.ensure_shape(describe(photo[None])[0], [descriptor_size]),
            lambda: tf.zeros([descriptor_size]),
        )
        return descriptor, status

    specs = (tf.TensorSpec([descriptor_size], tf.float32), tf.TensorSpec([], tf.int32))
    descriptors, status = tf.map_fn(
        row, image_bytes, fn_output_signature=specs, parallel_iterations=1
    )
    return {"descriptors": descriptors, "status": status}


def _many_scans(data: tf.Tensor) -> tf.Tensor:
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: jpeg_graph.Segments(data).many_scans(),
        lambda: tf.constant(False),
    )


def _no_photo(status: int) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.zeros([0, 0, 3], tf.uint8), tf.constant(status)
