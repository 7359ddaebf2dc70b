"""A SavedModel in TensorFlow's C++ loader, TF Serving's, through the C library in the wheel.

`import tensorflow` takes longer than most of what is asked of a model, so it is not imported. Where
it has been, both run on the same library, with the same devices and threads.

Python's loader restores objects, the C++ loader runs the graph: a model may load in one and not in
the other.

Reference: https://www.tensorflow.org/install/lang_c, tensorflow/c/c_api.h.
"""

import contextlib
import ctypes
import functools
import importlib.machinery
import math
import os
import pathlib
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from dolg_tf.runtime.signatures import Signature, Tensor, read_signatures
from dolg_tf.stage import files, quiet
from dolg_tf.stage.config import InputError


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


_FILES = {"linux": "libtensorflow_cc.so.2", "darwin": "libtensorflow_cc.2.dylib"}
_DTYPES = {  # by TensorFlow's numbers
    **{1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 5: np.int16, 6: np.int8},
    **{7: object, 9: np.int64, 10: np.bool_, 17: np.uint16, 19: np.float16},
    **{22: np.uint32, 23: np.uint64},
}
_STRING = 7
_OUT_OF_MEMORY = 8  # a status, RESOURCE_EXHAUSTED
_STRING_SIZE = 24  # sizeof(TF_TString)

_pointer, _int, _size, _text = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_char_p
_PROTOTYPES = {  # name: (result, arguments)
    "TF_NewStatus": (_pointer, []),
    "TF_DeleteStatus": (None, [_pointer]),
    "TF_GetCode": (_int, [_pointer]),
    "TF_Message": (_text, [_pointer]),
    "TF_NewGraph": (_pointer, []),
    "TF_DeleteGraph": (None, [_pointer]),
    "TF_NewSessionOptions": (_pointer, []),
    "TF_DeleteSessionOptions": (None, [_pointer]),
    "TF_LoadSessionFromSavedModel": (
        _pointer,
        # Session and run options, directory; tags, count; graph, metagraph, status.
        [_pointer, _pointer, _text, _pointer, _int, *[_pointer] * 3],
    ),
    "TF_SessionRun": (
        None,
        # Session, run options; feeds: tensors, values, count; fetches; targets, count;
        # metadata, status.
        [*[_pointer] * 4, _int, _pointer, _pointer, _int, _pointer, _int, _pointer, _pointer],
    ),
    "TF_NewSession": (_pointer, [_pointer] * 3),
    "TF_SessionListDevices": (_pointer, [_pointer] * 2),
    "TF_DeviceListCount": (_int, [_pointer]),
    "TF_DeviceListType": (_text, [_pointer, _int, _pointer]),
    "TF_DeleteDeviceList": (None, [_pointer]),
    "TF_CloseSession": (None, [_pointer, _pointer]),
    "TF_DeleteSession": (None, [_pointer, _pointer]),
    "TF_GraphOperationByName": (_pointer, [_pointer, _text]),
    "TF_AllocateTensor": (_pointer, [_int, _pointer, _int, _size]),
    "TF_DeleteTensor": (None, [_pointer]),
    "TF_TensorData": (_pointer, [_pointer]),
    "TF_TensorType": (_int, [_pointer]),
    "TF_TensorByteSize": (_size, [_pointer]),
    "TF_NumDims": (_int, [_pointer]),
    "TF_Dim": (ctypes.c_int64, [_pointer, _int]),
    "TF_StringInit": (None, [_pointer]),
    "TF_StringAssignView": (None, [_pointer, _text, _size]),
    "TF_StringGetDataPointer": (_pointer, [_pointer]),
    "TF_StringGetSize": (_size, [_pointer]),
}


class _Library(NamedTuple):
    """The C library, and whether it sees a GPU."""

    c: ctypes.CDLL
    has_gpu: bool


