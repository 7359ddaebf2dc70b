"""Progress of long work: a bar on a terminal, a log line now and then elsewhere."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator

log = logging.getLogger(__name__)


def format_seconds(seconds: float) -> str:
    """Returns "45s", "3m20s" or "2h05m"."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def track(
    items: Iterable, total: int, description: str, unit: str = "photos", every: float = 10.0
) -> Iterator:
    """Yields the items, and shows how many are done, the rate and the time left.

    Args:
      items: the work.
      total: how many there will be.
      description: of the work, such as "extract".
      unit: of one item, in the plural.
      every: seconds between two log lines where there is no terminal.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, total=total, desc=description, unit=f" {unit}", leave=False)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= every:
            last, rate = now, done / (now - start)
            left = format_seconds((total - done) / rate)
            log.info("%s: %d/%d %s, %.1f/s, ETA %s", description, done, total, unit, rate, left)


@contextlib.contextmanager
def waiting_for(what: str, every: float = 30.0) -> Iterator[None]:
    """Logs now and then, while the block runs, that it is still waiting.

    Args:
      what: what the block waits for.
      every: seconds between two log lines.
    """
    done, start = threading.Event(), time.monotonic()

    def remind():
        while not done.wait(every):
            log.warning("waiting for %s since %s", what, format_seconds(time.monotonic() - start))

    threading.Thread(target=remind, daemon=True).start()
    try:
        yield
    finally:
        done.set()
