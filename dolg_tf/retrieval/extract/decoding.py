"""Photos are read, decoded, cropped and batched ahead of the model."""

import collections
import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# Most decoded photos that wait for others of their size.
WAITING_BYTES = 256 * 2**20


def _cut(image: np.ndarray, photo: Photo) -> np.ndarray:
    height, width = image.shape[:2]
    left, top, right, bottom = (int(x) for x in photo.box)
    left, right = max(left, 0), min(right, width)
    top, bottom = max(top, 0), min(bottom, height)
    if left >= right or top >= bottom:
        raise InputError(
            f"{photo.where}: the box {photo.box} has no pixel of its {width} x {height}; "
            "correct the ground truth, or use --nocrop_queries"
        )
    return image[top:bottom, left:right]


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Returns uint8 RGB (H, W, 3), shrunk to a longest side of `max_side` pixels; 0: unchanged."""
    height, width = image.shape[:2]
    if not max_side or max(height, width) <= max_side:
        return image
    from PIL import Image

    scale = max_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Antialiased, since a photo may be shrunk a lot here; the network's scales resample it later.
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def load_photo(photo: Photo, max_side: int = 0) -> np.ndarray | str:
    """Reads, decodes, crops (to the box, truncated to whole pixels) and shrinks a photo.

    Args:
      photo: what to read.
      max_side: longest side in pixels after the crop; 0: unchanged.

    Returns:
      uint8 RGB (H, W, 3); or the reason, when the file is missing or not a photo.

    Raises:
      InputError: when the box is outside the photo, or the disk fails.
    """
    import tensorflow as tf

    from dolg_tf.data import images

    try:
        image = images.decode(tf.constant(photo.read())).numpy()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        return f"{photo.where}: {error.strerror}"
    except OSError as error:
        # Otherwise a lost disk would turn every photo into a bad one.
        raise InputError(f"{photo.where}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # a damaged record
        return f"{photo.where}: {error}"
    except tf.errors.InvalidArgumentError:
        return f"{photo.where}: not a photo that can be decoded (JPEG, PNG, GIF, BMP, WebP)"
    if photo.box is not None:
        image = _cut(image, photo)
    return shrink(image, max_side)


def read_photo(photo: np.ndarray | Photo | files.Path, max_side: int = 0) -> np.ndarray:
    """Reads a photo as extraction does.

    Args:
      photo: one of a listing, cropped to its box if it has one; the path of a JPEG, PNG, GIF, BMP
        or WebP file; or uint8 RGB (H, W, 3), which is checked.
      max_side: longest side in pixels to shrink it to; 0: never.

    Returns:
      uint8 RGB (H, W, 3).

    Raises:
      InputError: when it cannot be read, or is not such an array.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[-1] != 3:
            raise InputError(f"a photo is {photo.dtype} {photo.shape}; give uint8 RGB (H, W, 3)")
        return shrink(photo, max_side)
    if not isinstance(photo, Photo):
        photo = Photo(pathlib.Path(photo).stem, photo)
    image = load_photo(photo, max_side)
    if isinstance(image, str):
        raise InputError(image)
    return image


# --- ahead of the model --------------------------------------------------------------


def decode_ahead(photos: Iterable[Photo], max_side: int) -> Iterator[np.ndarray | str]:
    """Yields `load_photo` of each photo, in order, while threads decode a few more."""
    return _ahead(lambda photo: load_photo(photo, max_side), photos)


def read_ahead(photos: Iterable[np.ndarray | Photo | files.Path]) -> Iterator[np.ndarray]:
    """Yields `read_photo` of each photo, in order, while threads decode a few more."""
    return _ahead(read_photo, photos)


def _ahead(read: Callable, photos: Iterable) -> Iterator:
    workers = os.cpu_count() or 1
    pending = collections.deque()
    rest = iter(photos)
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for photo in itertools.islice(rest, 4 * workers):
            pending.append(pool.submit(read, photo))
        while pending:
            image = pending.popleft().result()
            for photo in itertools.islice(rest, 1):
                pending.append(pool.submit(read, photo))
            yield image
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --- batches of equal size ------------------------------------------------------------


def bucket(
    images: Iterable[tuple[int, np.ndarray]], batch_size: int, waiting_bytes: int = WAITING_BYTES
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups images of equal shape.

    Args:
      images: (row, uint8 (H, W, 3)) pairs.
      batch_size: most images per batch.
      waiting_bytes: when the images that wait for a full batch exceed this size in total, the
        fullest bucket is yielded as it is.

    Yields:
      (rows, uint8 (B, H, W, 3)), 1 <= B <= batch_size; every image once.
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
      count: total number of rows.
      batch_size: most images per batch.

    Returns:
      (descriptors, done): float32 (count, D), and bool (count,), the rows that were described.
    """
    descriptors, done = np.zeros((count, 0), np.float32), np.zeros(count, bool)
    for rows, batch in bucket(images, batch_size):
        part = np.asarray(describe(batch), np.float32)
        if not done.any():
            descriptors = np.zeros((count, part.shape[1]), np.float32)
        descriptors[rows], done[rows] = part, True
    return descriptors, done
