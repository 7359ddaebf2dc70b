"""Decoding and geometry: one definition, shared by training, export and extraction.

Encoded photo -> uint8 RGB -> float32 RGB in [0, 1] -> resized. Mean, standard deviation and channel
order belong to the network. Everything here consists of TensorFlow ops, so it works eagerly, in
tf.data and in a SavedModel.
"""

import tensorflow as tf

from dolg_tf.data import headers

# TensorFlow's default, a faster DCT, differs by up to 4 levels from Pillow, OpenCV and browsers.
_DCT = "INTEGER_ACCURATE"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"  # a segment: not transformed


def decode(data: tf.Tensor) -> tf.Tensor:
    """Returns the photo as uint8 RGB of shape (H, W, 3).

    EXIF orientation is ignored: `formats.exif_graph` turns. Otherwise the rule is that of
    `photo_files`, which gives the same pixels.

    Args:
      data: scalar string, an encoded JPEG, PNG, GIF, BMP or WebP.

    Raises:
      tf.errors.InvalidArgumentError: when the data cannot be decoded, as with truncated JPEGs
        and formats that `photo_files` alone reads.
    """
    # JPEG apart: distinguishing the others takes longer than decoding a small photo.
    image = tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.decode_jpeg(_with_inks(data), channels=3, dct_method=_DCT),
        lambda: _decode_other(data),
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_jpeg_crop(data: tf.Tensor, top, left, height, width) -> tf.Tensor:
    """Returns a window of a JPEG as uint8 RGB of shape (height, width, 3), decoding little else.

    Equal to a slice of the whole photo, except in the first and last column where chroma is
    subsampled: its interpolation does not look beyond the window.

    Args:
      data: scalar string, an encoded JPEG.
      top, left: int32 scalars, corner of the window in pixels.
      height, width: int32 scalars, size of the window in pixels; it must lie inside the photo.
    """
    window = tf.stack([top, left, height, width])
    return tf.image.decode_and_crop_jpeg(_with_inks(data), window, channels=3, dct_method=_DCT)


def _with_inks(data: tf.Tensor) -> tf.Tensor:
    """Returns a JPEG; one of CMYK begins with Adobe's marker: inks are stored inverted.

    So they are by all who write such files, with the marker or not. A later marker counts instead.
    """
    return tf.cond(
        tf.image.extract_jpeg_shape(data)[2] == 4,
        lambda: tf.strings.join([b"\xff\xd8" + _ADOBE, tf.strings.substr(data, 2, 2**31 - 1)]),
        lambda: data,
    )


# Traced: op by op, as extraction calls it, reading the header takes 7 ms.
@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _decode_other(data: tf.Tensor) -> tf.Tensor:
    decoders = {
        headers.UNKNOWN: _decode_nothing,
        headers.PNG: lambda: _decode_image(data, 3),
        headers.GIF: lambda: _decode_gif(data),
        headers.BMP: lambda: _decode_bmp(data),
        # A WebP can be decoded only with the channels that it has.
        headers.WEBP: lambda: _decode_image(headers.animated_webp_with_alpha(data), 0)[:, :, :3],
    }
    return tf.switch_case(headers.kind(data), decoders)


def _decode_image(data: tf.Tensor, channels: int) -> tf.Tensor:
    return tf.io.decode_image(data, channels=channels, expand_animations=False)


def _decode_nothing() -> tf.Tensor:
    # Not left to TensorFlow's decoder, which knows formats whose size `headers` cannot read.
    with tf.control_dependencies([tf.debugging.Assert(False, ["the photo's format is unknown"])]):
        return tf.zeros([0, 0, 3], tf.uint8)


def _decode_gif(data: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame of a GIF on its canvas, which is black."""
    gif, place = headers.first_gif_frame(data)
    frame = _decode_image(gif, 3)
    sides = tf.shape(frame, tf.int64)[:2]
    before, behind = place[2:], place[:2] - place[2:] - sides
    edges = tf.concat([tf.stack([before, behind], 1), tf.zeros([1, 2], tf.int64)], 0)
    return tf.pad(frame, edges)


def _decode_bmp(data: tf.Tensor) -> tf.Tensor:
    """Decodes a BMP. TensorFlow returns the indices of one with a palette as if they were grey."""
    plain = tf.debugging.Assert(headers.is_plain_bmp(data), ["a BMP of a kind not decoded here"])
    with tf.control_dependencies([plain]):
        image = _decode_image(data, 0)  # (H, W, 1, 3 or 4)
    return tf.cond(
        tf.shape(image)[2] == 1,
        lambda: tf.gather(headers.bmp_palette(data), tf.cast(image[:, :, 0], tf.int32)),
        lambda: image[:, :, :3],
    )


def to_float(image: tf.Tensor) -> tf.Tensor:
    """Returns uint8 levels as float32 in [0, 1]."""
    return tf.cast(image, tf.float32) / 255.0


def resize(image: tf.Tensor, height, width) -> tf.Tensor:
    """Resizes float32 (H, W, C) or (B, H, W, C) to (height, width) pixels.

    Bilinear, half-pixel centres, no antialiasing, like OpenCV's INTER_LINEAR and so like the
    authors' extractor.
    """
    return tf.image.resize(image, tf.stack([height, width]), method="bilinear", antialias=False)


def resize_levels(image: tf.Tensor, height, width) -> tf.Tensor:
    """Resizes uint8 levels (H, W, C) to float32 in [0, 1], (height, width, C).

    Equal to `resize(to_float(image), height, width)` to 2e-7, with one pass fewer over the pixels.
    """
    levels = tf.bitcast(image, tf.quint8)
    return resize(tf.quantization.dequantize(levels, 0.0, 1.0, mode="MIN_FIRST"), height, width)


def scaled_size(height, width, scale) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns int32 (height, width) of a photo at a scale: round(side x scale), at least 1.

    Halves are rounded to even, and the product is taken in float32, as in DELG.
    """

    def scaled(side):
        product = tf.cast(side, tf.float32) * tf.cast(scale, tf.float32)
        return tf.maximum(tf.cast(tf.round(product), tf.int32), 1)

    return scaled(height), scaled(width)


def floored_size(height, width, scale) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns int32 (height, width) of a photo at a scale: floor(side x scale), at least 1.

    The product is taken in float64 of the decimal fraction that the float32 scale stands for, as in
    HOW: 1000 x 0.353 is 353.
    """
    written = tf.round(tf.cast(scale, tf.float64) * 1e6) / 1e6
    same = tf.equal(tf.cast(written, tf.float32), tf.cast(scale, tf.float32))
    exact = tf.where(same, written, tf.cast(scale, tf.float64))

    def scaled(side):
        product = tf.floor(tf.cast(side, tf.float64) * exact)
        return tf.maximum(tf.cast(product, tf.int32), 1)

    return scaled(height), scaled(width)
