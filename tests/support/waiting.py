"""Waiting for what another thread or process does."""

import time


def wait_for(done, what="it takes too long", seconds=10):
    """Returns once `done()` is true; fails with the words when that takes longer."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.01)
