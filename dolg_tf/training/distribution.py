"""Distribution of a run over devices and machines."""

import collections
import contextlib
import re
import signal
from collections.abc import Iterator

import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
from tensorflow.python.eager import context

from dolg_tf.training.workers.cluster import Cluster, read_cluster
from dolg_tf.training.workers.meeting import meet, unreachable

# Errors of an operation on several workers when one of them is lost.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)

# Seconds without a sign of life after which the others give a worker up. Signs come twice in that
# time, so that a worker may stand still for half of it; of TensorFlow's own 10 s, a virtual machine
# that moves to another host takes more.
SILENCE = 60
_REGISTER = 120  # seconds that TensorFlow may take to connect workers that have all started

# Gradients are summed in packs: one by one, R50's took 1.3 times as long and made a step longer by
# 1.8 times as much (benchmarks/speed/two_workers.py).
_PACK = 4 << 20  # bytes


def make_strategy(worker_timeout: float = 600) -> tf.distribute.Strategy:
    """Returns the strategy of the run.

    MultiWorkerMirroredStrategy if TF_CONFIG is set, MirroredStrategy if this machine has several
    GPUs, otherwise TensorFlow's default with one device.

    Args:
      worker_timeout: seconds to wait for the other workers of TF_CONFIG.

    Raises:
      InputError: if TF_CONFIG does not have the form that TensorFlow expects, or other workers have
        another.
      ConnectionError: naming the workers that have not started by then.
    """
    cluster = read_cluster()
    if cluster is not None:
        meet(cluster, worker_timeout)
        return _connect(cluster)
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _connect(cluster: Cluster) -> tf.distribute.Strategy:
    jobs = collections.Counter(job for job, *_ in cluster.workers)
    context.context().configure_coordination_service(
        "standalone",
        service_leader="/job:{}/replica:0/task:{}".format(*cluster.workers[0][:2]),
        cluster_register_timeout_in_ms=1000 * _REGISTER,
        heartbeat_timeout_in_ms=1000 * SILENCE,
        coordinated_jobs=[CoordinatedJob(name=job, num_tasks=n) for job, n in jobs.items()],
    )
    # Without it, a worker that is connected waits for the others without that limit.
    context.context().coordination_service.cluster_register_with_barrier = True
    # TensorFlow blocks other threads while it waits, and Python's handling of signals as well.
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=_PACK)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"{_lost(cluster, error.message)}, since all had started "
            f"({error.message.splitlines()[0].partition('. ')[0]}); start all workers again"
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
        found = re.search(r".*aborted by: (.*)", error.message)
        reason = found[1] if found else type(error).__name__
        if "stopped sending heartbeats" in reason:
            reason = f"no sign of life for {SILENCE} s"
        raise ConnectionError(
            f"{_lost(read_cluster(), error.message)} ({reason}); start all workers again, and they "
            "continue from the last checkpoint"
        ) from error


def _lost(cluster: Cluster, message: str) -> str:
    """Returns which workers are gone, as one can see from here."""
    silent = set(re.findall(r"^/job:(\w+)/replica:0/task:(\d+)$", message, re.MULTILINE))
    gone = [
        worker
        for worker, (job, index, _) in enumerate(cluster.workers)
        if (job, str(index)) in silent
    ]
    if gone == [cluster.own]:
        return f"the others gave up this worker, {cluster.name(cluster.own)}"
    gone = {*gone, *unreachable(cluster)} - {cluster.own}
    if not gone:
        return "another worker is gone"
    if len(gone) == len(cluster.others) > 1:
        return f"no other worker can be reached: {cluster.names(sorted(gone))}"
    return f"another worker is gone: {cluster.names(sorted(gone))}"


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
