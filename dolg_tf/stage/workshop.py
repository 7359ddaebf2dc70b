"""Workshops: the hidden folder beside an output in which it grows, and is put in place from.

`.NAME.dolg-N` holds `lock`, which its process keeps locked, `new`, and `old` where two folders
cannot be exchanged at once. Its name is known, so that the next command finds what a killed one
left without reading the whole folder.
"""

import concurrent.futures
import contextlib
import ctypes
import fcntl
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

from dolg_tf.stage.config import InputError

_LONGEST_NAME = 255  # bytes, on the usual file systems
_WORKSHOPS = 8  # processes that may write one output at once
_PATIENCE = 500  # hundredths of a second
_SYNCS = 16  # files that are waited for at once


def hidden(path: str | os.PathLike, suffix: str) -> pathlib.Path:
    """Returns `.NAME.suffix` beside `path`, with NAME cut to what file systems take."""
    path = pathlib.Path(path)
    name = path.name
    while len(os.fsencode(f".{name}.{suffix}")) > _LONGEST_NAME:
        name = name[:-1]
    return path.with_name(f".{name}.{suffix}")


def holds(path) -> bool:
    """Returns whether `path` is, or is in, a temporary folder; False if it is no path."""
    parts = pathlib.Path(os.fsdecode(path)).parts if isinstance(path, str | bytes) else ()
    return any(part.startswith(".") and part[:-1].endswith(".dolg-") for part in parts)


@contextlib.contextmanager
def workshop(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder of this process, and clears those of killed ones.

    Raises:
      InputError: when too many processes are writing the same output.
    """
    mine = None
    for number in range(_WORKSHOPS):
        folder = hidden(target, f"dolg-{number}")
        if mine is None or folder.exists():
            lock = _claim(folder)
            if lock is not None and mine is None:
                mine = folder, lock
            elif lock is not None:
                _leave(folder, lock)
    if mine is None:
        raise InputError(
            f"{_WORKSHOPS} processes are writing {target}; wait for them, or, if there are none, "
            f"delete the folders {hidden(target, 'dolg-0')} to {folder.name}"
        )
    try:
        _clear(mine[0])
        yield mine[0]
    finally:
        _leave(*mine)


def _claim(folder: pathlib.Path) -> int | None:
    """Returns the open, locked file of a temporary folder; None if it is another's."""
    while True:
        made = False
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
            made = True
        try:
            marked = (folder / "lock").is_file()
            if folder.is_symlink() or not folder.is_dir() or (not marked and any(folder.iterdir())):
                return None  # none of ours
            number = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # its process has just removed it
            continue
        except PermissionError:  # another user's
            return None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if made and not isinstance(error, BlockingIOError):
                return number  # a file system without locks: others keep away, and it may stay
            os.close(number)
            return None
        if os.fstat(number).st_nlink:
            return number
        os.close(number)  # removed while we waited for it


def _clear(folder: pathlib.Path) -> None:
    """Empties a temporary folder, after putting back what a killed process had moved aside."""
    for old in (folder / "old").iterdir() if (folder / "old").is_dir() else ():
        if not (folder.parent / old.name).exists():
            old.rename(folder.parent / old.name)
    for name in ("new", "old"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _leave(folder: pathlib.Path, lock: int) -> None:
    """Removes a temporary folder and frees its lock."""
    _clear(folder)
    with contextlib.suppress(OSError):
        (folder / "lock").unlink()
        folder.rmdir()
    os.close(lock)
    with contextlib.suppress(OSError):  # NFS keeps a removed file until it is closed
        folder.rmdir()


def _has(path: pathlib.Path) -> bool:
    """Returns whether there is such a file or folder, as far as this user may look."""
    with contextlib.suppress(PermissionError):
        return path.exists()
    return False


def recover(path: str | os.PathLike) -> bool:
    """Returns whether `path` exists, after putting it back if a killed process had moved it aside.

    That is needed only where two folders cannot be exchanged at once. Readers call it; `path` may
    be anything in a folder that was moved.
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists():
        return True
    while not target.parent.exists():
        target = target.parent
    for number in range(_WORKSHOPS):
        folder = hidden(target, f"dolg-{number}")
        for _ in range(_PATIENCE):
            if target.exists() or not _has(folder / "old" / target.name):
                break
            lock = _claim(folder)
            if lock is not None:
                _leave(folder, lock)
            else:  # its process is alive, between two renames
                time.sleep(0.01)
    return pathlib.Path(path).exists()


# --- steps that outlast a power cut ---------------------------------------------------


def exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two names at once; returns whether system and file system have done that.

    File systems tell in many ways that they cannot; what else was wrong, a plain rename tells.
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def sync(path: pathlib.Path) -> None:
    """Waits until a file, or a folder with all in it, is on the disk."""
    if not path.is_dir():
        _sync_file(path)
        return
    # Disks take many such waits at once, and thousands of small files one by one take long.
    with concurrent.futures.ThreadPoolExecutor(_SYNCS) as pool:
        for folder, _, names in os.walk(path):
            for start in range(0, len(names), _SYNCS * 64):
                some = [pathlib.Path(folder, name) for name in names[start : start + _SYNCS * 64]]
                list(pool.map(_sync_file, some))
            sync_folder(folder)


def _sync_file(path: pathlib.Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file)


def sync_folder(path: str | os.PathLike) -> None:
    """Waits until the names in a folder are on the disk."""
    number = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some file systems sync files only
            os.fsync(number)
    finally:
        os.close(number)
