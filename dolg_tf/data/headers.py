"""Format and size of encoded photos, read from their headers by graph ops that never decode.

A header may promise more pixels than a machine has memory: code that decodes strangers' photos asks
here first. The layouts follow the specifications: PNG 11.2.2, GIF89a 18 to 20, the
BITMAPINFOHEADER, the WebP container.
"""

import tensorflow as tf

UNKNOWN, PNG, GIF, BMP, WEBP = range(5)

_HEAD = 68  # bytes, more than any header read here

# Blocks of a GIF's first frame and of the extensions before it; each holds up to 255 bytes.
_MAX_BLOCKS = 2**16


def kind(data: tf.Tensor) -> tf.Tensor:
    """Returns the format of a scalar string: int32 scalar, PNG, GIF, BMP, WEBP or UNKNOWN.

    JPEG is left to `tf.io.is_jpeg`, which is faster.
    """
    head = _head(data)
    begins = [
        _says(head, 0, b"\x89PNG\r\n\x1a\n"),
        _says(head, 0, b"GIF8"),
        _says(head, 0, b"BM"),
        _says(head, 0, b"RIFF") & _says(head, 8, b"WEBP"),
    ]
    return tf.reduce_sum(tf.cast(tf.stack(begins), tf.int32) * [PNG, GIF, BMP, WEBP])


def photo_size(data: tf.Tensor) -> tf.Tensor:
    """Returns the size of a photo that its header states and a decoder would allocate.

    Args:
      data: scalar string, an encoded photo or anything else.

    Returns:
      int64 (2,), height and width in pixels; zeros for all but JPEG, PNG, GIF, BMP and WebP.

    Raises:
      tf.errors.InvalidArgumentError: on a JPEG without a readable header.
    """
    sizes = {
        UNKNOWN: lambda: tf.zeros([2], tf.int64),
        PNG: lambda: _png_size(_head(data)),
        GIF: lambda: first_gif_frame(data)[1][:2],
        BMP: lambda: _bmp_size(_head(data)),
        WEBP: lambda: _webp_size(_head(data)),
    }
    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64),
        lambda: tf.switch_case(kind(data), sizes),
    )


