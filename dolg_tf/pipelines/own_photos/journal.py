"""Descriptors written as they come: whatever ends the work, what was written counts.

`rows.f32` holds rows, float32, one after the other; `photos.jsonl` says whose they are, line by
line. Rows are on the disk before their lines, and what has no line does not count.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_ABOUT, _ROWS, _LINES = "about.json", "rows.f32", "photos.jsonl"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """What is known of a photo.

    Attributes:
      size: of its file, in bytes.
      modified: time of its file, in nanoseconds.
      digest: SHA-256 of its file; "": it could not be read, and will be tried again.
      row: of its descriptor; -1: it has none.
      reason: why it has none.
    """

    size: int
    modified: int
    digest: str
    row: int
    reason: str = ""

    @property
    def state(self) -> tuple[int, int]:
        """What changes whenever the file is written."""
        return self.size, self.modified


class Journal:
    """Rows and entries that are appended.

    Args:
      folder: of its files; made when something is written.
      made: how the rows are made; a journal of other rows is deleted.
      first: number of its first row.
    """

    def __init__(self, folder: pathlib.Path, made: dict, first: int):
        self._folder, self._made, self._first = folder, made, first
        self.entries: dict[str, Entry] = {}
        self._width = self._count = 0
        if folder.exists():
            self._read()

    def _read(self) -> None:
        try:
            about = files.read_json(self._folder / _ABOUT, FORMAT_VERSION)
            if about["made"] != self._made:
                raise InputError("it is of another model")
            self._width = int(about["width"])
            stored = (self._folder / _ROWS).stat().st_size // (4 * self._width)
            lines = (self._folder / _LINES).read_bytes()
        except (InputError, KeyError, TypeError, ValueError, OSError) as error:
            log.warning("%s: what was begun there does not count: %s", self._folder, error)
            self.remove()
            return
        kept = 0  # bytes
        for line in lines.split(b"\n")[:-1]:
            if not self._take(line, stored):
                break
            kept += len(line) + 1
        os.truncate(self._folder / _LINES, kept)
        os.truncate(self._folder / _ROWS, 4 * self._width * self._count)

    def _take(self, line: bytes, stored: float = math.inf) -> bool:
        """Takes the entry of a line; False: it is damaged, or has none of the stored rows."""
        try:
            id_, size, modified, digest, reason = json.loads(line)
        except (ValueError, TypeError):
            return False
        row = -1
        if not reason:
            if self._count >= stored:
                return False
            row = self._first + self._count
            self._count += 1
        self.entries[id_] = Entry(size, modified, digest, row, reason)
        return True

    @property
    def rows(self) -> np.ndarray:
        """The rows so far, float32 (N, D); they stay on disk."""
        if not self._count:
            return np.empty((0, self._width), np.float32)
        return np.memmap(self._folder / _ROWS, np.float32, "r", shape=(self._count, self._width))

    def add(self, rows: np.ndarray, photos: Iterable[tuple[str, int, int, str, str]]) -> None:
        """Appends photos.

        Args:
          rows: float32 (N, D), of the photos without a reason, in their order.
          photos: (id, size, modified, digest, reason) of each.

        Raises:
          OSError: when the disk is full; what was there before is kept.
        """
        if not self._width:
            self._width = rows.shape[1]
            self._folder.mkdir(parents=True, exist_ok=True)
            about = {"format_version": FORMAT_VERSION, "made": self._made, "width": self._width}
            files.write_json(self._folder / _ABOUT, about)
        lines = [json.dumps(photo) for photo in photos]
        with files.naming(self._folder):
            _append(self._folder / _ROWS, np.ascontiguousarray(rows, np.float32).tobytes())
            _append(self._folder / _LINES, "".join(f"{line}\n" for line in lines).encode())
        for line in lines:
            self._take(line.encode())

    def remove(self) -> None:
        """Deletes it."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self.entries, self._width, self._count = {}, 0, 0


def _append(path: pathlib.Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
