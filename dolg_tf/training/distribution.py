"""Distribution of a run over devices and machines."""

import contextlib
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator

import tensorflow as tf

from dolg_tf.stage.config import InputError
from dolg_tf.stage.progress import format_seconds

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

# Schedulers start the machines of a run minutes apart. TensorFlow itself waits for an hour, and
# does not say for whom.
_WAIT, _SAY = 600.0, 30.0  # seconds for all workers, and between lines that name the missing
_TRY, _PAUSE = 2.0, 0.5  # seconds for a connection, and between rounds


def make_strategy() -> tf.distribute.Strategy:
    """Returns the strategy of the run.

    MultiWorkerMirroredStrategy if TF_CONFIG is set, MirroredStrategy if this machine has several
    GPUs, otherwise TensorFlow's default with one device.

    Raises:
      InputError: if TF_CONFIG does not have the form that TensorFlow expects.
      ConnectionError: naming the workers that cannot be reached within ten minutes.
    """
    if os.environ.get("TF_CONFIG"):
        try:
            values = json.loads(os.environ["TF_CONFIG"])
            workers = values["cluster"]["worker"] + values["cluster"].get("chief", [])
            own = values["cluster"][values["task"]["type"]][values["task"]["index"]]
            ports = [int(address.rpartition(":")[2]) for address in workers]
            if len(set(workers)) < len(workers) or not all(0 < port < 65536 for port in ports):
                raise ValueError(workers)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise InputError(
                f"TF_CONFIG={os.environ['TF_CONFIG']!r} is not like "
                '{"cluster": {"worker": ["host:port"]}, "task": {"type": "worker", "index": 0}}, '
                "with another address for each worker, and its own index"
            ) from error
        return _meet(workers, own)
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def wait_for(workers: list[str], own: str, seconds: float = _WAIT) -> None:
    """Waits until every other worker has answered at its address, and answers them meanwhile.

    TensorFlow's server takes over the port; until it does, a worker that is not through yet tries
    again.

    Args:
      workers: "host:port" of all.
      own: of this one.
      seconds: to wait at most.

    Raises:
      InputError: if the own port is taken.
      ConnectionError: naming those that have not answered.
    """
    missing = [address for address in workers if address != own]
    port, end, said = int(own.rpartition(":")[2]), time.monotonic() + seconds, time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(_listener(port))
        except OSError as error:
            raise InputError(
                f"TF_CONFIG: port {port} of {own} cannot be used ({error.strerror}); end what uses "
                "it, or choose another"
            ) from error
        # Without it, the thread would hold the port.
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        while missing := [address for address in missing if not _answers(address)]:
            if time.monotonic() >= end:
                raise ConnectionError(
                    f"no answer from {', '.join(missing)} of TF_CONFIG for "
                    f"{format_seconds(seconds)}; start all workers, on the hosts and ports given "
                    "there, which must reach each other"
                )
            if time.monotonic() >= said + _SAY:
                log.info("still waiting for %s", ", ".join(missing))
                said = time.monotonic()
            time.sleep(_PAUSE)


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _answer(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it was shut down
        while True:
            listener.accept()[0].close()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TRY).close()
    except OSError:
        return False
    return True


def _meet(workers: list[str], own: str) -> tf.distribute.Strategy:
    # TensorFlow blocks other threads while it waits, and Python's handling of signals as well.
    log.info("waiting for all workers of TF_CONFIG: %s", ", ".join(workers))
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        wait_for(workers, own)
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
