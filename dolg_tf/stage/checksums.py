"""Checksums of the files of a folder, in the JSON file that describes it.

Its key `crc32c` maps each file's name, relative to the folder, to eight hexadecimal digits. The
entry of the JSON file's own name covers everything else in it. What older releases wrote has no
such key, and is read unchecked.
"""

import json
import pathlib
import re
import sys
from collections.abc import Collection, Iterable

import numpy as np
from crc32c import crc32c

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

KEY = "crc32c"
_BLOCK = 1 << 20  # bytes, which stay in a processor's cache
_DIGITS = re.compile("[0-9a-f]{8}")


class Running:
    """The CRC-32C of bytes that come piece by piece."""

    def __init__(self):
        self._crc = 0

    def add(self, piece: bytes | np.ndarray) -> None:
        """Adds bytes, or those of an array in C order."""
        if isinstance(piece, np.ndarray):
            piece = np.ascontiguousarray(piece).view(np.uint8)
        self._crc = crc32c(piece, self._crc)

    def digits(self) -> str:
        """Returns the checksum of what was added, as it is stored."""
        return f"{self._crc:08x}"


def of_file(path: files.Path, most: int = sys.maxsize) -> str:
    """Returns the CRC-32C of a file's bytes, or of its first `most`."""
    crc, buffer = Running(), memoryview(bytearray(_BLOCK))
    with pathlib.Path(path).open("rb", buffering=0) as file:
        while count := file.readinto(buffer[: max(most, 0)]):
            crc.add(buffer[:count])
            most -= count
    return crc.digits()


def of_files(folder: files.Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the CRC-32C of each of the files, by name."""
    return {name: of_file(pathlib.Path(folder, name)) for name in names}


def _own(about: dict) -> str:
    """Returns the CRC-32C of JSON values, however they are laid out in their file."""
    crc = Running()
    crc.add(json.dumps(about, sort_keys=True).encode())
    return crc.digits()


def write_json(path: files.Path, about: dict, sums: dict[str, str]) -> None:
    """Writes JSON with checksums, whole or not at all.

    Args:
      path: the file.
      about: its contents.
      sums: the checksums of other files, see `of_files`.
    """
    path = pathlib.Path(path)
    about = json.loads(json.dumps({**about, KEY: sums}, allow_nan=False))  # as they will be read
    about[KEY][path.name] = _own(about)
    files.write_json(path, about)


def read_json(
    path: files.Path, format_version: int | Collection[int], remedy: str
) -> tuple[dict, dict[str, str]]:
    """Reads JSON that may have checksums.

    Args:
      path: the file.
      format_version: what its key `format_version` must say, or one of several.
      remedy: the end of the error message.

    Returns:
      Its contents without checksums, and the checksums of the other files; none of an old file.

    Raises:
      InputError: when there is no such file, it is not JSON, its version is another, or it is
        not as it was written.
    """
    path = pathlib.Path(path)
    about = files.read_json(path, format_version)
    if KEY not in about:
        return about, {}
    sums = about[KEY]
    sound = isinstance(sums, dict) and all(
        isinstance(value, str) and _DIGITS.fullmatch(value) for value in sums.values()
    )
    own = sums.pop(path.name, None) if sound else None
    if own is None or own != _own(about):
        raise InputError(
            f"{path}: damaged, or edited: its checksum is wrong; {remedy}, or delete its key "
            f"{KEY!r} to keep an edit"
        )
    del about[KEY]
    return about, sums


def check(folder: files.Path, sums: dict[str, str], remedy: str) -> None:
    """Compares files with their checksums.

    Args:
      folder: of the files.
      sums: by name.
      remedy: the end of the error message.

    Raises:
      InputError: naming the first file that is missing, cannot be read or differs.
    """
    for name, expected in sums.items():
        path = files.inside(folder, name)
        files.refuse_other_than_file(path)
        try:
            found = of_file(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); {remedy}") from error
        if found != expected:
            raise wrong(path, remedy)


def wrong(path: files.Path, remedy: str) -> InputError:
    """Returns the error of a file whose checksum is another."""
    return InputError(f"{path}: damaged, its checksum is wrong; {remedy}")
