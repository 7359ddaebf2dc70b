"""Damage as disks, copies and careless editors do it, from a seed."""

import numpy as np

_NUMBERS = (b"9223372036854775808", b"-1", b"NaN", b"1e999", b"null", b'"x"', b"[]", b"{}", b"0")


def _flip(data, rng):
    for at in rng.integers(len(data), size=rng.integers(1, 5)):
        data[at] ^= 1 << int(rng.integers(8))


def _cut(data, rng):
    del data[int(rng.integers(len(data))) :]


def _zero(data, rng):
    at, size = rng.integers(len(data)), rng.integers(1, 65)
    data[at : at + size] = bytes(len(data[at : at + size]))


def _double(data, rng):
    at, size = rng.integers(len(data)), rng.integers(1, 257)
    data[at:at] = data[at : at + size]


def _swap(data, rng):
    a, b, size = *sorted(rng.integers(len(data), size=2)), rng.integers(1, 65)
    first, second = data[a : a + size], data[b : b + size]
    data[b : b + size], data[a : a + size] = first, second


def _lengthen(data, rng):
    """Puts a huge number where a length may be."""
    at = int(rng.integers(len(data)))
    data[at : at + 8] = (1 << int(rng.integers(8, 64))).to_bytes(8, "little")


def _number(data, rng):
    """Replaces a run of digits, as in JSON or a header of text."""
    places = [at for at in range(len(data)) if 48 <= data[at] < 58]
    if places:
        at = int(rng.choice(places))
        end = at
        while end < len(data) and 48 <= data[end] < 58:
            end += 1
        data[at:end] = _NUMBERS[rng.integers(len(_NUMBERS))]


KINDS = (_flip, _cut, _zero, _double, _swap, _lengthen, _number)


def mutated(data: bytes, seed: int) -> bytes:
    """Returns other bytes; the same for the same seed."""
    rng, changed = np.random.default_rng(seed), bytearray(data)
    KINDS[seed % len(KINDS)](changed, rng)
    return bytes(changed)
