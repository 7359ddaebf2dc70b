"""Files that are either whole or not there, and JSON with a format version."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Iterator
from typing import IO

from dolg_tf.stage import workshop
from dolg_tf.stage.config import InputError

Path = str | os.PathLike
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SURROGATES = re.compile("[\ud800-\udfff]")  # what Python reads other bytes of paths as
# What NumPy and zipfile raise for a damaged .npy or .npz, besides OSError. NumPy reads a header
# with Python's parser, and allocates what it says.
DAMAGED_ARRAYS = (
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    SyntaxError,
    tokenize.TokenError,
    RecursionError,
    MemoryError,
    OverflowError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class FullDisk(OSError):
    """An output does not fit on its disk; `filename` is the output as the user named it."""


def full_disk(error: BaseException) -> int:
    """Returns the errno of a full disk, an exceeded quota or a file that is too large; else 0.

    TensorFlow and h5py tell the reason in words, NumPy only how much was written.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    if isinstance(error, InputError):
        return 0
    text = str(error)
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", text):
        return errno.ENOSPC
    return next((number for number in _FULL if os.strerror(number) in text), 0)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names an output in the errors of its disk, instead of its temporary files.

    Raises:
      FullDisk: when it is full, whichever library says so.
    """
    try:
        yield
    except Exception as error:
        if number := full_disk(error):
            raise FullDisk(number, os.strerror(number), str(path)) from error
        if isinstance(error, OSError) and workshop.holds(error.filename):
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise


def reserve(path: Path, size: int) -> None:
    """Makes sure that a new file of this many bytes fits, for libraries that crash if it does not.

    Raises:
      OSError: when it does not.
    """
    path = pathlib.Path(path)
    with path.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    path.unlink()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that takes its place when the block succeeds.

    The block may make a file or a directory there. When it fails or is killed, what stood at `path`
    still stands. What is in place is on the disk, not only in memory. A link stays a link, and what
    it leads to is replaced. Into a device, a pipe or standard output the file is copied.

    Raises:
      InputError: when something of another kind would be replaced.
      FullDisk: when there is no room.
    """
    target = _target(path)
    if target is None:
        with _copied(path) as temporary:
            yield temporary
        return
    with naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        if workshop.holds(str(target)) and not target.exists():
            yield target  # it is whole with the folder that is being made, or goes with it
            return
        with workshop.workshop(target) as folder:
            (folder / "new").mkdir()
            temporary = folder / "new" / target.name
            yield temporary
            workshop.sync(temporary)
            _put(temporary, target, folder / "old")


def _target(path: Path) -> pathlib.Path | None:
    """Returns where an output is, behind links; None for what is written into, not replaced.

    Raises:
      InputError: when it is a socket or a disk, or a link into a folder that is not there.
    """
    path = pathlib.Path(path)
    mode = path.stat().st_mode if path.exists() else 0
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{path} is a socket or a disk, which cannot be an output; name a file")
    if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
        return None
    hop = path.absolute()
    while hop.is_symlink() and mode:
        if pathlib.Path(os.path.realpath(hop.parent)).is_relative_to("/proc"):
            return None  # /dev/stdout and its like, whatever they lead to
        hop = hop.parent / hop.readlink()
    target = pathlib.Path(os.path.realpath(path))
    if path.is_symlink() and (target.is_symlink() or not target.parent.is_dir()):
        raise InputError(f"{path} is a link to {target}, whose folder is not there; make it first")
    return target


@contextlib.contextmanager
def _copied(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file whose bytes are written into `path` when the block succeeds."""
    with naming(path), tempfile.TemporaryDirectory(prefix="dolg-") as folder:
        temporary = pathlib.Path(folder, pathlib.Path(path).name)
        yield temporary
        if temporary.is_dir():
            raise InputError(f"{path} is a device or a pipe, which cannot hold a folder")
        with temporary.open("rb") as source, pathlib.Path(path).open("ab") as sink:
            shutil.copyfileobj(source, sink)


def _put(new: pathlib.Path, target: pathlib.Path, old: pathlib.Path) -> None:
    """Puts a finished file or folder in place, at once.

    Raises:
      InputError: when something of another kind is there.
    """
    if target.is_dir() and not new.is_dir():
        raise InputError(f"{target} is a folder, which a file must not replace; name a file")
    if new.is_dir() and target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, which a folder must not replace; name a folder")
    if not target.is_dir():
        new.replace(target)
    elif not workshop.exchange(new, target):
        old.mkdir()
        target.rename(old / target.name)
        # A process that is killed here leaves the old folder to `recover`.
        new.rename(target)
    workshop.sync_folder(target.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes, whole or not at all.

    Pictures go this way: Pillow, given a file, cuts them off in silence where a disk gets full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all; paths in it that are not UTF-8 keep their bytes."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value) -> None:
    """Writes JSON (UTF-8, indented), whole or not at all; refuses NaN and infinity.

    Of paths that are not UTF-8, the bytes that are not are escaped.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def refuse_other_than_file(path: Path) -> None:
    """Makes sure that there is a file, or nothing: reading a pipe may never end.

    Raises:
      InputError: when something else is there.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a file")


def read_json(path: Path, format_version: int | Collection[int] | None = None):
    """Reads JSON.

    Args:
      path: the file.
      format_version: what its key `format_version` must say, or one of several; None: it has no
        such key.

    Raises:
      InputError: when there is no such file, it is not JSON, or the version is another.
    """
    try:
        workshop.recover(path)
        refuse_other_than_file(path)
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if format_version is not None:
        found = value.get("format_version") if isinstance(value, dict) else None
        read = (format_version,) if isinstance(format_version, int) else format_version
        if found not in read:
            raise InputError(
                f"{path}: format_version is {found!r}, this release reads "
                f"{' and '.join(map(str, read))}; "
                "install the release that wrote it, or write it again"
            )
    return value


def check_output(path: Path, overwrite: bool, *marks: str) -> None:
    """Checks that an output may be put in place.

    Args:
      path: of the output.
      overwrite: whether one that is there may be replaced.
      *marks: the files that a folder must hold to be replaced, so that no other is lost; none: the
        output is a file.

    Raises:
      InputError: when something there must stay.
    """
    target = _target(path)
    if target is None:
        if marks:
            raise InputError(f"{path} is a device or a pipe, which cannot hold a folder")
        return
    if not workshop.recover(target):
        return
    if not overwrite:
        raise InputError(f"{path} exists; give --overwrite or another --output")
    if target.is_dir() and not marks:
        raise InputError(f"{path} is a directory; give a file as --output")
    if target.is_dir() and not all((target / mark).is_file() for mark in marks):
        raise InputError(
            f"{path} is a directory of something else, which --overwrite does not replace; give "
            "another --output"
        )
    if marks and not target.is_dir():
        raise InputError(
            f"{path} is a file, which --overwrite does not replace by a folder; give another "
            "--output"
        )


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal digits."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock(path: Path, taken: str) -> IO:
    """Returns an open file that no other process can lock until it is closed.

    The lock ends with the process, however that ends; the empty file stays.

    Args:
      path: the file; its folder is made.
      taken: what to say when another process has it.

    Raises:
      InputError: when another process has it.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(taken) from error
    return file


def inside(folder: Path, name: str) -> pathlib.Path:
    """Returns `folder / name`.

    Raises:
      InputError: when `name`, which was read from a file, leads out of the folder, or to itself.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except RuntimeError as error:  # what Python raises for links that lead to each other
        raise InputError(f"{path}: a link that leads nowhere") from error
    if not is_inside:
        raise InputError(f"{name!r} leads out of {folder}")
    return path
