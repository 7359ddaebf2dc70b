"""Work in several processes: few items in flight at once, and no process outlives the work.

No TensorFlow here: a process starts in a fraction of a second and needs little memory.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool

from dolg_tf.stage.config import InputError


def end_with_parent() -> None:
    """Makes this process end with its parent, even if that is killed."""

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class ProcessDied(InputError):
    """A worker process was killed, or crashed."""


def _start_process() -> None:
    """Makes a process end at Ctrl-C, and with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    end_with_parent()


def process_count(processes: int, items: int) -> int:
    """Returns the number of processes to start: `processes` (0: one per core), at most `items`."""
    return max(1, min(processes or os.cpu_count() or 1, items))


def run_in_processes(function: Callable, items: Iterable, processes: int) -> Iterator:
    """Yields `function(item)` for each item, in the order in which they finish.

    An item is made only when a process is about to take it. On an error, or when the caller stops
    early, the processes are killed: what they write must be complete or absent.

    Args:
      function: at the top of a module, so that a process can import it.
      items: its arguments.
      processes: number of processes; with 1, everything runs in this one.

    Raises:
      ProcessDied: when a process was killed or crashed; otherwise whatever `function` raises.
    """
    items = iter(items)
    if processes == 1:
        yield from map(function, items)
        return
    before = set(multiprocessing.active_children())
    spawn = multiprocessing.get_context("spawn")
    pool = futures.ProcessPoolExecutor(processes, spawn, _start_process)
    try:
        # One more than there are processes: the next item is ready when one finishes.
        first = itertools.islice(items, processes + 1)
        waiting = {pool.submit(function, item): item for item in first}
        while waiting:
            done, _ = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
            for future in done:
                result = future.result()
                del waiting[future]
                for item in itertools.islice(items, 1):
                    waiting[pool.submit(function, item)] = item
                yield result
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        if isinstance(error, BrokenProcessPool):
            paths = [str(item) for item in waiting.values() if isinstance(item, str | os.PathLike)]
            at = f" at one of {', '.join(sorted(paths))}" if paths else ""
            raise ProcessDied(
                f"a worker process was killed{at}, perhaps for lack of memory; run the same "
                "command again, with fewer --processes"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
