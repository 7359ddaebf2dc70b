"""Visitors' photos, refused by what they state or decoded; and pictures for the page."""

import base64
import io
import pathlib

import numpy as np

from dolg_tf.data import photo_files
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.retrieval.extract.decoding import shrink
from dolg_tf.stage.config import InputError

# Of the index, at most, when a thumbnail is made; JPEGs are decoded at a fraction of their size.
_THUMBNAIL_PIXELS = 50_000_000
# From black through violet and orange to light yellow, even in lightness: matplotlib's "inferno".
RAMP = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")
_MAP_SHARE = 0.6  # of the map over the grey photo


# --- reading -------------------------------------------------------------------------


def read_size(
    name: str, data: bytes, upright: bool, max_bytes: int, max_pixels: int
) -> tuple[int, int]:
    """Returns width and height of an untrusted photo, from its header: nothing is decoded.

    Args:
      name: of its file.
      data: a photo, or anything else.
      upright: whether it will be turned by its EXIF orientation.
      max_bytes: largest file that is accepted.
      max_pixels: largest photo that is accepted.

    Raises:
      InputError: when it is too large, or not a photo that can be decoded.
    """
    if len(data) > max_bytes:
        raise InputError(
            f"{name} has {len(data) / 2**20:.1f} MiB; the limit is {max_bytes / 2**20:.4g} MiB."
        )
    try:
        header = photo_files.read_header(data)
    except UnusablePhoto as error:
        raise refusal(name, data, error.reason) from error
    width, height = header.width, header.height
    if upright and header.orientation >= 5:
        width, height = height, width
    if height * width > max_pixels:
        raise InputError(
            f"{name} has {width} x {height} = {width * height / 1e6:.1f} million pixels; the limit "
            f"is {max_pixels / 1e6:g} million."
        )
    return width, height


def refusal(name: str, data: bytes, reason: str) -> InputError:
    """Returns what to tell a visitor whose photo cannot be used."""
    known = photo_files.sniff(data[:64])
    if known is None:
        return InputError(f"{name} is not a photo: choose a JPEG, PNG, HEIC, WebP or the like.")
    return InputError(f"{name} is a {known} photo that cannot be read ({reason}).")


# --- showing -------------------------------------------------------------------------


def jpeg(image: np.ndarray, max_side: int) -> bytes:
    """Returns a photo, uint8 RGB (H, W, 3), as a JPEG with a longest side of `max_side` pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(shrink(image, max_side)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def picture(data: bytes, side: int, upright: bool) -> bytes:
    """Returns a small JPEG of an encoded photo; see `thumbnail`.

    Raises:
      UnusablePhoto: when it cannot be decoded.
    """
    return jpeg(photo_files.decode(data, upright=upright, reduce_to=side), side)


def thumbnail(file: pathlib.Path, side: int, upright: bool) -> bytes | None:
    """Returns a small JPEG of a photo on disk; None when it is gone, damaged or too large.

    Args:
      file: the photo.
      side: longest side in pixels.
      upright: turn it by its EXIF orientation.
    """
    try:
        examined = photo_files.examine(photo_files.read_file(file))
        header = examined.header
        if header.format != "JPEG" and header.height * header.width > _THUMBNAIL_PIXELS:
            return None
        return jpeg(examined.decode(upright=upright, reduce_to=side), side)
    except (OSError, UnusablePhoto, MemoryError):
        return None


def data_uri(encoded: bytes) -> str:
    """Returns a JPEG as the `src` of an `<img>`: a visitor's photo has no address."""
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
