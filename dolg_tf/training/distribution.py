"""On which devices and machines a run goes."""

import os

import tensorflow as tf


def make_strategy() -> tf.distribute.Strategy:
    """Returns MultiWorkerMirroredStrategy when TF_CONFIG is set, MirroredStrategy otherwise.

    MirroredStrategy takes every GPU of the machine, or its CPU.
    """
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run directory."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker" and resolver.task_id == 0
    )


def distribute(strategy: tf.distribute.Strategy, make_dataset):
    """Returns a distributed dataset.

    Args:
      strategy: of the run.
      make_dataset: function of (worker, num_workers, replicas) to the worker's dataset, whose
        elements are the batches of its replicas, one after another.
    """

    def of_context(context: tf.distribute.InputContext):
        workers = context.num_input_pipelines
        replicas = context.num_replicas_in_sync // workers
        return make_dataset(context.input_pipeline_id, workers, replicas)

    return strategy.distribute_datasets_from_function(of_context)
