"""Files that are either whole or not there, and JSON with a format version."""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from dolg_tf.stage.config import InputError

Path = str | os.PathLike
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
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` that is renamed to it when the block succeeds.

    The block may make a file or a directory there. When it fails, nothing is left behind and
    what stood at `path` still stands.

    Raises:
      InputError: when a file would take the place of a folder.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary, replaced = folder / path.name, folder / "replaced"
    try:
        yield temporary
        if path.is_dir() and not path.is_symlink():
            if not temporary.is_dir():
                raise InputError(f"{path} is a folder, which a file must not replace; name a file")
            # rename(2) does not replace a full directory: move the old one aside first.
            path.rename(replaced)
        temporary.replace(path)
    finally:
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value) -> None:
    """Writes JSON (UTF-8, indented), whole or not at all; refuses NaN and infinity."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, format_version: int | None = None):
    """Reads JSON.

    Args:
      path: the file.
      format_version: what its key `format_version` must say; None: it has no such key.

    Raises:
      InputError: when there is no such file, it is not JSON, or the version is another.
    """
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if format_version is not None:
        found = value.get("format_version") if isinstance(value, dict) else None
        if found != format_version:
            raise InputError(
                f"{path}: format_version is {found!r}, this release reads {format_version}; "
                "install the release that wrote it, or write it again"
            )
    return value


def check_output(path: Path, overwrite: bool, mark: str | None = None) -> None:
    """Checks that an output may be put in place.

    Args:
      path: of the output.
      overwrite: whether one that is there may be replaced.
      mark: a file that a directory must hold to be replaced, so that no other is lost; None: the
        output is a file.

    Raises:
      InputError: when something there must stay.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return
    if not overwrite:
        raise InputError(f"{path} exists; give --overwrite or another --output")
    if path.is_dir() and not (mark and (path / mark).is_file()):
        raise InputError(
            f"{path} is a directory of something else, which --overwrite does not replace; give "
            "another --output"
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
      InputError: when `name`, which was read from a file, leads out of the folder.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name!r} leads out of {folder}")
    return path
