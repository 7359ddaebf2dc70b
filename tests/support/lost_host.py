"""Measures how soon workers on other hosts notice that one is lost: the table in docs/training.md.

`python tests/support/lost_host.py` as root, from the root of a checkout; it takes some minutes.
"""

import pathlib
import signal
import sys
import tempfile
import time

import hosts
import tiny
from processes import Process, tf_config


def _measure(folder, number, lose):
    """Prints how long the others take to say what `lose(network, workers)` did, and to end."""
    data = tiny.write_records(folder)
    training = tiny.recipe(folder / "run", batch_size=12, epochs=10000, validate_every=10**6)
    with hosts.Network(number) as network:
        addresses = [f"{address}:2222" for address in network.addresses]
        workers = [
            Process(data, training, tf_config(addresses, i), launcher=network.on(i))
            for i in range(number)
        ]
        for worker in workers:
            worker.wait_for("step 8/")
        start = time.monotonic()
        lost = lose(network, workers)
        for i, worker in enumerate(workers):
            if i != lost:
                error = worker.error(200)
                said = next(at for at, line in worker.lines if line == error)
                ended = time.monotonic() - start
                print(
                    f"  worker {i}: said after {said - start:.1f} s: {error}; ended {ended:.1f} s"
                )
        workers[lost].signal(signal.SIGKILL)


def _kill(worker):
    def lose(_, workers):
        workers[worker].signal(signal.SIGKILL)
        return worker

    return lose


def _cut(worker):
    def lose(network, _):
        network.plug(worker, False)
        return worker

    return lose


def _pause(worker):
    def lose(_, workers):
        workers[worker].signal(signal.SIGSTOP)
        return worker

    return lose


def main():
    for what, number, lose in (
        ("a worker's process is killed", 3, _kill(1)),
        ("the first worker's process is killed", 3, _kill(0)),
        ("a host is cut off", 3, _cut(1)),
        ("the first host is cut off", 3, _cut(0)),
        ("a worker stands still", 2, _pause(1)),
    ):
        print(what, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            _measure(pathlib.Path(folder), number, lose)


if __name__ == "__main__":
    sys.exit(hosts.why_not() or main())
