"""The files of a SavedModel that `dolg export` wrote: what they say of themselves, and damage.

`assets.extra/dolg.json` says where the model comes from, and has a checksum of each file that
TensorFlow wrote. TensorFlow's own loaders notice hardly any changed bit.
"""

import contextlib
import pathlib
from collections.abc import Iterator

from dolg_tf.stage import checksums, files
from dolg_tf.stage.config import InputError

FORMAT_VERSION = 1
ABOUT = pathlib.PurePath("assets.extra", "dolg.json")
REMEDY = "export the model again"


def write_about(saved_model: pathlib.Path, about: dict) -> None:
    """Writes what a new SavedModel says of itself, with checksums of all files in it."""
    written = sorted(file for file in saved_model.rglob("*") if file.is_file())
    names = [file.relative_to(saved_model).as_posix() for file in written]
    checksums.write_json(saved_model / ABOUT, about, checksums.of_files(saved_model, names))


def read_about(saved_model: files.Path) -> dict | None:
    """Returns what a SavedModel says of itself; None: it is not an export of ours.

    Raises:
      InputError: when that is damaged, or of another release.
    """
    path = pathlib.Path(saved_model) / ABOUT
    return checksums.read_json(path, FORMAT_VERSION, REMEDY)[0] if path.exists() else None


@contextlib.contextmanager
def loading(saved_model: files.Path) -> Iterator[None]:
    """Checks the files of a SavedModel, then turns what a loader raises into one line.

    Raises:
      InputError: when a file is damaged, or the block cannot load the model.
    """
    path = pathlib.Path(saved_model)
    if (path / ABOUT).exists():
        _, sums = checksums.read_json(path / ABOUT, FORMAT_VERSION, REMEDY)
        checksums.check(path, sums, REMEDY)
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the loaders' errors have no common class
        message = " ".join(str(error).split())
        raise InputError(f"{path} cannot be loaded: {message:.300}; {REMEDY}") from error
