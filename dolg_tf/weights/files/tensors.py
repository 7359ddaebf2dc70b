"""State dicts in files: one way in and one way out for all formats.

The format is recognised by content. Opening a file reads names, shapes and dtypes and checks them
against the bytes of the file. An array is read when it is asked for, so memory is bounded by what
the caller uses. Nothing in a file is ever run.
"""

import io
import json
import math
import os
import pathlib
import re
import struct
import tokenize
import zipfile
from collections.abc import Mapping

import numpy as np

from dolg_tf.stage import files
from dolg_tf.stage.config import InputError
from dolg_tf.stage.plain_pickle import Refused
from dolg_tf.weights.files.arrays import (
    DTYPES,
    Region,
    Tensor,
    TensorFile,
    file_region,
    lazy_tensor,
    quoted,
    refusing,
)
from dolg_tf.weights.files.torch import (
    TORCH_LEGACY_MAGIC,
    is_torch_pickle,
    read_torch_legacy,
    read_torch_zip,
    write_torch,
)
from dolg_tf.weights.files.zip import Archive

__all__ = ["Tensor", "TensorFile", "open_tensors", "write_tensors"]

# The headers of 50,000 tensors fit; safetensors' own limit is 100 MB.
_LARGEST_HEADER = 1 << 23
_SAFETENSORS = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U8": "uint8",
}


