"""PyTorch's files without PyTorch: the zip format since 1.6, and the one before it."""

import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from dolg_tf.stage.plain_pickle import Refused
from dolg_tf.weights.files.arrays import (
    DTYPES,
    Region,
    TensorFile,
    file_region,
    lazy_tensor,
    printable,
    quoted,
)
from dolg_tf.weights.files.torch_pickle import STORAGES, Storage, View, read_pickle
from dolg_tf.weights.files.zip import Archive

# Keys under which training code stores the state dict: the authors'; Lightning and timm; others.
STATE_KEYS = ("model_state", "state_dict", "model")
TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_ALIGNMENT = 64  # of torch.save, for mapping a file into memory


def _views(mapping) -> bool:
    return type(mapping) is dict and any(type(value) is View for value in mapping.values())


def _state_dict(top) -> tuple[dict[str, View], tuple[str, ...], dict]:
    """Returns the tensors of the state dict, the names of all else, and what is beside it."""
    if type(top) is not dict:
        raise Refused(f"holds a {type(top).__name__}, not a state dict of names and tensors")
    where = next((key for key in STATE_KEYS if _views(top.get(key))), None)
    state = top if where is None else top[where]
    views = {name: view for name, view in state.items() if type(view) is View}
    if not views:
        raise Refused(f"holds no tensors, neither at the top nor under {', '.join(STATE_KEYS)}")
    for name in views:
        if type(name) is not str:
            raise Refused(f"its state dict has a {type(name).__name__} for a name")
    beside = [printable(name) for name in top if name != where and name not in views]
    if where is not None:
        beside += [f"{where}.{printable(name)}" for name in state if name not in views]
    values = {name: value for name, value in top.items() if name != where and name not in views}
    return views, tuple(beside), values


def _item(storage: Storage) -> int:
    """Returns the bytes of an element."""
    return np.dtype(DTYPES[storage.dtype]).itemsize


def _tensor_file(path, format, top, regions, big_endian=False) -> TensorFile:
    """Returns the contents of a file; `regions` gives the bytes of a storage."""
    views, beside, values = _state_dict(top)
    tensors = {}
    for name, view in views.items():
        storage = view.storage
        region = regions(storage)
        if region.size != storage.size * _item(storage):
            raise Refused(
                f"tensor {quoted(name)} lies in {storage.size} numbers of {storage.dtype}, but the "
                f"file has {region.size} bytes for them: download the file again"
            )
        if type(view.offset) is not int or view.offset < 0:
            raise Refused(f"tensor {quoted(name)} has an impossible offset")
        if storage.view_size < storage.size:
            region = Region((storage.first + storage.view_size) * _item(storage), region.open)
        offset = storage.first + view.offset
        tensors[name] = lazy_tensor(
            path, name, region, storage.dtype, view.shape, view.strides, offset, big_endian
        )
    return TensorFile(format, tensors, beside, values)


# --- zip -----------------------------------------------------------------------------


def is_torch_pickle(name: str) -> bool:
    """Returns whether an entry of a zip archive marks it as PyTorch's format."""
    return name == "data.pkl" or name.endswith("/data.pkl")


def read_torch_zip(path: pathlib.Path, archive: Archive) -> TensorFile:
    """Returns the contents of an archive that torch.save wrote.

    Raises:
      Refused: when it is TorchScript, damaged, or holds no state dict.
    """
    roots = [name.removesuffix("data.pkl") for name in archive.names if is_torch_pickle(name)]
    if len(roots) != 1:
        raise Refused("the zip archive has more than one data.pkl")
    root = roots[0]
    if any(
        name == f"{root}constants.pkl" or name.startswith(f"{root}code/") for name in archive.names
    ):
        raise Refused(
            "is a TorchScript program, not a checkpoint: save the weights alone with "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER)"
        )
    order = b"little"
    if f"{root}byteorder" in archive.names:
        order = archive.read(f"{root}byteorder", 16)
    if order not in (b"little", b"big"):
        raise Refused("does not say whether its bytes are little or big endian")
    with archive.region(f"{root}data.pkl").open() as stream:
        top, _ = read_pickle(stream)
    regions = {}

    def region(storage):
        if storage.key not in regions:
            regions[storage.key] = archive.region(f"{root}data/{storage.key}")
        return regions[storage.key]

    return _tensor_file(path, "PyTorch (zip)", top, region, order == b"big")


