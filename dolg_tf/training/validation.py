"""Evaluation of a run: scores on the validation split, strengths and pictures of the attention."""

import itertools

import numpy as np
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input.pipeline import describe_validation, validation_dataset
from dolg_tf.modeling.dolg import has_local_branch, intermediates
from dolg_tf.stage.config import InputError
from dolg_tf.training.distribution import LOST, distribute
from dolg_tf.training.trainer import Trainer

PICTURES = 4
_STRENGTH_PHOTOS = 256  # of hundreds of cells each


def validate(trainer: Trainer, data: DataConfig) -> dict[str, float]:
    """Returns loss and top-1 accuracy over the validation split, both without margin.

    With losses of local features, also what those are called.
    """
    names = ("loss", "accuracy", *(trainer.local_losses.names if trainer.local_losses else ()))
    total = 0

    def make(*place):
        nonlocal total
        dataset, total = validation_dataset(data, trainer.training.batch_size, *place)
        return dataset

    sums = np.zeros(len(names) + 1)
    try:
        for batch in distribute(trainer.strategy, make):
            sums += trainer.validation_step(batch).numpy()
    except (
        *LOST,
        tf.errors.ResourceExhaustedError,
    ):  # not the records' fault
        raise
    except tf.errors.OpError as error:
        raise describe_validation(error, data) from error
    if not sums[0]:
        raise InputError(f"{data.validation_file_pattern!r}: none of its photos can be read")
    values = dict(zip(names, sums[1:] / sums[0], strict=True))
    if sums[0] < total:
        values["bad_photos"] = total - sums[0]
    return values


def median_strength(trainer: Trainer, data: DataConfig, pieces: tuple) -> float:
    """Returns the median strength of the network's local features.

    A local feature counts from here on, as in DELG's published models, whose thresholds belong to
    their weights. With several replicas, it is the mean of their medians.

    Args:
      trainer: of the run; its network has local features.
      data: the first 256 validation photos are looked at.
      pieces: batches of the latest step, which are looked at if there are no validation photos.

    Returns:
      The strength; 0 if none of the photos can be read.
    """
    batches = pieces
    if data.validation_file_pattern:
        size = trainer.training.batch_size

        def make(*place):
            return validation_dataset(data, size, *place)[0]

        batches = itertools.islice(distribute(trainer.strategy, make), -(-_STRENGTH_PHOTOS // size))
    found = [[part.numpy() for part in trainer.strengths(batch)] for batch in batches]
    replicas = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    medians = [np.median(part) for part in replicas if part.size]  # others had padding alone
    number = trainer.mean(len(medians))
    return trainer.mean(sum(medians)) / number if number else 0.0


def attention_pictures(trainer: Trainer, images) -> np.ndarray | None:
    """Returns photos next to their attention.

    Args:
      trainer: of the run.
      images: float32 RGB in [0, 1], (B, H, W, 3).

    Returns:
      uint8 (B, H, 2 W, 3), white where the photo's attention is largest; None if the network has
      no local branch.
    """
    if not has_local_branch(trainer.network):
        return None
    results = intermediates(trainer.network)(images, training=False)
    attention = tf.cast(results["attention"], tf.float32)
    attention /= tf.reduce_max(attention, axis=(1, 2, 3), keepdims=True) + 1e-9
    shape = tf.shape(images)
    attention = tf.image.resize(attention, shape[1:3], method="nearest")
    pair = tf.concat([images, tf.repeat(attention, 3, axis=3)], axis=2)
    return tf.cast(tf.round(255 * tf.clip_by_value(pair, 0.0, 1.0)), tf.uint8).numpy()
