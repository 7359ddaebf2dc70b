"""EXIF orientation of JPEG, PNG and WebP in graph ops: the rules of `jpeg_header`, `containers`."""

import tensorflow as tf

from dolg_tf.data import headers
from dolg_tf.data.formats.containers import MAX_CHUNKS
from dolg_tf.data.formats.jpeg_graph import Segments
from dolg_tf.data.formats.jpeg_header import ORIENTATION, SHORT


def orientation(data: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation of an encoded photo, int32 scalar, 1 to 8; 1 without any.

    Args:
      data: scalar string, an encoded photo or anything else.
    """

    def of_jpeg():
        segments = Segments(data)
        return _of_block(segments.bytes, *segments.exif())

    def of_chunks(find):
        raw = tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros([16], tf.uint8)], 0)
        return _of_block(raw, *find(raw, tf.strings.length(data)))

    others = {
        headers.UNKNOWN: lambda: tf.constant(1),
        headers.PNG: lambda: of_chunks(_in_png),
        headers.GIF: lambda: tf.constant(1),
        headers.BMP: lambda: tf.constant(1),
        headers.WEBP: lambda: of_chunks(_in_webp),
    }
    return tf.cond(tf.io.is_jpeg(data), of_jpeg, lambda: tf.switch_case(headers.kind(data), others))


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a photo (H, W, 3) upright by its EXIF orientation, as `photo_files.turn` does."""

    def one_of(*values):
        return tf.reduce_any(orientation == tf.constant(values))

    def turned():  # slices of step -1 would take twenty times as long as tf.reverse
        swapped = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        upside = tf.cond(one_of(3, 4, 7, 8), lambda: tf.reverse(swapped, [0]), lambda: swapped)
        return tf.cond(one_of(2, 3, 6, 7), lambda: tf.reverse(upside, [1]), lambda: upside)

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), (None, None, 3))


def _number(raw: tf.Tensor, at: tf.Tensor, size: int, big) -> tf.Tensor:
    """Returns an unsigned integer, int64; bytes behind the end are zeros."""
    last = tf.cast(tf.size(raw) - 1, tf.int64)
    places = tf.cast(at, tf.int64) + tf.range(size, dtype=tf.int64)
    digits = tf.cast(tf.gather(raw, tf.minimum(places, last)), tf.int64)
    digits = tf.where(big, digits[::-1], digits)
    return tf.reduce_sum(digits * tf.constant([256**place for place in range(size)], tf.int64))


def _of_block(raw: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the EXIF block that lies between two places of some bytes."""
    block = tf.concat([raw[begin:end], tf.zeros([16], tf.uint8)], 0)
    size = tf.cast(end - begin, tf.int64)
    head = tf.cast(block[:4], tf.int32)
    big = tf.reduce_all(head == tf.constant(list(b"MM\0*")))
    little = tf.reduce_all(head == tf.constant(list(b"II*\0")))
    first = _number(block, 4, 4, big) + 2
    listed = _number(block, first - 2, 2, big)
    count = tf.minimum(listed, tf.maximum(size - first, 0) // 12)
    # Beyond the block there are no entries, and reading there would be an error.
    first = tf.where(count > 0, first, 0)
    entries = tf.reshape(block[first : first + 12 * count], [-1, 12])
    pairs = tf.cast(tf.reshape(entries, [-1, 6, 2]), tf.int32)
    numbers = tf.reduce_sum(pairs * tf.where(big, [256, 1], [1, 256]), -1)  # (entries, 6)
    found = tf.boolean_mask(numbers, numbers[:, 0] == ORIENTATION)
    # (tag, type, number of values in two halves, value, unused); a sentinel behind the last.
    entry = tf.concat([found, tf.zeros([1, 6], tf.int32)], 0)[0]
    halves = tf.where(big, entry[2:4], entry[3:1:-1])  # the high half first
    value = entry[4]
    stated = (entry[1] == SHORT) & (halves[0] == 0) & (halves[1] == 1)
    good = (big | little) & stated & (value >= 1) & (value <= 8)
    return tf.where(good, value, 1)


def _in_png(raw: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns first and last place of the first eXIf chunk; equal: none."""
    name = list(b"eXIf")
    letters = [raw[at : tf.size(raw) - 3 + at] == letter for at, letter in enumerate(name)]
    named = tf.reduce_any(letters[0] & letters[1] & letters[2] & letters[3])
    # Walked only if the name stands anywhere: in most files it does not.
    return tf.cond(
        named,
        lambda: _chunk(raw, size, 8, lambda at: (at + 4, at, True), name, 12),
        lambda: (tf.constant(0), tf.constant(0)),
    )


def _in_webp(raw: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    begin, end = _chunk(raw, size, 12, lambda at: (at, at + 4, False), list(b"EXIF"), 8)
    prefixed = tf.reduce_all(raw[begin : begin + 6] == tf.constant(list(b"Exif\0\0"), tf.uint8))
    return tf.where(prefixed & (end - begin >= 6), begin + 6, begin), end


def _chunk(raw, size, start, parts, name, extra) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds a chunk by its name.

    Args:
      raw: uint8, the file and some zeros behind it.
      size: of the file.
      start: place of the first chunk.
      parts: place of a chunk -> places of its name and its length, and whether that is big-endian.
      name: the four bytes.
      extra: number of bytes of a chunk beside its content, of which 8 are before it.
    """

    def step(at, number, begin, end):
        named, lengthed, big = parts(at)
        length = _number(raw, lengthed, 4, tf.constant(big))
        found = tf.reduce_all(raw[named : named + 4] == tf.constant(name, tf.uint8))
        behind = tf.cast(at, tf.int64) + extra + length
        if not big:  # a WebP's chunks begin at even places
            behind += length % 2
        last = tf.cast(at, tf.int64) + 8 + length
        begin = tf.where(found, at + 8, begin)
        end = tf.where(found, tf.cast(tf.minimum(last, tf.cast(size, tf.int64)), tf.int32), end)
        over = found | (behind + 8 > tf.cast(size, tf.int64))
        return tf.where(over, -1, tf.cast(behind % 2**31, tf.int32)), number + 1, begin, end

    first = (tf.constant(start), tf.constant(0), tf.constant(0), tf.constant(0))
    _, _, begin, end = tf.while_loop(
        lambda at, number, *_: (at >= 0) & (at + 8 <= size) & (number < MAX_CHUNKS), step, first
    )
    return tf.minimum(begin, end), end
