"""Visitors' photos, decoded within limits and turned upright, and pictures for the page."""

import base64
import functools
import io
import pathlib

import numpy as np

from dolg_tf.retrieval.extract.decoding import shrink
from dolg_tf.stage.config import InputError

_ORIENTATION = 0x0112  # EXIF's tag
# From black through violet and orange to light yellow, even in lightness: matplotlib's "inferno".
RAMP = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")
_MAP_SHARE = 0.6  # of the map over the grey photo


# --- reading -------------------------------------------------------------------------


@functools.cache
def _photo_size():
    """Returns `headers.photo_size` as a graph: op by op, the blocks of a GIF take seconds."""
    import tensorflow as tf

    from dolg_tf.data import headers

    return tf.function(
        headers.photo_size, input_signature=[tf.TensorSpec([], tf.string)], autograph=False
    )


def read_photo(data: bytes, max_bytes: int, max_pixels: int) -> np.ndarray:
    """Decodes an untrusted photo and turns it upright.

    The size is read from the header first: a photo that is too large is never decoded.

    Args:
      data: JPEG, PNG, WebP, BMP or GIF, or anything else.
      max_bytes: largest file that is accepted.
      max_pixels: largest photo that is decoded.

    Returns:
      uint8 RGB (H, W, 3).

    Raises:
      InputError: when it is too large, or not a photo.
    """
    import tensorflow as tf

    from dolg_tf.data import images

    if len(data) > max_bytes:
        raise InputError(
            f"The photo has {len(data) / 2**20:.1f} MiB, the limit is {max_bytes / 2**20:.4g} MiB."
        )
    no_photo = "The file cannot be read as a photo: damaged, or not JPEG, PNG, WebP, BMP or GIF."
    try:
        height, width = (int(side) for side in _photo_size()(tf.constant(data)))
        if height * width > max_pixels:
            raise InputError(
                f"The photo has {width} x {height} = {width * height / 1e6:.1f} million pixels, "
                f"the limit is {max_pixels / 1e6:g} million."
            )
        image = images.decode(tf.constant(data)).numpy() if height * width else None
    except tf.errors.InvalidArgumentError:
        image = None
    if image is None or not image.size:
        raise InputError(no_photo)
    return _upright(image, _orientation(data))


def _orientation(data: bytes) -> int:
    """Returns the EXIF orientation of a JPEG, 1 to 8; 1 when it has none that can be read."""
    from PIL import Image

    if not data.startswith(b"\xff\xd8\xff"):
        return 1
    try:
        # Reads the header alone.
        with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as photo:
            found = photo.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises whatever a damaged EXIF makes it raise
        return 1
    return found if found in range(1, 9) else 1


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turns a photo upright by its EXIF orientation: where its rows and columns begin."""
    if orientation >= 5:
        image = image.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


# --- showing -------------------------------------------------------------------------


def jpeg(image: np.ndarray, max_side: int) -> bytes:
    """Returns a photo, uint8 RGB (H, W, 3), as a JPEG with a longest side of `max_side` pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(shrink(image, max_side)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def thumbnail(file: pathlib.Path, side: int) -> bytes | None:
    """Returns a small upright JPEG of a photo on disk; None when it is gone or damaged.

    A JPEG is decoded at a fraction of its size, which is several times as fast: thumbnails are only
    looked at, never described.

    Args:
      file: the photo.
      side: longest side in pixels.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as photo:
            photo.draft("RGB", (side, side))
            small = ImageOps.exif_transpose(photo.convert("RGB"))
            small.thumbnail((side, side))
            return jpeg(np.asarray(small), side)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def data_uri(encoded: bytes) -> str:
    """Returns a JPEG as the `src` of an `<img>`: it is part of the page and has no address."""
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _colours(values: np.ndarray) -> np.ndarray:
    """Returns float32 RGB levels (h, w, 3) of values in [0, 1]."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in RAMP], np.float32)
    places = np.linspace(0, 1, len(stops))
    channels = [np.interp(values, places, stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def overlay(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Lays a map of the network over a grey photo; colours span its smallest to largest value.

    Args:
      image: uint8 RGB (H, W, 3).
      values: float (h, w), finite; stretched over the photo.

    Returns:
      uint8 RGB (H, W, 3).
    """
    from PIL import Image

    values = np.asarray(values, np.float32)
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    height, width = image.shape[:2]
    stretched = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    grey = image.mean(axis=-1, dtype=np.float32)[..., None]
    mixed = _MAP_SHARE * _colours(np.asarray(stretched)) + (1 - _MAP_SHARE) * grey
    return mixed.round().astype(np.uint8)
