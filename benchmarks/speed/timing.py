"""Shared by the benchmarks: functions timed in turn, the processor's rate, peak memory."""

import pathlib
import resource
import threading
import time

import numpy as np


class Timer:
    """Times functions in turn; seconds of the clock and of the CPU, by name."""

    def __init__(self):
        self.calls, self.seconds = {}, {}

    def add(self, name, call, *arguments) -> None:
        self.calls[name], self.seconds[name] = (call, arguments), []

    def run(self, repeats: int, warm_up: bool = True, pause: float = 0) -> None:
        """Times each function so often; a pause lets the threads of the one before go to sleep."""
        for repeat in range(-warm_up, repeats):
            for name, (call, arguments) in self.calls.items():
                time.sleep(pause)
                clock, cpu = time.perf_counter(), time.process_time()
                call(*arguments)
                if repeat >= 0:
                    spent = time.perf_counter() - clock, time.process_time() - cpu
                    self.seconds[name].append(spent)

    def least(self, name) -> np.ndarray:
        return np.min(self.seconds[name], axis=0)

    def median(self, name) -> float:
        return np.median(self.seconds[name], axis=0)[0]


def peaks() -> dict:
    """Returns {name: (function, multiply-adds)} that measure the processor's rate.

    The functions return when their work is done.
    """
    import tensorflow as tf

    matrix = tf.random.normal((4096, 4096), seed=0)
    photo, kernel = tf.random.normal((1, 64, 64, 512)), tf.random.normal((3, 3, 512, 512))

    @tf.function
    def gemm():
        return tf.matmul(matrix, matrix)[0, 0]

    @tf.function
    def convolution():
        return tf.nn.conv2d(photo, kernel, 1, "SAME")[0, 0, 0, 0]

    return {
        "gemm": (lambda: gemm().numpy(), 4096**3),
        "convolution": (lambda: convolution().numpy(), 64 * 64 * 9 * 512 * 512),
    }


def best_rates(timer: Timer, peaks: dict) -> np.ndarray:
    """Returns the multiply-adds per second of the faster peak, by the clock and by CPU time."""
    return np.max([macs / timer.least(name) for name, (_, macs) in peaks.items()], axis=0)


def has_bfloat16() -> bool:
    """Returns whether the processor has bfloat16 instructions, or there is a GPU."""
    import tensorflow as tf

    cpu = pathlib.Path("/proc/cpuinfo")
    native = cpu.is_file() and "bf16" in cpu.read_text(encoding="utf-8")
    return native or bool(tf.config.list_physical_devices("GPU"))


def print_columns(corner: str, columns: dict[str, dict[str, str]]) -> None:
    """Prints a markdown table of {column: {row: cell}}, with the same rows in each."""
    print(f"| {corner} | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name in next(iter(columns.values())):
        print(f"| {name} | {' | '.join(column[name] for column in columns.values())} |")


# --- memory -------------------------------------------------------------------------------


def status(key: str, process: int | str = "self") -> int:
    """Returns an entry of a process' status, such as VmRSS, in bytes."""
    text = pathlib.Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(text.split(f"{key}:")[1].split()[0]) * 1024


def peak_memory() -> int:
    """Returns the peak of resident bytes so far, including those of mapped files.

    `getrusage` would include what the parent held when it started this process.
    """
    return status("VmHWM")


def peak_memory_of_children() -> int:
    """Returns the peak bytes of the largest finished child, or child of a child.

    It is at least what this process held when it started that child.
    """
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def restart_peak_memory() -> None:
    """Resets `peak_memory` to what is resident now."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


class OwnMemory(threading.Thread):
    """Watches the memory of this process that is in no file; `most` is its peak so far, in bytes.

    Pages of mapped files are left out: the system takes them back when it needs them.

    Args:
      every: seconds between looks.
    """

    def __init__(self, every: float = 0.02):
        super().__init__(daemon=True)
        self._every = every
        self.most, self._over = status("RssAnon"), threading.Event()
        self.start()

    def run(self):
        while not self._over.wait(self._every):
            self.most = max(self.most, status("RssAnon"))

    def stop(self) -> int:
        self._over.set()
        self.join()
        return self.most