@functools.cache
def _library() -> _Library:
    """Loads the C library, the one that Python's TensorFlow runs on.

    Raises:
      InputError: when there is none.
    """
    # Not `importlib.util.find_spec`, which `hush_tensorflow` would take for the import.
    spec = importlib.machinery.PathFinder.find_spec("tensorflow")
    folders = [*spec.submodule_search_locations] if spec else []
    paths = [pathlib.Path(folder, _FILES.get(sys.platform, "")) for folder in folders]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(
            f"no C library of TensorFlow in {folders}: models run on it, on Linux and macOS; "
            "`pip install dolg_tf` installs it there"
        )
    with quiet.quietly():
        c = ctypes.CDLL(str(found))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(c, name)
            function.restype, function.argtypes = result, arguments
        return _Library(c, "GPU" in _devices(c))  # the first look for devices says the rest


def _devices(c: ctypes.CDLL) -> list[str]:
    """Returns the kind of each device."""
    graph, options = c.TF_NewGraph(), c.TF_NewSessionOptions()
    with _status(c) as status:
        session = c.TF_NewSession(graph, options, status)
    c.TF_DeleteSessionOptions(options)
    with _status(c) as status:
        devices = c.TF_SessionListDevices(session, status)
    kinds = []
    for i in range(c.TF_DeviceListCount(devices)):
        with _status(c) as status:
            kinds.append(c.TF_DeviceListType(devices, i, status).decode())
    c.TF_DeleteDeviceList(devices)
    _free(c, session, graph)
    return kinds


def has_gpu() -> bool:
    """Tells whether TensorFlow sees a GPU, if this process has loaded it, by whatever way."""
    loaded = "tensorflow" in sys.modules or _library.cache_info().currsize
    return bool(loaded) and _library().has_gpu


@contextlib.contextmanager
def _status(c: ctypes.CDLL) -> Iterator[int]:
    """Gives the block a status, and raises what a function says by it."""
    status = c.TF_NewStatus()
    try:
        yield status
        if code := c.TF_GetCode(status):
            message = c.TF_Message(status).decode(errors="replace")
            raise (MemoryError if code == _OUT_OF_MEMORY else RuntimeError)(message)
    finally:
        c.TF_DeleteStatus(status)


def _free(c: ctypes.CDLL, session: int, graph: int) -> None:
    with _status(c) as status:
        c.TF_CloseSession(session, status)
    with _status(c) as status:
        c.TF_DeleteSession(session, status)
    c.TF_DeleteGraph(graph)


