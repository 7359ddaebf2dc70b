"""Batches of photos of equal size, and their descriptors in the order of the photos."""

import logging
import sys
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dolg_tf.runtime import session
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

WAITING_BYTES = 256 * 2**20  # most decoded photos that wait for others of their size
# Most pixels of a batch on CPUs, unless it is a single photo: a network may take 1 GB for so many,
# and larger batches are hardly faster there. A GPU needs them.
BATCH_PIXELS = 2**20

Failed = Callable[[int, str], None]
"""Takes the row of a photo that cannot be described, and why."""


def bucket(
    images: Iterable[tuple[int, np.ndarray]],
    batch_size: int,
    waiting_bytes: int = WAITING_BYTES,
    batch_pixels: int = BATCH_PIXELS,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups images of equal shape.

    Args:
      images: (row, uint8 (H, W, 3)) pairs.
      batch_size: most images per batch.
      waiting_bytes: when the images that wait for a full batch exceed this size in total, the
        fullest bucket is yielded as it is.
      batch_pixels: most pixels of a batch of several images.

    Yields:
      (rows, uint8 (B, H, W, 3)), 1 <= B <= batch_size; every image once.
    """
    buckets: dict[tuple, list] = {}
    waiting = 0

    def take(shape):
        taken = buckets.pop(shape)
        return [row for row, _ in taken], np.stack([image for _, image in taken])

    for row, image in images:
        shape = image.shape
        buckets.setdefault(shape, []).append((row, image))
        waiting += image.nbytes
        most = max(1, min(batch_size, batch_pixels // (shape[0] * shape[1])))
        full = shape if len(buckets[shape]) >= most else None
        if full is None and waiting > waiting_bytes:
            full = max(buckets, key=lambda shape: len(buckets[shape]) * np.prod(shape))
        del image  # not held while its batch is described
        if full is not None:
            rows, batch = take(full)
            waiting -= batch.nbytes
            yield rows, batch
    for shape in list(buckets):
        yield take(shape)


def describe_batches(
    images: Iterable[tuple[int, np.ndarray]],
    describe: Callable[[np.ndarray], np.ndarray],
    count: int,
    batch_size: int,
    failed: Failed | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Describes images in batches and puts the results in the order of their rows.

    Args:
      images: (row, uint8 (H, W, 3)) pairs, rows below `count`.
      describe: uint8 (B, H, W, 3) -> float32 (B, D).
      count: total number of rows.
      batch_size: most images per batch.
      failed: is told of each image that is too large for the memory, even alone.

    Returns:
      (descriptors, done): float32 (count, D), and bool (count,), the rows that were described.

    Raises:
      InputError: when an image is too large for the memory, and `failed` is None.
    """
    descriptors, done = np.zeros((count, 0), np.float32), np.zeros(count, bool)
    # Where TensorFlow describes, it has been loaded.
    most = sys.maxsize if session.has_gpu() else BATCH_PIXELS
    for rows, batch in bucket(images, batch_size, batch_pixels=most):
        for some, part in _described(rows, batch, describe, failed):
            if not done.any():
                descriptors = np.zeros((count, part.shape[1]), np.float32)
            descriptors[some], done[some] = part, True
    return descriptors, done


def too_many_pixels(image: np.ndarray) -> str:
    """Returns why an image, (H, W, 3), cannot be described."""
    height, width = image.shape[:2]
    return f"{width} x {height} pixels are too many for the memory; give a smaller --max_side"


def _described(
    rows: list[int], batch: np.ndarray, describe: Callable, failed: Failed | None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields rows and their float32 (B, D): of the batch, or one by one if it is too large."""
    try:
        yield rows, np.asarray(describe(batch), np.float32)
        return
    except MemoryError:
        if len(rows) == 1:
            reason = too_many_pixels(batch[0])
            if failed is None:
                raise InputError(f"a photo of {reason}") from None
            failed(rows[0], reason)
            return
    log.warning("%d photos together are too large for the memory: one by one", len(rows))
    for number, row in enumerate(rows):
        yield from _described([row], batch[number : number + 1], describe, failed)
