"""DELF's `.delg_global` files <-> descriptor sets.

    dolg delf --input=runs/index --output=features/index

Such a file is a DatumProto with one descriptor; DELF's perform_retrieval.py looks for
`ID.delg_global` in a folder. `--input` may be either form; `--output` becomes the other.

Reference: `datum.proto` and `datum_io.py` of DELF (tensorflow/models, research/delf).
"""

import dataclasses
import logging
import math
import os
import pathlib

import numpy as np

from dolg_tf.data import protos
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.norms import NormConfig
from dolg_tf.retrieval.rows import blocks
from dolg_tf.stage import files, progress
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

SUFFIX = ".delg_global"
# For what a DatumProto has no place; DELF's scripts ignore it.
_META = "dolg_meta.json"
_META_VERSION = 1
_BLOCK = 4096  # rows that are read at once

# --- one array ------------------------------------------------------------------------


def encode(array: np.ndarray) -> bytes:
    """Returns an array of numbers as a serialised DatumProto (float32, row-major).

    Raises:
      InputError: when a value is not finite as float32.
    """
    values = np.asarray(array, np.float32)
    if not np.isfinite(values).all():
        raise InputError("a descriptor is not finite; extract it again")
    datum = protos.datum_class()()
    datum.shape.dim.extend(values.shape)
    datum.float_list.value.extend(values.ravel().tolist())
    return datum.SerializeToString()


def decode(data: bytes, source="DatumProto") -> np.ndarray:
    """Returns the float32 array in a serialised DatumProto.

    Args:
      data: the bytes of a file.
      source: where they come from, for errors.

    Raises:
      InputError: when they are not a whole DatumProto, its shape does not fit its values, or a
        value is not finite.
    """
    try:
        datum = protos.parse(protos.datum_class(), data)
    except ValueError as error:
        raise InputError(f"{source}: cut short, or not a DatumProto; extract it again") from error
    values, shape = np.array(datum.float_list.value, np.float32), tuple(datum.shape.dim)
    if math.prod(shape) != len(values):
        raise InputError(
            f"{source}: {len(values)} values do not make the shape {shape!s:.60}; it is cut "
            "short, or not a DatumProto; extract it again"
        )
    if not np.isfinite(values).all():
        raise InputError(f"{source}: a value is not finite; extract it again")
    try:
        return values.reshape(shape)
    except ValueError as error:  # negative, or more or longer axes than an array can have
        raise InputError(f"{source}: no array has the shape {shape!s:.60}") from error


