"""Before TensorFlow connects the workers: each sees that all others have started.

TensorFlow's own wait says nothing until it ends, cannot be interrupted, and does not notice two
machines with the same index. Here each worker listens on its own address of TF_CONFIG and calls all
others, and each tells the other who it is. A worker goes on when it has called, and has been called
by, everybody; then TensorFlow takes the same port over.
"""

import concurrent.futures
import json
import logging
import os
import socket
import threading
import time

from dolg_tf.stage.config import InputError
from dolg_tf.training.workers.cluster import Cluster

log = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds between two calls of a worker
_ANSWER = 5.0  # seconds that a call may take
_REMIND = 30.0  # seconds between two lines of the log
_LONGEST = 1 << 20  # bytes of what a worker says of itself


class _Meeting:
    """What this worker knows of the others.

    Args:
      cluster: of the run.
    """

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        workers = [list(worker) for worker in cluster.workers]
        self._words = json.dumps({"workers": workers, "own": cluster.own}).encode() + b"\n"
        self._changed = threading.Condition()
        self._called_us, self._answered = set(), set()
        self._why = dict.fromkeys(cluster.others, "not called yet")
        self._fault, self.over = "", False

    def wait(self, seconds: float) -> bool:
        """Waits so long at most, and returns whether everybody is here.

        Raises:
          InputError: if another worker contradicts TF_CONFIG.
        """
        others = set(self.cluster.others)

        def done():
            return self._fault or others <= self._called_us & self._answered

        with self._changed:
            complete = self._changed.wait_for(done, seconds)
            if self._fault:
                raise InputError(self._fault)
        return bool(complete)

    def missing(self, seconds: float) -> str:
        """Returns who is not here after so long, and why as far as this worker can tell."""
        found = []
        for worker in self.cluster.others:
            name = self.cluster.name(worker)
            if worker not in self._answered:
                found.append(f"{name} has not answered for {seconds:.0f} s ({self._why[worker]})")
            elif worker not in self._called_us:
                found.append(
                    f"{name} answers, but cannot reach {self.cluster.name(self.cluster.own)}"
                )
        return "; ".join(found)

    def listen(self, listener: socket.socket) -> None:
        """Answers calls until the listener is closed."""
        while not self.over:
            try:
                call, (host, *_) = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(call, host), daemon=True).start()

    def _answer(self, call: socket.socket, host: str) -> None:
        try:
            with call:
                call.settimeout(_ANSWER)
                call.sendall(self._words)
                caller = self._read(call, host, None)
        except (OSError, ValueError):  # a port scanner, or one that gave up
            return
        if caller is not None:
            with self._changed:
                self._called_us.add(caller)
                self._changed.notify_all()

    def call(self, worker: int) -> None:
        """Calls a worker until it answers."""
        address = self.cluster.address(worker)
        while not self.over:
            try:
                with socket.create_connection(address, _ANSWER) as call:
                    call.sendall(self._words)
                    self._read(call, self.cluster.workers[worker][2], worker)
                answered, why = True, ""
            except ValueError:
                # TensorFlow has taken the port over, if that worker has called us before.
                answered, why = worker in self._called_us, "another program has this port"
            except OSError as error:
                answered, why = False, (error.strerror or str(error) or "no answer").lower()
            with self._changed:
                self._why[worker] = why
                if answered:
                    self._answered.add(worker)
                    self._changed.notify_all()
                    return
            time.sleep(_PAUSE)

    def _read(self, call: socket.socket, address: str, expected: int | None) -> int | None:
        """Returns who is at the other end, and notes it if that contradicts TF_CONFIG.

        Raises:
          ValueError: if it is no worker of ours.
        """
        with call.makefile("rb") as file:
            said = file.readline(_LONGEST)
        try:
            said = json.loads(said)
            workers, own = tuple((job, i, place) for job, i, place in said["workers"]), said["own"]
            job, index, _ = workers[own]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("not a worker's words") from error
        fault = ""
        if workers != self.cluster.workers:
            fault = (
                f"the worker at {address} has other workers in its TF_CONFIG "
                f"({', '.join(address for *_, address in workers)}) than this one "
                f"({', '.join(address for *_, address in self.cluster.workers)}); give all the "
                "same cluster"
            )
        elif own == self.cluster.own or expected not in (None, own):
            fault = (
                f"the worker at {address} says that it is {job} {index}, as does its TF_CONFIG; "
                "give each worker its own task.index, in the order of the addresses"
            )
        if fault:
            with self._changed:
                self._fault = fault
                self._changed.notify_all()
            return None
        return own


def meet(cluster: Cluster, timeout: float) -> None:
    """Waits until all workers have started.

    Args:
      cluster: the workers.
      timeout: seconds to wait for the others.

    Raises:
      ConnectionError: naming those that have not answered by then.
      InputError: if two workers contradict each other, or this one's port is taken.
    """
    if not cluster.others:
        return
    start = time.monotonic()
    meeting = _Meeting(cluster)
    log.info("this is %s; waiting for %s", cluster.name(cluster.own), cluster.names(cluster.others))
    with _listener(cluster) as listener:
        threading.Thread(target=meeting.listen, args=(listener,), daemon=True).start()
        for worker in cluster.others:
            threading.Thread(target=meeting.call, args=(worker,), daemon=True).start()
        try:
            while not meeting.wait(min(_REMIND, max(0.0, start + timeout - time.monotonic()))):
                waited = time.monotonic() - start
                if waited >= timeout:
                    raise ConnectionError(
                        f"{meeting.missing(waited)}; start all workers of TF_CONFIG, on the hosts "
                        f"and ports given there, within --worker_timeout={timeout:g} seconds"
                    )
                log.warning("waiting: %s", meeting.missing(waited))
        except InputError:
            time.sleep(4 * _PAUSE)  # so that the others call once more, and hear of it too
            raise
        finally:
            meeting.over = True
            listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
    log.info("all %d workers have started", len(cluster.workers))


def _listener(cluster: Cluster) -> socket.socket:
    _, port = cluster.address(cluster.own)
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=both, backlog=128)
    except OSError as error:
        raise InputError(
            f"TF_CONFIG: port {port} of this machine, of {cluster.name(cluster.own)}, cannot be "
            f"used ({os.strerror(error.errno).lower()}); end the process that has it, or give "
            "another port"
        ) from error


def unreachable(cluster: Cluster) -> list[int]:
    """Returns the positions of the workers whose machine or process does not answer now."""
    with concurrent.futures.ThreadPoolExecutor(len(cluster.others)) as pool:
        answers = pool.map(lambda worker: _answers(cluster.address(worker)), cluster.others)
        return [
            worker for worker, answer in zip(cluster.others, answers, strict=True) if not answer
        ]


def _answers(address: tuple[str, int]) -> bool:
    try:
        with socket.create_connection(address, _ANSWER):
            return True
    except OSError:
        return False
