"""Takes listed photos out of `.tar.gz` archives and folders, none of which is trusted."""

import gzip
import logging
import os
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Collection, Iterator

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

# Far above any photo of the benchmarks; a few bytes can unpack to any number of zeros.
_MOST_BYTES = 64 * 2**20
_CHUNK = 1 << 20
_MEND = "download it again"


def listed_name(path: str, wanted: Collection[str]) -> str | None:
    """Returns the listed photo that a packed file is: its path without leading folders; else None.

    Args:
      path: of the file inside its archive or folder.
      wanted: names of photos, which may have folders of their own.
    """
    parts = path.split("/")
    for start in range(len(parts)):
        name = "/".join(parts[start:])
        if name in wanted:
            return name
    return None


def unpack(
    archive: pathlib.Path, wanted: Collection[str], folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path]]:
    """Unpacks the listed photos of a `.tar.gz`; the list says where they go, not the archive.

    The checksum of the archive comes last: use no photo before the iterator ends.

    Args:
      archive: the file.
      wanted: names of photos, relative to the archive's top or to a folder in it.
      folder: where photos are put, under numbers.

    Yields:
      (name, its file).

    Raises:
      InputError: when the archive is damaged or cut short, holds a photo twice, or holds a file
        too large for a photo.
    """
    seen = set()
    try:
        # As a stream, which is never rewound.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = listed_name(member.name, wanted)
                if name is None:
                    continue
                if not member.isfile():
                    log.warning("%s: %s is not a regular file: left out", archive, member.name)
                    continue
                if name in seen:
                    raise InputError(f"{archive}: {name} is in it twice; {_MEND}")
                if not 0 < member.size <= _MOST_BYTES:
                    raise InputError(f"{archive}: {name} has {member.size} bytes; {_MEND}")
                path = folder / str(len(seen))
                seen.add(name)
                with path.open("wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file, _CHUNK)
                yield name, path
            # tarfile stops at the end of the tar, or at a header that it does not understand. The
            # checksum behind it tells the two apart.
            while stream.read(_CHUNK):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{archive}: damaged or cut short ({error}); {_MEND}") from error


def find_loose(
    folder: pathlib.Path, wanted: Collection[str], leave_out: pathlib.Path
) -> dict[str, pathlib.Path]:
    """Finds listed photos that lie unpacked in a folder or below it.

    Args:
      folder: where to look; links to folders are not entered.
      wanted: names of photos, relative to it or to a folder in it.
      leave_out: a folder that is not entered.

    Returns:
      {name: file}.

    Raises:
      InputError: when two files have the same name.
    """
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(x for x in folders if pathlib.Path(parent, x).resolve() != leave_out)
        for entry in folders:
            if pathlib.Path(parent, entry).is_symlink():
                log.warning("%s/%s is a link to a folder: not entered", parent, entry)
        inner = pathlib.Path(parent).relative_to(folder).as_posix()
        for entry in sorted(names):
            name = listed_name(f"{inner}/{entry}", wanted)
            if name is None:
                continue
            path = pathlib.Path(parent, entry)
            if not path.is_file() or not path.stat().st_size:
                log.warning("%s is empty or not a regular file: left out", path)
                continue
            if name in found:
                raise InputError(f"{path} and {found[name]} are both {name}; keep one of them")
            found[name] = path
    return found


def place(source: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a file at `target`, too: as a hard link where possible, else as a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source.resolve())  # whole at once, and its bytes are on the disk
    except OSError:  # on another disk, or one without hard links
        with files.atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)
