"""Training as a command: the step loop, with retrieval as its validation where that is asked."""

import os
import pathlib

from dolg_tf.data.config import DataConfig
from dolg_tf.data.records import classes, tfrecord
from dolg_tf.modeling.config import DolgConfig
from dolg_tf.modeling.config_file import find_network, has_begun
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.weights import published


def train(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> None:
    """Trains a DOLG network on TFRecords and writes a run directory; run it again to continue."""
    # One of several workers fails only when all are connected: else the others wait for it.
    if "TF_CONFIG" not in os.environ:
        _check_inputs(data, training)
    retrieval = RetrievalValidation(training) if training.retrieval_ground_truth else None
    # Batches of photos are large, and without a pool each of them is fresh memory.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    # It takes seconds to import: not for --help, nor for a wrong path.
    from dolg_tf.training import loop

    loop.train(model, data, training, retrieval)


def _check_inputs(data: DataConfig, training: TrainingConfig) -> None:
    """Looks for records and weights, as far as that can be done at once."""
    if pathlib.Path(training.logdir).is_file():
        raise InputError(f"--logdir={training.logdir} is a file; give a folder, or a new name")
    classes.with_classes(data)
    for pattern in filter(None, (data.train_file_pattern, data.validation_file_pattern)):
        tfrecord.check_files(pattern, data.skip_bad_records)
    if has_begun(training.logdir):
        return
    if training.init_from:
        find_network(training.init_from)
    elif training.backbone_weights != published.NONE:
        published.find_file(training.backbone_weights)
