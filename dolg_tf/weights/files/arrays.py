"""Arrays in a file, checked before they are read; shared by all formats."""

import contextlib
import dataclasses
import errno
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import numpy as np

from dolg_tf.stage.config import InputError
from dolg_tf.stage.plain_pickle import Refused

# Little-endian storage of each dtype that a file may have; NumPy itself has no bfloat16.
DTYPES = {
    "bfloat16": "<u2",
    "bool": "<u1",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
    "int8": "<i1",
    "uint8": "<u1",
}
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array of a file that is not yet read.

    Attributes:
      shape: of the array.
      dtype: NumPy's name, or "bfloat16".
      read: reads it into a new array; bfloat16 becomes float32, which holds it exactly.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A file of arrays.

    Attributes:
      format: "PyTorch (zip)", "PyTorch (legacy)", "NumPy" or "safetensors".
      tensors: the state dict, in the order of the file.
      beside: names of other contents of the file, which are not read.
      values: what the pickle of a PyTorch file holds beside the state dict, by name, as
        `torch_pickle.read_pickle` returns it.
    """

    format: str
    tensors: dict[str, Tensor]
    beside: tuple[str, ...]
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Region:
    """Bytes of a file: how many, how to open them, and how many to skip first."""

    size: int
    open: Callable[[], contextlib.AbstractContextManager[IO[bytes]]]
    skip: int = 0


@contextlib.contextmanager
def refusing(path) -> Iterator[None]:
    """Turns the errors of bad content into an `InputError` that names the file."""
    try:
        yield
    except Refused as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): download the file again") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to before the beginning
            raise
        raise InputError(f"{path} is damaged ({error}): download the file again") from error


def quoted(name: str) -> str:
    """Returns a name from a file in a form that an error may print."""
    text = repr(name)
    return text if len(text) <= 200 else f"{text[:200]}...'"


def printable(name) -> str:
    """Returns a name from a file, quoted if it could upset a terminal."""
    return name if isinstance(name, str) and _is_plain(name) else quoted(name)


def _is_plain(name: str) -> bool:
    return name.isprintable() and len(name) <= 200


def file_region(path: pathlib.Path, start: int, size: int) -> Region:
    """Returns the region of `size` bytes from `start` on.

    Raises:
      Refused: when the file is too short.
    """
    if start + size > path.stat().st_size:
        raise Refused(f"is cut short: {start + size} bytes are needed; download the file again")

    @contextlib.contextmanager
    def open_at():
        with path.open("rb") as stream:
            stream.seek(start)
            yield stream

    return Region(size, open_at)


def _read(region: Region, first: int, size: int) -> bytearray:
    """Returns `size` bytes of a region from `first` on."""
    data, first = bytearray(size), first + region.skip
    with region.open() as stream, memoryview(data) as view:
        while first:
            passed = len(stream.read(min(_CHUNK, first)))
            if not passed:
                raise EOFError("fewer bytes than it says")
            first -= passed
        done = 0
        while done < size:
            chunk = stream.read(min(_CHUNK, size - done))
            if not chunk:
                raise EOFError("fewer bytes than it says")
            view[done : done + len(chunk)] = chunk
            done += len(chunk)
    return data


def _span(where: str, there: int, shape: tuple, strides: tuple, offset) -> int:
    """Returns the number of elements from the first to the last of an array.

    Raises:
      Refused: when they are not all among the `there` elements of the file, or are far apart.
    """
    if not all(type(n) is int and 0 <= n < 2**62 for n in [*shape, *strides, offset]):
        raise Refused(f"{where} has a negative or impossible shape, stride or offset")
    count = math.prod(shape)
    if count == 0:
        span, impossible = 0, math.prod(max(n, 1) for n in shape) >= 2**48
    else:
        span = 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        # An array must not have more elements than the file: one element with stride 0 would fill
        # any memory. Nor may they be so far apart that most of what is read is discarded.
        impossible = count > there or offset + span > there
    if impossible:
        raise Refused(
            f"{where} of shape {shape} needs more than the {there} numbers in the file: it is "
            "damaged, or the tensor must be saved again with .contiguous()"
        )
    if span > 16 * count + _CHUNK:
        raise Refused(f"{where} has elements that are far apart: save it again with .contiguous()")
    return span


def _decoded(data: bytearray, dtype: str, stored: np.dtype, shape: tuple, strides: tuple):
    """Returns the array whose elements, from first to last, are `data`."""
    flat = np.frombuffer(data or bytes(stored.itemsize), stored)
    steps = [step * stored.itemsize for step in strides]
    view = np.lib.stride_tricks.as_strided(flat, shape, steps)
    if dtype == "bfloat16":
        return np.asarray(view.astype(np.uint32, order="C") << 16).view(np.float32)
    if dtype == "bool":
        return np.asarray(view != 0)
    return np.asarray(view, stored.newbyteorder("="), order="C")


def lazy_tensor(
    path: pathlib.Path,
    name: str,
    region: Region,
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    offset: int = 0,
    big_endian: bool = False,
) -> Tensor:
    """Returns an array over a region, all of which must lie inside.

    Args:
      path: of the file, for errors while reading.
      name: of the array, for errors.
      region: that holds its bytes.
      dtype: a key of `DTYPES`.
      shape: of the array.
      strides: in elements; None: row-major.
      offset: of its first element, in elements.
      big_endian: byte order.

    Raises:
      Refused: when they are not; it names the array.
    """
    where, stored = f"tensor {quoted(name)}", np.dtype(DTYPES[dtype])
    if not _is_plain(name):
        raise Refused(f"{where} has an impossible name")
    if len(shape) > 32 or (strides is not None and len(strides) != len(shape)):
        raise Refused(f"{where} has an impossible number of axes")
    if strides is None:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    shape, strides = tuple(shape), tuple(strides)
    span = _span(where, region.size // stored.itemsize, shape, strides, offset)
    if big_endian:
        stored = stored.newbyteorder(">")

    def read() -> np.ndarray:
        with refusing(path):
            data = _read(region, offset * stored.itemsize if span else 0, span * stored.itemsize)
        return _decoded(data, dtype, stored, shape, strides)

    return Tensor(shape, dtype, read)
