"""How much memory a block of a test may take."""

import contextlib
import tracemalloc


@contextlib.contextmanager
def peak_below(megabytes):
    """Holds Python's and NumPy's memory below some megabytes while the block runs."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
