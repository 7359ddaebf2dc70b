"""Trains a DOLG network: `python train.py --flagfile=configs/r50.flags`."""

import os

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.stage import config
from dolg_tf.training.config import TrainingConfig


def train(model, data, training):
    """Trains a DOLG network on TFRecords and writes a run directory; run it again to continue."""
    # Batches of photos are large, and without a pool each of them is fresh memory.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    # Both take seconds to import: not for --help.
    from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
    from dolg_tf.training.loop import train

    retrieval = RetrievalValidation(training) if training.retrieval_ground_truth else None
    train(model, data, training, retrieval)


if __name__ == "__main__":
    config.main(train, DolgConfig, DataConfig, TrainingConfig)
