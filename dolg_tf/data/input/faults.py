"""Faults of records, in words. Used only after something went wrong, so it may be slow."""

from collections.abc import Iterable, Iterator

import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.data.records import foreign, tfrecord
from dolg_tf.stage.config import InputError

_SOME = 64  # records that are read to see whether any is sound


def image_id(index: tfrecord.RecordIndex, number: int) -> str:
    """Returns the image id of a record, or "FILE, record N" if that cannot be read."""
    try:
        return tfrecord.parse(index.read(number))["id"].numpy().decode(errors="replace")
    except (InputError, tf.errors.InvalidArgumentError):
        return index.where(number)


def _fault(index: tfrecord.RecordIndex, number: int, num_classes: int) -> str | None:
    """Returns the fault of a record and where it lies, or None."""
    where = index.where(number)
    try:
        record = index.read(number)
    except InputError as error:
        return str(error)
    try:
        photo = {key: value.numpy() for key, value in tfrecord.parse(record).items()}
    except tf.errors.InvalidArgumentError:
        reason = foreign.schema_fault(record)
        return f"{where}: {reason or 'not a tf.train.Example of a photo; write it again'}"
    where = f"{where} (image {photo['id'].decode(errors='replace')})"
    if photo["label"] < 0:
        return f"{where} has no label; training and validation records need one"
    if photo["label"] >= num_classes:
        return f"{where} has label {photo['label']}, but --num_classes={num_classes}"
    try:
        images.decode(photo["encoded"])
    except tf.errors.InvalidArgumentError:
        return f"{where}: the photo cannot be decoded; repair it or build the records again"
    return None


def find_faults(
    index: tfrecord.RecordIndex, numbers: Iterable[int], num_classes: int
) -> Iterator[str]:
    """Yields the fault of each record that has one; records are read one at a time."""
    found = (_fault(index, number, num_classes) for number in numbers)
    return (fault for fault in found if fault)


def explain(
    error: Exception, index: tfrecord.RecordIndex, numbers: Iterable[int], num_classes: int
) -> Exception:
    """Returns an InputError of the first fault, or `error` itself without one.

    Skipping is proposed only where it leaves records: one of the first ones is sound.
    """
    first = next(find_faults(index, numbers, num_classes), None)
    if first is None:
        return error
    some = range(min(len(index), _SOME))
    if all(_fault(index, number, num_classes) for number in some):
        return InputError(f"{first} (the first {len(some)} records are all at fault)")
    return InputError(f"{first}, or give --skip_bad_records")
