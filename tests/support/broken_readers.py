"""Readers that go wrong in each way, for the tests of the endurance benchmark."""

import os
import time

from endurance_readers import Reader

from dolg_tf.stage.config import InputError


def _make(world):
    path = world.folder / "letters.txt"
    if not path.exists():
        world.folder.mkdir(parents=True, exist_ok=True)
        path.write_text("abc")
    return path


def _read(path):
    """The first letter says what happens, the second is all that is read."""
    text = path.read_text()
    if text[:1] == "A":
        os.abort()
    if text[:1] == "H":
        time.sleep(600)
    if text[:1] == "T":
        raise ValueError(text)
    if text[:1] == "M":
        bytearray(1 << 40)
    if text[:1] == "C":
        raise InputError(f"{path}: damaged")
    if text[:1] == "N":
        raise InputError("damaged")
    return text[1:2]


READERS = {
    "with checksums": Reader(_make, _read, sound=True),
    "without": Reader(_make, _read),
}