class CppSession:
    """A SavedModel loaded by the C++ loader; several threads may run it at once.

    Args:
      path: the SavedModel directory.

    Attributes:
      signatures: by name.

    Raises:
      InputError: when there is no C library of TensorFlow.
      OSError, ValueError: when `saved_model.pb` cannot be read, or is damaged.
      MemoryError: when the model is too large for the memory.
      RuntimeError: with TensorFlow's message, when the model does not load.

    Example:
      with CppSession("saved_model") as session:
          session.run("images", {"images": photos, "scales": scales})["descriptors"]
    """

    signatures: dict[str, Signature]

    def __init__(self, path: files.Path):
        self.signatures = read_signatures(path)
        self._c = c = _library().c
        options, tags = c.TF_NewSessionOptions(), (ctypes.c_char_p * 1)(b"serve")
        self._graph = c.TF_NewGraph()
        try:
            with _status(c) as status:
                self._session = c.TF_LoadSessionFromSavedModel(
                    *(options, None, os.fsencode(path), tags, 1, self._graph, None, status)
                )
        except (MemoryError, RuntimeError):
            c.TF_DeleteGraph(self._graph)
            raise
        finally:
            c.TF_DeleteSessionOptions(options)
        self._freed = weakref.finalize(self, _free, c, self._session, self._graph)
        self._freed.atexit = False  # a thread may be running it

    def run(self, signature: str, inputs: Mapping[str, npt.ArrayLike]) -> dict[str, np.ndarray]:
        """Runs a signature.

        Args:
          signature: its name.
          inputs: arrays by the signature's input names, of its dtypes; strings as arrays of
            `bytes`. An input with a default may be left out.

        Returns:
          Arrays by the signature's output names; strings as object arrays of `bytes`.

        Raises:
          KeyError: on a signature or an input that the model does not have.
          TypeError: on an array of another dtype.
          MemoryError: when the memory does not suffice.
          RuntimeError: when the session is closed, or with TensorFlow's message when the run fails.
        """
        if not self._freed.alive:
            raise RuntimeError("the session is closed; open the SavedModel again")
        definition = self.signatures[signature]
        for name in inputs:
            if name not in definition.inputs:
                raise KeyError(f"{name}: {signature} takes {sorted(definition.inputs)}")
        tensors, results = [], (ctypes.c_void_p * len(definition.outputs))()
        alive = []  # the bytes that string tensors point to
        try:
            for name, array in inputs.items():
                tensors.append(self._tensor(name, definition.inputs[name].dtype, array, alive))
            feeds = self._endpoints(definition.inputs[name] for name in inputs)
            fetches = self._endpoints(definition.outputs.values())
            with _status(self._c) as status:
                self._c.TF_SessionRun(
                    *(self._session, None),
                    *(feeds, (ctypes.c_void_p * len(tensors))(*tensors), len(tensors)),
                    *(fetches, results, len(results), None, 0, None, status),
                )
            return {
                name: self._array(name, tensor)
                for name, tensor in zip(definition.outputs, results, strict=True)
            }
        finally:
            for tensor in (*tensors, *results):
                if tensor:
                    self._c.TF_DeleteTensor(tensor)

    def close(self) -> None:
        """Frees the model, which cannot be run afterwards. No thread may be running it."""
        self._freed()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _endpoints(self, tensors: Iterable[Tensor]) -> ctypes.Array:
        """Returns the tensors that a signature names as a C array."""
        outputs = []
        for tensor in tensors:
            name, _, index = tensor.name.rpartition(":")
            operation = self._c.TF_GraphOperationByName(self._graph, name.encode())
            if not operation:
                raise RuntimeError(f"the signature names {name!r}, which is not in the graph")
            outputs.append(_Output(operation, int(index)))
        return (_Output * len(outputs))(*outputs)

    def _tensor(self, name: str, dtype: int, array: npt.ArrayLike, alive: list[bytes]) -> int:
        """Returns a C tensor, to be deleted; `alive` must be kept until then."""
        strings, expected = dtype == _STRING, _numpy_dtype(name, dtype)
        array = np.asarray(array, object if strings else None)
        if array.dtype != expected:
            raise TypeError(f"{name} is {array.dtype}, but the signature takes {expected}")
        size = array.size * _STRING_SIZE if strings else array.nbytes
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        tensor = self._c.TF_AllocateTensor(dtype, shape, array.ndim, size)
        data = self._c.TF_TensorData(tensor)
        if not strings:
            array = np.ascontiguousarray(array)
            ctypes.memmove(data, array.ctypes.data, size)
            return tensor
        for i, value in enumerate(array.ravel().tolist()):
            self._c.TF_StringInit(data + i * _STRING_SIZE)
            self._c.TF_StringAssignView(data + i * _STRING_SIZE, value, len(value))
            alive.append(value)
        return tensor

    def _array(self, name: str, tensor: int) -> np.ndarray:
        """Returns a copy of a C tensor."""
        dtype = self._c.TF_TensorType(tensor)
        shape = [self._c.TF_Dim(tensor, i) for i in range(self._c.TF_NumDims(tensor))]
        data = self._c.TF_TensorData(tensor)
        if dtype != _STRING:
            array = np.empty(shape, _numpy_dtype(name, dtype))
            ctypes.memmove(array.ctypes.data, data, array.nbytes)
            return array
        strings = np.empty(math.prod(shape), object)
        for i in range(strings.size):
            at = data + i * _STRING_SIZE
            length = self._c.TF_StringGetSize(at)
            strings[i] = ctypes.string_at(self._c.TF_StringGetDataPointer(at), length)
        return strings.reshape(shape)


def _numpy_dtype(name: str, dtype: int) -> np.dtype:
    if dtype not in _DTYPES:
        raise TypeError(f"{name} has TensorFlow's dtype {dtype}, which NumPy does not have")
    return np.dtype(_DTYPES[dtype])