def first_gif_frame(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Cuts a GIF off after its first frame.

    TensorFlow's decoder unpacks all frames before it drops all but the first, so a small file can
    take any amount of memory. It also makes the canvas as large as the largest frame.

    Args:
      data: scalar string, an encoded GIF.

    Returns:
      (gif, place): scalar string, a GIF of that frame alone, in the corner of the canvas; int64
      (4,), height and width in pixels of the canvas, enlarged to hold the frame, and top and left
      of the frame on it, zeros without a frame. A damaged GIF gives a string that a decoder
      refuses.
    """
    raw = tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros([1], tf.uint8)], 0)

    def byte(at):
        # After the end there are zeros, which end a chain of blocks.
        return tf.cast(raw[tf.minimum(at, tf.size(raw) - 1)], tf.int32)

    def palette(flags):
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(2, flags % 8), 0)

    def after_blocks(at):
        (last,) = tf.while_loop(
            lambda at: byte(at) > 0,
            lambda at: (at + 1 + byte(at),),
            (at,),
            maximum_iterations=_MAX_BLOCKS,
        )
        return last + 1

    (frame,) = tf.while_loop(
        lambda at: byte(at) == ord("!"),
        lambda at: (after_blocks(at + 2),),
        (13 + palette(byte(10)),),
        maximum_iterations=_MAX_BLOCKS,
    )
    end = after_blocks(frame + 11 + palette(byte(frame + 9)))
    gif = tf.strings.join(
        [_substr(data, 0, frame + 1), b"\0\0\0\0", _substr(data, frame + 5, end - frame - 5), b";"]
    )

    def short(at):
        return byte(at) + 256 * byte(at + 1)

    left, top, width, height = (short(frame + at) for at in (1, 3, 5, 7))
    whole = (
        tf.maximum(short(tf.constant(8)), top + height),
        tf.maximum(short(tf.constant(6)), left + width),
    )
    place = tf.where(byte(frame) == ord(","), tf.stack([*whole, top, left]), 0)
    return gif, tf.cast(place, tf.int64)


def animated_webp_with_alpha(data: tf.Tensor) -> tf.Tensor:
    """Returns a WebP, with the alpha flag set if it is an animation.

    TensorFlow 2.21 decodes animations to four channels. Where the flag is missing, it writes them
    into memory allocated for three.
    """
    head = _head(data)
    animated = _says(head, 12, b"VP8X") & (head[20] // 2 % 2 == 1)
    flags = tf.bitwise.bitwise_or(head[20], 16)
    byte = tf.constant([bytes([value]) for value in range(256)])[flags]
    flagged = tf.strings.join([_substr(data, 0, 20), byte, _substr(data, 21, 2**31 - 1)])
    return tf.where(animated, flagged, data)


def bmp_palette(data: tf.Tensor) -> tf.Tensor:
    """Returns the palette of a BMP with 8 bits per pixel, uint8 (256, 3), RGB; it ends in black.

    Args:
      data: scalar string, an encoded BMP.
    """
    head = _head(data)
    colours = _integer(head, 46, 4)
    colours = tf.where(colours == 0, tf.constant(256, tf.int64), tf.minimum(colours, 256))
    palette = tf.io.decode_raw(_substr(data, 14 + _integer(head, 14, 4), 4 * colours), tf.uint8)
    palette = tf.concat([palette, tf.zeros([4 * 256 - tf.size(palette)], tf.uint8)], 0)
    return tf.reshape(palette, [256, 4])[:, 2::-1]  # from blue, green, red, 0


def is_plain_bmp(data: tf.Tensor) -> tf.Tensor:
    """Returns whether TensorFlow's decoder reads a BMP rightly: it looks at no masks, for one."""
    head = _head(data)
    packing, bits = _integer(head, 30, 4), _integer(head, 28, 2)
    masks = [_integer(head, at, 4) for at in (54, 58, 62)]
    usual = tf.reduce_all(tf.stack(masks) == [0xFF0000, 0xFF00, 0xFF])
    whole = tf.reduce_any(bits == [8, 24, 32])
    masked = (packing == 3) & (bits >= 24) & usual
    return (_integer(head, 14, 4) >= 40) & whole & ((packing == 0) | masked)


def _head(data: tf.Tensor) -> tf.Tensor:
    """Returns the first bytes as int64 (68,), with zeros where there are fewer."""
    padded = tf.strings.join([_substr(data, 0, _HEAD), b"\0" * _HEAD])
    return tf.cast(tf.io.decode_raw(padded, tf.uint8)[:_HEAD], tf.int64)


def _substr(data: tf.Tensor, start, length) -> tf.Tensor:
    # A start beyond the end would be an error.
    start = tf.minimum(tf.cast(start, tf.int64), tf.cast(tf.strings.length(data), tf.int64))
    return tf.strings.substr(data, start, tf.cast(length, tf.int64))


def _says(head: tf.Tensor, place: int, text: bytes) -> tf.Tensor:
    return tf.reduce_all(head[place : place + len(text)] == tf.constant(list(text), tf.int64))


def _integer(head: tf.Tensor, start: int, width: int, *, big: bool = False) -> tf.Tensor:
    """Returns an unsigned integer of the header as int64."""
    places = range(width - 1, -1, -1) if big else range(width)
    weights = tf.constant([256**place for place in places], tf.int64)
    return tf.reduce_sum(head[start : start + width] * weights)


def _png_size(head: tf.Tensor) -> tf.Tensor:
    return tf.stack([_integer(head, 20, 4, big=True), _integer(head, 16, 4, big=True)])


def _bmp_size(head: tf.Tensor) -> tf.Tensor:
    height = _integer(head, 22, 4)
    # A negative height, in two's complement, means that the top row comes first.
    size = tf.stack([tf.minimum(height, 2**32 - height), _integer(head, 18, 4)])
    return tf.where(_integer(head, 14, 4) >= 40, size, 0)  # an older header has them elsewhere


def _webp_size(head: tf.Tensor) -> tf.Tensor:
    lossy = tf.stack([_integer(head, 28, 2), _integer(head, 26, 2)]) % 2**14
    packed = _integer(head, 21, 4)
    lossless = 1 + tf.stack([packed // 2**14, packed]) % 2**14
    extended = 1 + tf.stack([_integer(head, 27, 3), _integer(head, 24, 3)])
    size = tf.zeros([2], tf.int64)
    for chunk, its in ((b"VP8 ", lossy), (b"VP8L", lossless), (b"VP8X", extended)):
        size = tf.where(_says(head, 12, chunk), its, size)
    return size
