"""What is wrong with records, in words: asked only once something went wrong, so it may be slow."""

from collections.abc import Iterable, Iterator

import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError


def image_id(index: tfrecord.RecordIndex, number: int) -> str:
    """Returns the image id of a record; "FILE, record N" when it has none that can be read."""
    try:
        return tfrecord.parse(index.read(number))["id"].numpy().decode(errors="replace")
    except (InputError, tf.errors.InvalidArgumentError):
        return index.where(number)


def _fault(index: tfrecord.RecordIndex, number: int, num_classes: int) -> str | None:
    """Returns what is wrong with a record and where it lies; None when nothing is."""
    where = index.where(number)
    try:
        photo = {key: value.numpy() for key, value in tfrecord.parse(index.read(number)).items()}
    except InputError as error:
        return str(error)
    except tf.errors.InvalidArgumentError as error:
        return f"{where}: no photo in DELG's schema ({error.message[:200]})"
    where = f"{where} (image {photo['id'].decode(errors='replace')})"
    if photo["label"] < 0:
        return f"{where} has no label; training and validation records need one"
    if photo["label"] >= num_classes:
        return f"{where} has label {photo['label']}, but --num_classes={num_classes}"
    try:
        images.decode(photo["encoded"])
    except tf.errors.InvalidArgumentError:
        return f"{where}: the photo cannot be decoded; mend it or build the records again"
    return None


def find_faults(
    index: tfrecord.RecordIndex, numbers: Iterable[int], num_classes: int
) -> Iterator[str]:
    """Yields the fault of each of the records that has one; those behind are not read ahead."""
    found = (_fault(index, number, num_classes) for number in numbers)
    return (fault for fault in found if fault)


def explain(error: Exception, faults: Iterable[str]) -> Exception:
    """Returns an InputError of the first fault; `error` itself when there is none."""
    first = next(iter(faults), None)
    return InputError(f"{first}, or give --skip_bad_records") if first else error
