"""One record -> one photo as the network takes it, by TensorFlow ops alone."""

from collections.abc import Callable

import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import augment
from dolg_tf.data.records import tfrecord

VALIDATION_CROP = 0.875  # of the shorter side


def labelled_reader(index: tfrecord.RecordIndex, num_classes: int) -> Callable:
    """Returns a function from record number to encoded photo (string) and label (int32)."""
    read_record = index.reader()

    def read(number):
        photo = tfrecord.parse(read_record(number))
        label = photo["label"]
        fault = ["record", number, "has label", label, "and num_classes is", num_classes]
        tf.debugging.Assert((label >= 0) & (label < num_classes), fault)
        return photo["encoded"], tf.cast(label, tf.int32)

    return read


def _window(encoded, choose: Callable) -> tf.Tensor:
    """Returns the window that `choose(height, width)` gives, uint8 (h, w, 3).

    In a JPEG, only the window is decoded.
    """

    def of_jpeg():
        shape = tf.io.extract_jpeg_shape(encoded)
        return images.decode_jpeg_crop(encoded, *tf.unstack(choose(shape[0], shape[1])))

    def of_other():
        image = images.decode(encoded)
        shape = tf.shape(image)
        top, left, height, width = tf.unstack(choose(shape[0], shape[1]))
        return image[top : top + height, left : left + width]

    window = tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_other)
    return tf.ensure_shape(window, (None, None, 3))


def training_photo(encoded, data: DataConfig, draws: augment.Draws) -> tf.Tensor:
    """Returns a training photo, float32 RGB (S, S, 3): cropped, mirrored, resized, lit."""
    window = _window(encoded, lambda *sides: augment.window(*sides, data, draws))
    window = augment.before_resizing(window, data, draws)
    image = images.resize_levels(window, data.image_size, data.image_size)
    image = augment.after_resizing(image, data, draws)
    return tf.ensure_shape(image, (data.image_size, data.image_size, 3))


def validation_photo(encoded, size: int) -> tf.Tensor:
    """Returns the resized centre of a photo, float32 RGB in [0, 1], (size, size, 3)."""
    window = _window(encoded, lambda *sides: augment.centre_window(*sides, VALIDATION_CROP))
    return images.resize(images.to_float(window), size, size)


def skip_bad(load: Callable, size: int) -> Callable:
    """Returns a `load` that gives zeros, label 0 and weight 0 where it would fail.

    Args:
      load: a function from tensors to image (size, size, 3), label and weight.
      size: of the image.
    """

    def nothing(_):
        return tf.zeros((size, size, 3)), tf.constant(0), tf.constant(0.0)

    def load_or_skip(*arguments):
        loaded = tf.data.Dataset.from_tensors(arguments).map(load).ignore_errors()
        return (
            loaded.concatenate(tf.data.Dataset.range(1).map(nothing)).take(1).get_single_element()
        )

    return load_or_skip
