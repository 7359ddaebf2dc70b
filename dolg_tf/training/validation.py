"""Evaluation of a run: scores on the validation split, and pictures of the attention."""

import numpy as np
import tensorflow as tf

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input.pipeline import describe_validation, validation_dataset
from dolg_tf.modeling import delg
from dolg_tf.modeling.dolg import has_local_branch, intermediates
from dolg_tf.stage.config import InputError
from dolg_tf.training.distribution import LOST, distribute
from dolg_tf.training.trainer import Trainer

PICTURES = 4


def validate(trainer: Trainer, data: DataConfig) -> dict[str, float]:
    """Returns loss and top-1 accuracy over the validation split, both without margin.

    With DELG's local branch, also `delg.NAMES`.
    """
    names = ("loss", "accuracy", *(delg.NAMES if trainer.delg else ()))
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
