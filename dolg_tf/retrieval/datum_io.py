"""DELF's `.delg_global` and `.delg_local` files <-> descriptor sets and local feature sets.

    dolg delf --input=runs/index --local=runs/index.local --output=features/index

A `.delg_global` file is a DatumProto with one descriptor, `.delg_local` and `.delf` files hold
local features, see `local.delf_files`. DELF's perform_retrieval.py looks for both in one folder.
`--input` may be either form; `--output` becomes the other.

Reference: `datum.proto` and `datum_io.py` of DELF (tensorflow/models, research/delf).
"""

import dataclasses
import logging
import math
import pathlib

import numpy as np

from dolg_tf.data import protos
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.local import delf_files, feature_set
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.local.shards import beside
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

    input: str = option(
        "descriptor set, local feature set, or folder with DELF's files ID.delg_global, "
        "ID.delg_local or ID.delf"
    )
    output: str = option(
        "result: such a folder, or a set; of a folder with files of both kinds, the local feature "
        "set goes beside the descriptor set, into OUTPUT.local"
    )
    local: str = option(
        "local feature set whose files go into the same folder as those of --input, as DELF's "
        "perform_retrieval.py wants them; empty: none",
        "",
    )
    local_suffix: str = option(
        "suffix of the files of local features to write",
        delf_files.SUFFIXES[0],
        choices=delf_files.SUFFIXES,
    )
    model_hash: str = option(
        "a word for the network behind a folder that DELF wrote: sets with different words are not "
        "compared; a folder written from a descriptor set knows its own",
        "",
    )
    overwrite: bool = option("replace an existing output of the same kind", False)


def to_delg(settings: DatumConfig) -> None:
    """Writes the files of a descriptor set, of a local one, or of both."""
    source, found, about = pathlib.Path(settings.input), None, {}
    if (source / "offsets.npy").exists():
        if settings.local:
            raise InputError(f"--local={settings.local}: --input={source} is a local set already")
        local = feature_set.read(source)
    else:
        found = descriptors.read(settings.input, settings.normalize)
        local = feature_set.read(settings.local) if settings.local else None
        if found.ids is None:
            raise InputError(
                f"--input={settings.input} has no ids to name the files by; give a descriptor set"
            )
        about = {"ids": list(found.ids), "meta": found.meta}
    if found is not None and local is not None:
        _check_of_one_model(found, local)
    files.check_output(settings.output, settings.overwrite, _META)
    with files.atomic_path(settings.output) as temporary:
        temporary.mkdir()
        if found is not None:
            rows = (encode(row) for _, block in blocks(found.descriptors, _BLOCK) for row in block)
            delf_files.write_files(temporary, found.ids, rows, SUFFIX, source)
        if local is not None:
            made = delf_files.encoded(local)
            delf_files.write_files(temporary, local.ids, made, settings.local_suffix, local.source)
            about["local"] = delf_files.about_set(local)
        files.write_json(temporary / _META, {"format_version": _META_VERSION, **about})
    log.info("%s: files of %d photos", settings.output, len(found or local))


def _check_of_one_model(found: DescriptorSet, local: LocalFeatureSet) -> None:
    """Makes sure that both sets are of the same photos and of one model."""
    local.rows_of(found.ids)
    one, other = found.meta["model_hash"], local.meta["model_hash"]
    if one != other or len(local) != len(found):
        raise InputError(
            f"{local.source} has {len(local)} photos of model {other}, {found.source} "
            f"{len(found)} of {one}; give the sets of one extraction"
        )


def _about(folder: pathlib.Path, written: dict, suffix: str, model_hash: str) -> dict:
    """Returns ids and metadata of the set that the files of a suffix become.

    Args:
      folder: of the files.
      written: what its `dolg_meta.json` says of them; empty: DELF wrote it.
      suffix: of the files.
      model_hash: given by the user, or "".
    """
    found, path = delf_files.listed(folder, suffix), folder / _META
    if not written:
        if not model_hash:
            raise InputError(f"{folder} does not say which network made it; give --model_hash=WORD")
        # DELF's configuration decided on crops and scales: not known here.
        keys = ("scales", "crop", "max_side", "whitening")
        if suffix != SUFFIX:
            keys += ("kind", "reduction", "threshold", "max_features")
        about = dict.fromkeys(keys) | {"model_hash": model_hash, "bad": []}
        return {"ids": found, "meta": about | {"image_root": str(folder.resolve())}}
    ids, meta = written.get("ids"), written.get("meta")
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
    return written


class _Files:
    """Rows in one file each, read when they are asked for."""

    def __init__(self, folder: pathlib.Path, ids: list[str]):
        self._paths = [delf_files.file_of(folder, id_, SUFFIX, folder) for id_ in ids]
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


def _suffixes(folder: pathlib.Path) -> list[str]:
    """Returns the suffixes of the files of a folder, the global one first.

    Raises:
      InputError: when there are no such files, or two kinds of local ones.
    """
    there = [
        suffix for suffix in (SUFFIX, *delf_files.SUFFIXES) if delf_files.listed(folder, suffix)
    ]
    if not there:
        names = " or ".join(f"ID{suffix}" for suffix in (SUFFIX, *delf_files.SUFFIXES))
        raise InputError(
            f"--input={folder} is neither a descriptor set (no meta.json) nor a folder with files "
            f"named {names}"
        )
    if set(delf_files.SUFFIXES) <= set(there):
        raise InputError(
            f"--input={folder} has files {' and '.join(delf_files.SUFFIXES)}; keep one kind of "
            "local features in a folder"
        )
    return there


def from_delg(settings: DatumConfig) -> None:
    """Joins the files of a folder into a descriptor set, a local one, or both."""
    folder, output = pathlib.Path(settings.input), pathlib.Path(settings.output)
    if settings.local:
        raise InputError(f"--local={settings.local} is for sets; {folder} is a folder of files")
    suffixes, path = _suffixes(folder), folder / _META
    written = files.read_json(path, _META_VERSION) if path.exists() else {}
    of_local = written.get("local", {}) if isinstance(written.get("local", {}), dict) else {}
    parts = []
    for suffix in suffixes:
        says = written if suffix == SUFFIX else of_local
        if written and not says:
            raise InputError(f"{path}: says nothing of the files {suffix}; write the folder again")
        about = _about(folder, says, suffix, settings.model_hash)
        place = beside(output) if suffix != SUFFIX and len(suffixes) > 1 else output
        (descriptors if suffix == SUFFIX else feature_set).check_output(place, settings.overwrite)
        parts.append((suffix, about, place))
    for suffix, about, place in reversed(parts):
        if suffix != SUFFIX:
            delf_files.write_set(folder, about, suffix, place, settings.normalize)
            continue
        ids = about["ids"]
        found = DescriptorSet(tuple(ids), _Files(folder, ids), about["meta"])
        descriptors.write(place, found, normalize=settings.normalize)
        log.info("%s: %d descriptors", place, len(ids))


def convert(settings: DatumConfig) -> None:
    """Converts a descriptor set, or a local one, to a folder of DELF's files, or back.

    A folder written here keeps the order of the rows and their origin in `dolg_meta.json`, so
    converting it back gives the same sets. Values are float32 in both forms.

    Raises:
      InputError: when the input is neither, a file is damaged, or the output exists.
    """
    source = pathlib.Path(settings.input)
    if not source.exists():
        raise InputError(f"--input={source}: no such folder")
    is_folder = source.is_dir() and not (source / "meta.json").exists()
    (from_delg if is_folder else to_delg)(settings)
