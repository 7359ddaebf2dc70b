"""Training as a command: the step loop, with retrieval as its validation where that is asked."""

import os

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import DolgConfig, HowConfig
from dolg_tf.pipelines.asmk_validation import AsmkValidation
from dolg_tf.pipelines.retrieval_validation import RetrievalValidation
from dolg_tf.training.config import TrainingConfig, check_inputs
from dolg_tf.training.tuples import inputs
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.training.workers.cluster import read_cluster


def train(model: DolgConfig, data: DataConfig, training: TrainingConfig) -> None:
    """Trains a DOLG network on TFRecords and writes a run directory; run it again to continue."""
    # One of several workers fails only when all are connected: else the others wait for it.
    if read_cluster() is None:
        check_inputs(data, training)
    retrieval = RetrievalValidation(training) if training.retrieval_ground_truth else None
    # Batches of photos are large, and without a pool each of them is fresh memory.
    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "1")
    # It takes seconds to import: not for --help, nor for a wrong path.
    from dolg_tf.training import loop

    loop.train(model, data, training, retrieval)


def train_how(model: HowConfig, data: TuplesData, training: TuplesTraining) -> None:
    """Trains a HOW network on photos and writes a run directory; run it again to continue."""
    inputs.check_inputs(data, training)
    retrieval = None
    if training.retrieval_ground_truth and training.validation_words:
        retrieval = AsmkValidation(data, training)
    elif training.retrieval_ground_truth:
        retrieval = RetrievalValidation(training)
    # It takes seconds to import: not for --help, nor for a wrong path.
    from dolg_tf.training.tuples import loop

    loop.train(model, data, training, retrieval)
