"""Images of equal size are described together, within bounded memory."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

# Decoded photos that wait for others of their size, at most.
WAITING_BYTES = 256 * 2**20


def bucket(
    images: Iterable[tuple[int, np.ndarray]], batch_size: int, waiting_bytes: int = WAITING_BYTES
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups images of equal shape.

    Args:
      images: (row, uint8 (H, W, 3)) pairs.
      batch_size: most images in a batch.
      waiting_bytes: when the images that wait for a full batch are larger than this together,
        the fullest bucket goes as it is.

    Yields:
      (rows, uint8 (B, H, W, 3)), 1 <= B <= batch_size; each image once.
    """
    buckets: dict[tuple, list] = {}
    waiting = 0

    def take(shape):
        taken = buckets.pop(shape)
        return [row for row, _ in taken], np.stack([image for _, image in taken])

    for row, image in images:
        buckets.setdefault(image.shape, []).append((row, image))
        waiting += image.nbytes
        full = image.shape if len(buckets[image.shape]) == batch_size else None
        if full is None and waiting > waiting_bytes:
            full = max(buckets, key=lambda shape: len(buckets[shape]) * np.prod(shape))
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
) -> tuple[np.ndarray, np.ndarray]:
    """Describes images in batches and puts the results in the order of their rows.

    Args:
      images: (row, uint8 (H, W, 3)) pairs, rows below `count`.
      describe: uint8 (B, H, W, 3) -> float32 (B, D).
      count: rows in all.
      batch_size: most images in a batch.

    Returns:
      (descriptors, done): float32 (count, D) and bool (count,), which rows came.
    """
    descriptors, done = np.zeros((count, 0), np.float32), np.zeros(count, bool)
    for rows, batch in bucket(images, batch_size):
        part = np.asarray(describe(batch), np.float32)
        if not done.any():
            descriptors = np.zeros((count, part.shape[1]), np.float32)
        descriptors[rows], done[rows] = part, True
    return descriptors, done
