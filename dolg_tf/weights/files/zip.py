"""Zip archives from untrusted sources: nothing is unpacked to disk, no size is taken on trust."""

import contextlib
import io
import os
import pathlib
import struct
import zipfile

from dolg_tf.stage.plain_pickle import Refused
from dolg_tf.weights.files.arrays import Region, quoted

# The directory at the archive's end is read at once; 4 MiB name some 50,000 entries.
_LARGEST_DIRECTORY = 1 << 22
# Weights hardly compress. Whatever unpacks to more than this is a bomb.
_LARGEST_RATIO, _ALWAYS_ALLOWED = 100, 1 << 24
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _Sipping(io.BufferedReader):
    """A file that returns at most as much at once as a directory of entries may hold."""

    def read(self, size=-1, /):
        most = _LARGEST_DIRECTORY + 1
        data = super().read(most if size < 0 else min(size, most))
        if len(data) > _LARGEST_DIRECTORY:
            raise Refused("the zip archive's directory is too large")
        return data


class Archive:
    """The entries of a zip archive, by name."""

    def __init__(self, path: str | os.PathLike):
        """Reads the directory.

        Raises:
          Refused: on encryption, other compression, two entries of one name, or a zip bomb.
          zipfile.BadZipFile: when the archive is damaged.
        """
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        try:
            with _Sipping(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (ValueError, NotImplementedError, struct.error, OverflowError) as error:
            raise Refused(
                f"the zip archive is damaged ({error}): download the file again"
            ) from error
        self._entries = {entry.filename: entry for entry in entries}
        if len(self._entries) < len(entries):
            raise Refused("the zip archive has two entries of the same name")
        for entry in entries:
            if entry.flag_bits & 1:
                raise Refused(f"{quoted(entry.filename)} is encrypted: save it without a password")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(f"{quoted(entry.filename)} has an unsupported compression")
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > _LARGEST_RATIO * size + _ALWAYS_ALLOWED:
            raise Refused(f"unpacks to {unpacked} bytes from {size}: this is a zip bomb")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries, in the order of the archive."""
        return tuple(self._entries)

    def region(self, name: str) -> Region:
        """Returns the unpacked bytes of an entry; its checksum is checked at their end.

        Raises:
          Refused: when the entry does not exist, or is not inside the file.
        """
        if name not in self._entries:
            raise Refused(f"the zip archive has no {quoted(name)}")
        entry = self._entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise Refused(f"the zip archive is damaged at {quoted(name)}: download the file again")
        start = entry.header_offset + sum(_LOCAL_HEADER.unpack(header)[1:], _LOCAL_HEADER.size)
        stored = entry.compress_type == zipfile.ZIP_STORED
        if start + entry.compress_size > self.path.stat().st_size or (
            stored and entry.compress_size != entry.file_size
        ):
            raise Refused(f"{quoted(name)} is cut short: download the file again")

        @contextlib.contextmanager
        def open_entry():
            with self.path.open("rb") as file:
                file.seek(start)
                with zipfile.ZipExtFile(file, "r", entry) as stream:
                    yield stream

        return Region(entry.file_size, open_entry)

    def read(self, name: str, limit: int) -> bytes:
        """Returns the bytes of a small entry.

        Raises:
          Refused: when it is larger than `limit` bytes.
        """
        region = self.region(name)
        if region.size > limit:
            raise Refused(f"{quoted(name)} has {region.size} bytes, but only {limit} are allowed")
        with region.open() as stream:
            return stream.read(limit)
