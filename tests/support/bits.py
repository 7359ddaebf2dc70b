"""Damage of one bit."""

import contextlib
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def flipped(path, at: int, bit: int = 3) -> Iterator[None]:
    """Changes one bit of a file while the block runs; a negative place counts from its end."""
    path = pathlib.Path(path)
    with path.open("r+b") as file:
        whole = path.stat().st_size
        file.seek(at % whole)
        before = file.read(1)
        file.seek(at % whole)
        file.write(bytes([before[0] ^ 1 << bit]))
    try:
        yield
    finally:
        with path.open("r+b") as file:
            file.seek(at % whole)
            file.write(before)
