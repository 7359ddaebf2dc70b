"""train.py in separate processes, which a test may kill."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

from tiny import MODEL

from dolg_tf.stage.config import to_flagfile

_ROOT = pathlib.Path(__file__).parents[2]
_PATIENCE = 900  # seconds until a process reaches a line or its end; machines may be busy


class Process:
    """A running train.py.

    Args:
      data, training: the recipe.
      environment: variables in addition to this process's own.
      prefix: arguments of Python before the flags.
      model: of the recipe.
      launcher: words before those of Python, such as those that choose a host.
    """

    def __init__(
        self, data, training, environment=None, prefix=("train.py",), model=MODEL, launcher=()
    ):
        self.lines = []
        self._process = subprocess.Popen(
            [*launcher, sys.executable, *prefix, *to_flagfile(model, data, training).splitlines()],
            cwd=_ROOT,
            env={**os.environ, **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with self._process.stderr as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def log(self):
        return "\n".join(line for _, line in self.lines)

    def wait_for(self, start):
        """Waits for a line that starts with `start`."""
        limit = time.monotonic() + _PATIENCE
        while not any(line.startswith(start) for _, line in self.lines):
            assert self._process.poll() is None, f"ended before {start!r}:\n{self.log}"
            assert time.monotonic() < limit, f"no {start!r} in {_PATIENCE} s:\n{self.log}"
            time.sleep(0.005)

    def signal(self, number):
        self._process.send_signal(number)

    def end(self, code, patience=_PATIENCE):
        """Waits for the end, with exit code `code`, and returns the log."""
        try:
            found = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"no end in {patience} s:\n{self.log}") from None
        self._reader.join()
        assert found == code, f"exit code {found}, not {code}:\n{self.log}"
        return self.log

    def error(self, patience=_PATIENCE):
        """Waits for the end, with exit code 1 and one line of error, and returns the line."""
        log = self.end(1, patience)
        assert "Traceback" not in log, log
        (line,) = [line for line in log.splitlines() if ": error: " in line]
        return line


def run(data, training, **kwargs):
    """Runs train.py to its successful end and returns the log."""
    return Process(data, training, **kwargs).end(0)


def free_ports(number):
    """Returns ports of this machine that nobody uses."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start_workers(data, *recipes):
    """Starts two workers on this machine, the chief first; with one recipe, the chief alone."""
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    started = []
    for index, training in enumerate(recipes):
        started.append(Process(data, training, tf_config(addresses, index)))
    return started


def tf_config(addresses, index):
    """Returns the environment of one of several workers."""
    task = {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
