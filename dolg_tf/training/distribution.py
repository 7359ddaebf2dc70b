"""Distribution of a run over devices and machines."""

import contextlib
import json
import logging
import os
import re
import signal
from collections.abc import Iterator

import tensorflow as tf

from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

# Errors of an operation on several workers when one of them is lost.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)

# Gradients are summed in packs: one by one, R50's took 1.3 times as long and made a step longer by
# 1.8 times as much (benchmarks/speed/two_workers.py).
_PACK = 4 << 20  # bytes


def make_strategy() -> tf.distribute.Strategy:
    """Returns the strategy of the run.

    MultiWorkerMirroredStrategy if TF_CONFIG is set, MirroredStrategy if this machine has several
    GPUs, otherwise TensorFlow's default with one device.

    Raises:
      InputError: if TF_CONFIG does not have the form that TensorFlow expects.
      ConnectionError: if the other workers do not connect within TensorFlow's hour.
    """
    if os.environ.get("TF_CONFIG"):
        try:
            values = json.loads(os.environ["TF_CONFIG"])
            workers = values["cluster"]["worker"] + values["cluster"].get("chief", [])
            values["task"]["type"], values["task"]["index"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"TF_CONFIG={os.environ['TF_CONFIG']!r} is not like "
                '{"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}'
            ) from error
        return _meet(workers)
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _meet(workers: list[str]) -> tf.distribute.Strategy:
    # One message, before the wait: TensorFlow blocks other threads while it waits, and Python's
    # handling of signals as well.
    log.info("waiting for all workers of TF_CONFIG: %s", ", ".join(workers))
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_PACK)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"the workers of TF_CONFIG did not connect ({error.message.splitlines()[0]}); start "
            "all of them, on the hosts and ports given there"
        ) from error
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run directory."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    return resolver.task_type == "chief" or (
        resolver.task_type == "worker"
        and resolver.task_id == 0
        and "chief" not in resolver.cluster_spec().as_dict()
    )


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Returns the number of processes that train together."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return 1
    jobs = resolver.cluster_spec().as_dict()
    return len(jobs.get("worker", [])) + len(jobs.get("chief", []))


@contextlib.contextmanager
def naming_a_lost_worker(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns TensorFlow's errors of a broken connection into one readable error.

    Raises:
      ConnectionError: if one of several workers is lost.
    """
    try:
        yield
    except LOST as error:
        if num_workers(strategy) == 1:
            raise
        found = re.search(r"aborted by: (.*)", error.message)
        reason = found[1] if found else type(error).__name__
        raise ConnectionError(
            f"another worker is gone ({reason}); start all workers again, and they continue from "
            "the last checkpoint"
        ) from error


def distribute(strategy: tf.distribute.Strategy, make_dataset):
    """Returns a distributed dataset.

    Args:
      strategy: of the run.
      make_dataset: function of (worker, num_workers, replicas) to the worker's dataset, whose
        elements are the batches of its replicas, in turn.
    """

    def of_context(context: tf.distribute.InputContext):
        workers = context.num_input_pipelines
        replicas = context.num_replicas_in_sync // workers
        return make_dataset(context.input_pipeline_id, workers, replicas)

    return strategy.distribute_datasets_from_function(of_context)
