"""The walk of `jpeg_header` in graph ops: JPEGs of too many scans, and where the EXIF block is."""

import tensorflow as tf

from dolg_tf.data.formats.jpeg_header import END, EXIF, MAX_SCANS, MAX_SEGMENTS, SCAN


class Segments:
    """The markers of a JPEG.

    Args:
      data: scalar string, a JPEG or anything else.
    """

    def __init__(self, data: tf.Tensor):
        self.size = tf.strings.length(data)
        self.bytes = tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros([16], tf.uint8)], 0)
        first, second = self.bytes[:-1], self.bytes[1:]
        self._begins = first == 255
        self._codes = second
        self._any = self._begins & (second > 0) & (second < 255)

    def many_scans(self) -> tf.Tensor:
        """Returns whether there are more than `MAX_SCANS` scans or `MAX_SEGMENTS` segments."""
        # Counted plainly, previews and remarks can only add to the scans: most photos end here.
        scans = tf.math.count_nonzero(self._begins & (self._codes == SCAN))
        perhaps = (scans > MAX_SCANS) | (tf.math.count_nonzero(self._any) > MAX_SEGMENTS)
        return tf.cond(perhaps, self._walk_has_many, lambda: tf.constant(False))

    def exif(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns first and last place of the EXIF block before the first scan; equal: none."""
        markers = self._places(self._any)

        def step(at, number, begin, end):
            place = _next(markers, at)
            code, behind = self._code(place), self._behind(place)
            here = (code == EXIF) & self._says(place + 4, b"Exif\0\0") & (place + 10 <= behind)
            begin = tf.where(here, place + 10, begin)
            end = tf.where(here, tf.minimum(behind, self.size), end)
            over = here | (code == END) | (code == SCAN) | (place >= self.size)
            return tf.where(over, -1, behind), number + 1, begin, end

        start = (tf.constant(2), tf.constant(0), tf.constant(0), tf.constant(0))
        _, _, begin, end = tf.while_loop(
            lambda at, number, *_: (at >= 0) & (number <= MAX_SEGMENTS), step, start
        )
        return begin, end

    def _walk_has_many(self) -> tf.Tensor:
        in_scan = (self._codes >= 0xD0) & (self._codes <= 0xD7)
        markers, after_scan = self._places(self._any), self._places(self._any & ~in_scan)

        def step(at, scanned, scans, number):
            place = tf.where(scanned, _next(after_scan, at), _next(markers, at))
            code = self._code(place)
            over = (code == END) | (place >= self.size)
            scan = code == SCAN
            scans += tf.cast(scan, tf.int32)
            return tf.where(over, -1, self._behind(place)), scan, scans, number + 1

        start = (tf.constant(2), tf.constant(False), tf.constant(0), tf.constant(0))
        at, _, scans, _ = tf.while_loop(
            lambda at, scanned, scans, number: (
                (at >= 0) & (scans <= MAX_SCANS) & (number <= MAX_SEGMENTS)
            ),
            step,
            start,
        )
        return (at >= 0) | (scans > MAX_SCANS)

    def _places(self, where: tf.Tensor) -> tf.Tensor:
        """Returns the places of markers, ascending, int32, with the end after them."""
        places = tf.cast(tf.where(where)[:, 0], tf.int32)
        return tf.concat([places, self.size[None]], 0)

    def _code(self, place: tf.Tensor) -> tf.Tensor:
        return tf.cast(self.bytes[place + 1], tf.int32)

    def _behind(self, place: tf.Tensor) -> tf.Tensor:
        """Returns the place behind the segment that a marker begins, at most one behind the end."""
        code = self._code(place)
        alone = (code == 1) | ((code >= 0xD0) & (code <= 0xD7))
        size = tf.cast(self.bytes[place + 2], tf.int32) * 256
        size += tf.cast(self.bytes[place + 3], tf.int32)
        return tf.minimum(place + 2 + tf.where(alone, 0, tf.maximum(size, 2)), self.size + 1)

    def _says(self, place: tf.Tensor, text: bytes) -> tf.Tensor:
        found = tf.gather(self.bytes, tf.minimum(place + tf.range(len(text)), self.size))
        return tf.reduce_all(found == tf.constant(list(text), tf.uint8))


def _next(places: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Returns the first of ascending places that is not before `at`; the last if all are."""
    found = tf.searchsorted(places, at[None])[0]
    return places[tf.minimum(found, tf.size(places) - 1)]
