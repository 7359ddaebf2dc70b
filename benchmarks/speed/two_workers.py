"""The cost of synchronising two workers on one machine, apart from that of sharing the machine.

    python benchmarks/speed/two_workers.py

Four processes, each pinned to one of two cores, take turns, step by step. One runs alone while the
other core rests. Two independent ones show what it costs to share caches and memory. Two workers of
MultiWorkerMirroredStrategy take longer than these by the synchronisation. Beside them stands the
sum of the gradients alone, without a step around it, and its floor: as many bytes through a socket
of this machine, in both directions at once.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from timing import print_columns

# Title: position among the cases of `train_step.py`.
CASES = {"R50, 81,313 classes, 4 x 256 px": 0, "quickstart, 16 x 96 px": 1}
WORKERS = 2


# --- in its own process -----------------------------------------------------------------------


def serve(core: int, case: int) -> None:
    """Reads "step N" and "sum N" from standard input; prints clock and CPU time of each call."""
    os.sched_setaffinity(0, {core})
    import tensorflow as tf
    from train_step import cases, made_up_batch

    from dolg_tf.training.distribution import make_strategy
    from dolg_tf.training.trainer import Trainer

    strategy = make_strategy()
    model, training, classes, side = list(cases(["4x256:float32"], ema=False).values())[case]
    batch = training.batch_size
    training = dataclasses.replace(training, batch_size=batch * strategy.num_replicas_in_sync)
    trainer = Trainer(model, training, classes, 1000, strategy)
    piece = made_up_batch(trainer, batch, side, seed=core)
    gradients = [tf.random.normal(variable.shape) for variable in trainer.variables]

    @tf.function
    def add():
        def replica():
            context = tf.distribute.get_replica_context()
            # One number of each gradient, or the graph would be pruned.
            sums = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            return tf.add_n([tf.reshape(gradient, [-1])[0] for gradient in sums])

        return strategy.run(replica)

    calls = {"step": lambda: trainer.train_step((piece,)).numpy(), "sum": lambda: add().numpy()}
    print(sum(4 * int(np.prod(variable.shape)) for variable in trainer.variables), flush=True)
    for line in sys.stdin:
        what, number = line.split()
        spent = []
        for _ in range(int(number)):
            clock, cpu = time.perf_counter(), time.process_time()
            calls[what]()
            spent.append((time.perf_counter() - clock, time.process_time() - cpu))
        print(json.dumps(spent), flush=True)


class Process:
    """A process on one core; it answers with the bytes of its gradients, then works when told."""

    def __init__(self, core: int, case: int, cluster: dict | None):
        environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
        if cluster:
            environment["TF_CONFIG"] = json.dumps(cluster)
        command = [sys.executable, str(pathlib.Path(__file__)), "--serve", str(core), str(case)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, what: str, number: int) -> None:
        self._process.stdin.write(f"{what} {number}\n")
        self._process.stdin.flush()

    def answer(self):
        """Waits for the next line of output and returns its value.

        Raises:
          RuntimeError: when the process has ended instead.
        """
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process ended with exit code {self._process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


# --- all of them ------------------------------------------------------------------------------


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def exchange(size: int) -> float:
    """Returns the seconds that two threads take to send one another `size` bytes."""
    data, ends = bytes(size), socket.socketpair()

    def receive(end):
        place, left = bytearray(1 << 20), size
        while left:
            left -= end.recv_into(place, min(left, len(place)))

    work = [threading.Thread(target=end.sendall, args=(data,)) for end in ends]
    work += [threading.Thread(target=receive, args=(end,)) for end in ends]
    start = time.perf_counter()
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    return time.perf_counter() - start


def work(processes: list[Process], what: str, number: int) -> np.ndarray:
    """Returns clock and CPU time of `number` calls in parallel, (processes, number, 2)."""
    for process in processes:
        process.tell(what, number)
    return np.array([process.answer() for process in processes])


def measure(case: int, rounds: int, steps: int) -> dict[str, str]:
    """Returns the cells of a case, by row."""
    workers = [f"localhost:{port}" for port in free_ports(WORKERS)]
    clusters = [
        {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        for index in range(WORKERS)
    ]
    cores = sorted(os.sched_getaffinity(0))[:WORKERS]
    apart = [Process(core, case, None) for core in cores]
    joined = [Process(core, case, each) for core, each in zip(cores, clusters, strict=True)]
    try:
        size, *_ = [process.answer() for process in [*apart, *joined]]
        turns = {
            "one alone": (apart[:1], "step"),
            "two, apart": (apart, "step"),
            "two workers": (joined, "step"),
            "sum of gradients": (joined, "sum"),
        }
        found = {name: [] for name in turns}
        wires = []
        for turn in range(rounds + 1):  # the first one to warm up
            for name, (processes, what) in turns.items():
                spent = work(processes, what, steps)
                if turn:
                    found[name].append(spent.mean(axis=0))
            wires.append(exchange(size))
    finally:
        for process in [*apart, *joined]:
            process.end()
    clock, cpu = {}, {}
    for name, spent in found.items():
        clock[name], cpu[name] = np.median(np.concatenate(spent), axis=0)
    gained = clock["two workers"] - clock["two, apart"]
    cells = {}
    for name in clock:
        cells[name] = f"{1e3 * clock[name]:.0f}"
        cells[f"{name}, CPU time"] = f"{1e3 * cpu[name]:.0f}"
    return cells | {
        "sharing the machine": f"{clock['two, apart'] / clock['one alone'] - 1:+.1%}",
        "synchronisation": f"{1e3 * gained:.0f}",
        "synchronisation, share of a step": f"{gained / clock['two, apart']:+.1%}",
        "bytes of gradients, MB": f"{size / 1e6:.1f}",
        "as many through a socket": f"{1e3 * np.median(wires):.0f}",
        "photos per second, two workers over one alone": (
            f"{WORKERS * clock['one alone'] / clock['two workers']:.2f}"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each, after one to warm up")
    parser.add_argument("--steps", type=int, default=3, help="steps per turn")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)  # core, case
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    if len(os.sched_getaffinity(0)) < WORKERS:
        parser.error(f"each of {WORKERS} workers needs its own core; this process has only one")
    columns = {
        title: measure(case, arguments.rounds, arguments.steps) for title, case in CASES.items()
    }
    print_columns("ms per step", columns)


if __name__ == "__main__":
    main()