def read(path: files.Path) -> np.ndarray:
    """Reads the array in a file such as `ID.delg_global`, as float32.

    Raises:
      InputError: as in `decode`, or when the file does not exist.
    """
    files.refuse_other_than_file(path)
    try:
        return decode(pathlib.Path(path).read_bytes(), path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error


# --- whole folders -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatumConfig(NormConfig):
    """What is converted, and to where."""

    input: str = option("descriptor set, or folder with DELF's files ID.delg_global")
    output: str = option("result: such a folder, or a descriptor set")
    model_hash: str = option(
        "a word for the network behind a folder that DELF wrote: sets with different words are not "
        "compared; a folder written from a descriptor set knows its own",
        "",
    )
    overwrite: bool = option("replace an existing output of the same kind", False)


def _file_of(folder: pathlib.Path, id_: str, source) -> pathlib.Path:
    """Returns the file of a photo: one per id, inside the folder."""
    parts = pathlib.PurePosixPath(id_)
    if parts.is_absolute() or ".." in parts.parts or str(parts) != id_:
        raise InputError(f"{source}: the id {id_!r} must be a path relative to a folder")
    return folder / f"{id_}{SUFFIX}"


def to_delg(settings: DatumConfig) -> None:
    """Writes one `ID.delg_global` per row of a descriptor set."""
    found = descriptors.read(settings.input, settings.normalize)
    if found.ids is None:
        raise InputError(
            f"--input={settings.input} has no ids to name the files by; give a descriptor set"
        )
    files.check_output(settings.output, settings.overwrite, _META)
    with files.atomic_path(settings.output) as temporary:
        temporary.mkdir()
        folders = set()
        rows = (row for _, block in blocks(found.descriptors, _BLOCK) for row in block)
        pairs = zip(found.ids, rows, strict=True)
        for id_, row in progress.track(pairs, len(found), "write", "files"):
            path = _file_of(temporary, id_, settings.input)
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            path.write_bytes(encode(row))
        about = {"format_version": _META_VERSION, "ids": list(found.ids), "meta": found.meta}
        files.write_json(temporary / _META, about)
    log.info("%s: %d files", settings.output, len(found))


def _listed(folder: pathlib.Path) -> list[str]:
    """Returns the ids of the files in a folder and below it, sorted."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        inner = pathlib.Path(parent).relative_to(folder)
        found += [
            (inner / name[: -len(SUFFIX)]).as_posix() for name in names if name.endswith(SUFFIX)
        ]
    return sorted(found)


def _about(folder: pathlib.Path, model_hash: str) -> tuple[list[str], dict]:
    """Returns the ids of a folder in order, and the metadata of the set that it becomes."""
    path, found = folder / _META, _listed(folder)
    if not found:
        raise InputError(
            f"--input={folder} is neither a descriptor set (no meta.json) nor a folder with files "
            f"named ID{SUFFIX}"
        )
    if not path.exists():
        if not model_hash:
            raise InputError(f"{folder} does not say which network made it; give --model_hash=WORD")
        # DELF's configuration decided on crops and scales: not known here.
        keys = ("scales", "crop", "max_side", "whitening")
        about = dict.fromkeys(keys) | {"model_hash": model_hash, "bad": []}
        return found, about | {"image_root": str(folder.resolve())}
    about = files.read_json(path, _META_VERSION)
    ids, meta = about.get("ids"), about.get("meta")
    if not isinstance(ids, list) or not isinstance(meta, dict) or "model_hash" not in meta:
        raise InputError(f"{path}: no ids and metadata; write the folder again")
    if model_hash not in ("", meta["model_hash"]):
        raise InputError(
            f"--model_hash={model_hash} contradicts {path}, which says {meta['model_hash']!r}"
        )
    if sorted(map(str, ids)) != found:
        odd = sorted(set(found) ^ set(map(str, ids)))
        raise InputError(
            f"{folder}: {len(found)} files for {len(ids)} ids of {_META}"
            f"{f', the first odd one is {odd[0]!r}' if odd else ''}; write the folder again"
        )
    return ids, meta


class _Files:
    """Rows in one file each, read when they are asked for."""

    def __init__(self, folder: pathlib.Path, ids: list[str]):
        self._paths = [_file_of(folder, id_, folder) for id_ in ids]
        self._width = read(self._paths[0]).size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, rows: slice) -> np.ndarray:
        paths = self._paths[rows]
        found = np.empty((len(paths), self._width), np.float32)
        for row, path in enumerate(progress.track(paths, len(paths), "read", "files")):
            values = read(path)
            if values.shape != (self._width,) or not self._width:
                raise InputError(
                    f"{path}: shape {values.shape}; a global descriptor must be a row of numbers, "
                    f"as long as the first of the folder ({self._width})"
                )
            found[row] = values
        return found


def from_delg(settings: DatumConfig) -> None:
    """Joins the files of a folder into a descriptor set."""
    folder = pathlib.Path(settings.input)
    ids, meta = _about(folder, settings.model_hash)
    descriptors.check_output(settings.output, settings.overwrite)
    found = DescriptorSet(tuple(ids), _Files(folder, ids), meta)
    descriptors.write(settings.output, found, normalize=settings.normalize)
    log.info("%s: %d descriptors", settings.output, len(ids))


def convert(settings: DatumConfig) -> None:
    """Converts a descriptor set to a folder of DELF's `.delg_global` files, or back.

    A folder written here keeps the order of the rows and their origin in `dolg_meta.json`, so
    converting it back gives the same set. Values are float32 in both forms.

    Raises:
      InputError: when the input is neither, a file is damaged, or the output exists.
    """
    source = pathlib.Path(settings.input)
    if not source.exists():
        raise InputError(f"--input={source}: no such folder")
    is_folder = source.is_dir() and not (source / "meta.json").exists()
    (from_delg if is_folder else to_delg)(settings)
