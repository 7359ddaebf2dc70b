"""A SavedModel in TensorFlow's C++ loader, TF Serving's, through the C library in the wheel.

Python's loader restores objects, the C++ loader runs the graph: a model may load in one and not in
the other.

Reference: https://www.tensorflow.org/install/lang_c, tensorflow/c/c_api.h.
"""

import ctypes
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from dolg_tf.stage import files


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    )


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


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
    "TF_NewBuffer": (ctypes.POINTER(_Buffer), []),
    "TF_DeleteBuffer": (None, [ctypes.POINTER(_Buffer)]),
    "TF_LoadSessionFromSavedModel": (
        _pointer,
        [_pointer, _pointer, _text, _pointer, _int, _pointer, ctypes.POINTER(_Buffer), _pointer],
    ),
    "TF_SessionRun": (
        None,
        # Session, run options; feeds: tensors, values, count; fetches; targets, count;
        # metadata, status.
        [*[_pointer] * 4, _int, _pointer, _pointer, _int, _pointer, _int, _pointer, _pointer],
    ),
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


@functools.cache
def _library() -> ctypes.CDLL:
    """Returns the C library that Python's TensorFlow runs on."""
    library = ctypes.CDLL(str(pathlib.Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"))
    for name, (result, arguments) in _PROTOTYPES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


class CppSession:
    """A SavedModel loaded by the C++ loader; several threads may run it at once.

    Args:
      path: the SavedModel directory.

    Attributes:
      signatures: by name, TensorFlow's `SignatureDef`: `inputs` and `outputs` have dtype and shape
        of each tensor.

    Raises:
      RuntimeError: with TensorFlow's message, when the model does not load.

    Example:
      with CppSession("saved_model") as session:
          session.run("images", {"images": photos, "scales": scales})["descriptors"]
    """

    signatures: dict[str, meta_graph_pb2.SignatureDef]

    def __init__(self, path: files.Path):
        self._c = _library()
        self._graph = self._c.TF_NewGraph()
        options, meta_graph = self._c.TF_NewSessionOptions(), self._c.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        try:
            self._session = self._checked(
                self._c.TF_LoadSessionFromSavedModel,
                *(options, None, str(path).encode(), tags, 1, self._graph, meta_graph),
            )
            data = ctypes.string_at(meta_graph.contents.data, meta_graph.contents.length)
        except RuntimeError:
            self._c.TF_DeleteGraph(self._graph)
            raise
        finally:
            self._c.TF_DeleteBuffer(meta_graph)
            self._c.TF_DeleteSessionOptions(options)
        meta = meta_graph_pb2.MetaGraphDef.FromString(data)
        self.signatures = {
            name: signature
            for name, signature in meta.signature_def.items()
            if not name.startswith("__")  # the loader's own
        }

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
          RuntimeError: when the session is closed, or with TensorFlow's message when the run fails.
        """
        if self._session is None:
            raise RuntimeError("the session is closed; open the SavedModel again")
        definition = self.signatures[signature]
        for name in inputs:
            if name not in definition.inputs:  # looking it up would add it
                raise KeyError(f"{name}: {signature} takes {sorted(definition.inputs)}")
        tensors, results = [], (ctypes.c_void_p * len(definition.outputs))()
        alive = []  # the bytes that string tensors point to
        try:
            for name, array in inputs.items():
                tensors.append(self._tensor(name, definition.inputs[name].dtype, array, alive))
            feeds = self._endpoints(definition.inputs[name] for name in inputs)
            fetches = self._endpoints(definition.outputs.values())
            self._checked(
                self._c.TF_SessionRun,
                *(self._session, None),
                *(feeds, (ctypes.c_void_p * len(tensors))(*tensors), len(tensors)),
                *(fetches, results, len(results), None, 0, None),
            )
            return {
                name: self._array(tensor)
                for name, tensor in zip(definition.outputs, results, strict=True)
            }
        finally:
            for tensor in (*tensors, *results):
                if tensor:
                    self._c.TF_DeleteTensor(tensor)

    def close(self) -> None:
        """Frees the model, which cannot be run afterwards. No thread may be running it."""
        if self._session is not None:
            self._checked(self._c.TF_CloseSession, self._session)
            self._checked(self._c.TF_DeleteSession, self._session)
            self._c.TF_DeleteGraph(self._graph)
            self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _checked(self, function: Callable, *arguments: Any) -> Any:
        """Calls a function whose last argument is a status."""
        status = self._c.TF_NewStatus()
        try:
            result = function(*arguments, status)
            if self._c.TF_GetCode(status):
                raise RuntimeError(self._c.TF_Message(status).decode(errors="replace"))
            return result
        finally:
            self._c.TF_DeleteStatus(status)

    def _endpoints(self, infos: Iterable[meta_graph_pb2.TensorInfo]) -> ctypes.Array:
        """Returns the tensors that a signature names, "operation:index", as a C array."""
        outputs = []
        for info in infos:
            name, _, index = info.name.rpartition(":")
            operation = self._c.TF_GraphOperationByName(self._graph, name.encode())
            if not operation:
                raise RuntimeError(f"the signature names {name!r}, which is not in the graph")
            outputs.append(_Output(operation, int(index)))
        return (_Output * len(outputs))(*outputs)

    def _tensor(self, name: str, dtype: int, array: npt.ArrayLike, alive: list[bytes]) -> int:
        """Returns a C tensor, to be deleted; `alive` must be kept until then."""
        strings = dtype == tf.string.as_datatype_enum
        expected = np.dtype(object if strings else tf.as_dtype(dtype).as_numpy_dtype)
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

    def _array(self, tensor: int) -> np.ndarray:
        """Returns a copy of a C tensor."""
        dtype = tf.as_dtype(self._c.TF_TensorType(tensor))
        shape = [self._c.TF_Dim(tensor, i) for i in range(self._c.TF_NumDims(tensor))]
        data = self._c.TF_TensorData(tensor)
        if dtype != tf.string:
            raw = ctypes.string_at(data, self._c.TF_TensorByteSize(tensor))
            return np.frombuffer(raw, dtype.as_numpy_dtype).reshape(shape)
        strings = np.empty(int(np.prod(shape)), object)
        for i in range(strings.size):
            at = data + i * _STRING_SIZE
            length = self._c.TF_StringGetSize(at)
            strings[i] = ctypes.string_at(self._c.TF_StringGetDataPointer(at), length)
        return strings.reshape(shape)