def open_tensors(path: str | os.PathLike) -> TensorFile:
    """Opens a state dict: PyTorch (zip or legacy), `.npz` or `.safetensors`.

    The state dict is the file's mapping itself, or its value under `model_state` (the authors'
    code), `state_dict` or `model`.

    Raises:
      InputError: naming the file and why it cannot be read. `Tensor.read` raises it, too.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file of weights")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(1024)
    with refusing(path):
        if head.startswith((b"PK\3\4", b"PK\5\6")):
            return _open_zip(path)
        if head.startswith(TORCH_LEGACY_MAGIC):
            return read_torch_legacy(path)
        # Before the others: the length of its header may look like the beginning of a pickle.
        length = struct.unpack("<Q", head[:8])[0] if head[8:9] == b"{" else None
        if length is not None and length <= _LARGEST_HEADER:
            return _open_safetensors(path, length)
        reason = _foreign(head)
        if reason is None and length is not None:
            reason = f"is not a safetensors file, or has a header of {length} bytes"
        raise Refused(reason or "is not a PyTorch, .npz or .safetensors file")


def _foreign(head: bytes) -> str | None:
    """Returns what a foreign file is, as far as its beginning shows."""
    start = head.lstrip().lower()
    if not head:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself: run `git lfs pull` where it was cloned"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page (HTML) saved under this name: download the file itself"
    if head[257:262] == b"ustar":
        return (
            "is a tar archive: PyTorch's format before 2017, or one to unpack first; save the "
            "weights again with a newer torch.save"
        )
    if head.startswith(b"\x93NUMPY"):
        return "is a single array: save all arrays by name with numpy.savez"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file (of Keras?), not a PyTorch checkpoint"
    if head.startswith(b"\x1f\x8b"):
        return "is compressed with gzip: unpack it first"
    if head.startswith((b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")):
        return "is a Python pickle that torch.save did not write; save with torch.save or as .npz"
    if re.fullmatch(rb"[\t\n\r\x20-\x7e\x80-\xff]+", head):
        return "is a text file"
    return None


def _open_zip(path: pathlib.Path) -> TensorFile:
    archive = Archive(path)
    if any(map(is_torch_pickle, archive.names)):
        return read_torch_zip(path, archive)
    if archive.names and all(name.endswith(".npy") for name in archive.names):
        tensors = {name[:-4]: _npy(path, archive, name) for name in archive.names}
        return TensorFile("NumPy", tensors, ())
    raise Refused("is a zip archive, but neither PyTorch (no data.pkl) nor .npz")


# --- NumPy ---------------------------------------------------------------------------


def _npy(path: pathlib.Path, archive: Archive, name: str) -> Tensor:
    region = archive.region(name)
    with region.open() as stream:
        head = io.BytesIO(stream.read(4096))
    where = f"array {quoted(name[:-4])}"
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        read = readers.get(np.lib.format.read_magic(head))
        if read is None:
            raise Refused(f"{where} has an unsupported .npy version")
        shape, by_columns, dtype = read(head, max_header_size=2000)
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise Refused(f"{where} has no valid .npy header ({str(error)[:100]})") from error
    if dtype.hasobject:
        raise Refused(f"{where} holds pickled Python objects, which are never run here")
    if dtype.name not in DTYPES:
        raise Refused(f"{where} has dtype {dtype.name!r:.100}, which weights do not have")
    body = Region(region.size - head.tell(), region.open, head.tell())
    strides = None
    if by_columns:
        strides = [math.prod(shape[:i]) for i in range(len(shape))]
    big_endian = dtype.str.startswith(">")
    if body.size != math.prod(shape) * dtype.itemsize:
        raise Refused(f"{where} of shape {shape} cannot have {body.size} bytes: download it again")
    return lazy_tensor(path, name[:-4], body, dtype.name, shape, strides, big_endian=big_endian)


def _write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # dated 1980: the same arrays, the same file
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


# --- safetensors ---------------------------------------------------------------------


def _open_safetensors(path: pathlib.Path, length: int) -> TensorFile:
    import safetensors

    try:
        # It checks offsets, sizes and overlaps. The arrays are read like those of other formats:
        # its own NumPy reader knows bfloat16 only where ml_dtypes was imported before.
        with safetensors.safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(length))
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise Refused(f"is a damaged safetensors file ({error}): download it again") from error
    beside = ("__metadata__",) if header.pop("__metadata__", None) else ()
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS:
            raise Refused(
                f"tensor {quoted(name)} has dtype {entry['dtype']}, which weights do not have"
            )
        begin, end = entry["data_offsets"]
        region = file_region(path, 8 + length + begin, end - begin)
        dtype = _SAFETENSORS[entry["dtype"]]
        tensors[name] = lazy_tensor(path, name, region, dtype, entry["shape"])
    if not tensors:
        raise Refused("holds no tensors")
    return TensorFile("safetensors", tensors, beside)


def _write_safetensors(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(arrays), path)


# --- writing -------------------------------------------------------------------------

_WRITERS = {
    ".pyth": write_torch,
    ".pth": write_torch,
    ".pt": write_torch,
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}


def check_suffix(path: pathlib.Path, beside: bool = False) -> None:
    """Raises InputError if `write_tensors` does not know the suffix.

    Args:
      path: of the file.
      beside: whether there are values beside the tensors, which only PyTorch's format holds.
    """
    known = [suffix for suffix, write in _WRITERS.items() if write is write_torch or not beside]
    if path.suffix not in known:
        why = "; the other formats hold tensors alone" if beside else ""
        raise InputError(f"{path} must end in one of {', '.join(known)}{why}")


def write_tensors(
    path: str | os.PathLike,
    arrays: Mapping[str, np.ndarray],
    beside: Mapping[str, object] | None = None,
) -> None:
    """Writes a state dict, whole or not at all; the same arrays give the same bytes.

    Args:
      path: of the file. Its suffix gives the format: .pyth, .pth, .pt (PyTorch's zip format, which
        `torch.load(path, weights_only=True)` reads), .npz or .safetensors.
      arrays: by name, with the dtypes of `DTYPES` except bfloat16.
      beside: plain values by name, stored beside the state dict; see `check_suffix`.

    Raises:
      InputError: on another suffix or dtype.
    """
    path = pathlib.Path(path)
    check_suffix(path, bool(beside))
    plain = {}
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.name not in DTYPES or array.dtype.name == "bfloat16":
            raise InputError(f"{name} has dtype {array.dtype}, which {path.suffix} cannot hold")
        # Not np.ascontiguousarray, which adds an axis to a scalar.
        plain[name] = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    with files.atomic_path(path) as temporary:
        _WRITERS[path.suffix](temporary, plain, *([beside] if beside else []))