# --- legacy --------------------------------------------------------------------------


def read_torch_legacy(path: pathlib.Path) -> TensorFile:
    """Returns the contents of a file that torch.save before 1.6 wrote.

    It consists of five pickles (magic number, protocol, system, value, keys of the storages), then
    each storage: its size as int64 and its numbers, little-endian.

    Raises:
      Refused: when it is damaged, or holds no state dict.
    """
    with path.open("rb") as file:
        file.seek(len(TORCH_LEGACY_MAGIC))
        if read_pickle(file)[0] != _LEGACY_PROTOCOL:
            raise Refused("has another version of PyTorch's legacy format than 1001")
        read_pickle(file)
        top, storages = read_pickle(file)
        keys, _ = read_pickle(file)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise Refused("has no list of its storages: download the file again")
        regions = _legacy_storages(path, file, keys, storages)

    def region(storage):
        if storage.key not in regions:
            raise Refused(f"has no storage {quoted(storage.key)}: download the file again")
        return regions[storage.key]

    return _tensor_file(path, "PyTorch (legacy)", top, region)


def _legacy_storages(path, file, keys, storages) -> dict[str, Region]:
    regions = {}
    for key in keys:
        header = file.read(8)
        if len(header) < 8:
            raise Refused("is cut short: download the file again")
        count = struct.unpack("<q", header)[0]
        if key not in storages or count != storages[key].size:
            raise Refused(f"contradicts itself on storage {quoted(key)}: download the file again")
        regions[key] = file_region(path, file.tell(), count * _item(storages[key]))
        file.seek(regions[key].size, os.SEEK_CUR)
    return regions


# --- writing -------------------------------------------------------------------------


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values) -> bytes:
    return b"(" + b"".join(_integer(value) for value in values) + b"t"


def _plain(value) -> bytes:
    """Returns the pickle of a plain value, without its head and its end."""
    return pickle.dumps(value, 2)[2:-1]


def _pickled(arrays: Mapping[str, np.ndarray], beside: Mapping[str, object]) -> bytes:
    """Returns the pickle of {key: OrderedDict of tensors, **beside}, the n-th in storage "n"."""
    kinds = {dtype: kind for kind, dtype in STORAGES.items()}
    empty = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02}", _text(STATE_KEYS[1 if beside else 0]), empty, b"("]
    for number, (name, array) in enumerate(arrays.items()):
        kind = kinds[array.dtype.name]
        strides = [step // array.itemsize for step in array.strides]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(("]
        parts += [_text("storage"), f"ctorch\n{kind}\n".encode(), _text(str(number)), _text("cpu")]
        parts += [_integer(array.size), b"tQ", _integer(0), _integers(array.shape)]
        parts += [_integers(strides), b"\x89", empty, b"tR"]
    parts.append(b"us")
    for name, value in beside.items():
        parts += [_plain(name), _plain(value), b"s"]
    return b"".join([*parts, b"."])


def _store(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(f"archive/{name}")  # dated 1980: the same arrays, the same file
    header = 30 + len(entry.filename) + 4
    padding = -(archive.fp.tell() + header) % _ALIGNMENT
    entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    archive.writestr(entry, data)


def write_torch(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], beside: Mapping[str, object] | None = None
) -> None:
    """Writes a file that `torch.load(path, weights_only=True)` reads.

    The state dict is stored under `model_state`, as by the code of DOLG's authors; with values
    beside it under `state_dict`, as by that of HOW's.

    Args:
      path: of the file.
      arrays: by name, little-endian and row-major.
      beside: numbers, text, None, lists and dicts of them, by name.
    """
    with zipfile.ZipFile(path, "w") as archive:
        _store(archive, "data.pkl", _pickled(arrays, beside or {}))
        _store(archive, "byteorder", b"little")
        for number, array in enumerate(arrays.values()):
            _store(archive, f"data/{number}", array.tobytes())
        _store(archive, "version", b"3\n")
