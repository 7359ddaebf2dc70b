"""TF_CONFIG: the workers of a run and which of them this process is.

No TensorFlow here, so that a mistake is told at once.
"""

import dataclasses
import json
import os
from collections.abc import Iterable

from dolg_tf.stage.config import InputError

_JOBS = ("chief", "worker")
_LIKE = '{"cluster": {"worker": ["a:5000", "b:5000"]}, "task": {"type": "worker", "index": 0}}'


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      workers: (job, index in the job, "host:port") of each, the chief first.
      own: position of this process in `workers`.
    """

    workers: tuple[tuple[str, int, str], ...]
    own: int

    @property
    def others(self) -> list[int]:
        """Positions of all other workers."""
        return [i for i in range(len(self.workers)) if i != self.own]

    def address(self, worker: int) -> tuple[str, int]:
        """Returns host and port of a worker, by its position."""
        host, _, port = self.workers[worker][2].rpartition(":")
        return host.strip("[]"), int(port)

    def name(self, worker: int) -> str:
        """Returns "worker 1 at b:5000" of a worker, by its position."""
        job, index, address = self.workers[worker]
        return f"{job} {index} at {address}"

    def names(self, workers: Iterable[int]) -> str:
        """Returns the names of some workers in one line."""
        return " and ".join(self.name(worker) for worker in workers)


def read_cluster() -> Cluster | None:
    """Returns what TF_CONFIG says; None: it is not set, and the run has one process.

    Raises:
      InputError: if it does not have the form that TensorFlow expects, or contradicts itself.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return None
    try:
        values = json.loads(text)
        jobs, job, index = values["cluster"], values["task"]["type"], values["task"]["index"]
        index = int(index)
        jobs = {name: jobs[name] for name in sorted(jobs) if jobs[name]}
        workers = [(name, i, a) for name, tasks in jobs.items() for i, a in enumerate(tasks)]
        if not all(isinstance(tasks, list) for tasks in jobs.values()):
            raise TypeError("not a list of addresses")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"TF_CONFIG={text!r} is not like {_LIKE}") from error
    if others := set(jobs) - set(_JOBS):
        raise InputError(
            f"TF_CONFIG: the cluster has {', '.join(sorted(others))}; training knows only "
            "`worker`, and `chief` if you like"
        )
    if len(jobs.get("chief", [])) > 1:
        raise InputError(
            f"TF_CONFIG: {len(jobs['chief'])} chiefs; list one, the others as `worker`"
        )
    seen = {}
    for name, i, address in workers:
        _check_address(address)
        if address in seen:
            raise InputError(
                f"TF_CONFIG: {seen[address]} and {name} {i} have one address, {address}; give each "
                "its own host or port"
            )
        seen[address] = f"{name} {i}"
    places = [(name, i) for name, i, _ in workers]
    if (job, index) not in places:
        raise InputError(
            f"TF_CONFIG: this process is {job} {index}, and the cluster has "
            f"{', '.join(f'{name} {i}' for name, i in places) or 'nobody'}; set task.type and "
            "task.index to the place of this machine in that list, counted from 0"
        )
    return Cluster(tuple(workers), places.index((job, index)))


def _check_address(address: object) -> None:
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if (
        not host
        or "/" in host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise InputError(f"TF_CONFIG: {address!r} is not a host and a port, such as 10.0.0.2:5000")
