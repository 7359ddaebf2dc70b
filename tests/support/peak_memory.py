"""A limit on the memory of a block of a test."""

import contextlib
import tracemalloc


@contextlib.contextmanager
def peak_below(megabytes):
    """Asserts that Python's and NumPy's memory stays below some megabytes in the block."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()
