"""NumPy's arrays and numbers in a pickle, rebuilt from their bytes without running what it names.

Arrays of whole numbers, floats, truth values, strings and bytes become arrays, which are views of
the bytes in the pickle; NumPy's numbers and strings become Python's. Arrays of objects are refused.
"""

import math
import re

import numpy as np

from dolg_tf.stage.plain_pickle import Global, Refused, hashable

_PLAIN = re.compile(r"[biufSU][0-9]{1,9}")
_ARRAY = "numpy.ndarray"
_MOST_DIMENSIONS = 2


class _Dtype:
    """A type of elements; its state, which comes later, gives the order of bytes."""

    def __init__(self, code: str):
        self.found = np.dtype(code)


class _Array:
    """An array; its state, which comes later, gives its elements."""

    found = None


def opened(value):
    """Returns the array that a pickled array stands for, and anything else as it is.

    Raises:
      Refused: when the array got no elements.
    """
    if type(value) is _Array:
        if value.found is None:
            raise Refused("its pickle has an array without elements")
        return value.found
    if type(value) in (_Dtype, Global):
        raise Refused(f"its pickle has a value of type {type(value).__name__.strip('_')}")
    return value


class Arrays:
    """What a pickle of NumPy's arrays may name, for `plain_pickle.unpickle`.

    Args:
      most_bytes: that are copied: a short pickle can have one long string copied many times.
    """

    def __init__(self, most_bytes: int):
        self._left = most_bytes
        self._makers = {
            "_codecs.encode": self._encode,
            "builtins.bytes": lambda: b"",  # protocols 0 to 2 call it for no bytes
            "builtins.set": _set,
            "builtins.frozenset": _set,
            "collections.OrderedDict": _dict,
            "collections.defaultdict": _dict,
            "builtins.dict": None,
            "builtins.int": None,
            "builtins.list": None,
            _ARRAY: None,
            "numpy.dtype": _dtype,
            "numpy.core.multiarray._reconstruct": _reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._view,
        }

    def find(self, name: str) -> Global:
        """Returns what stands for "module.name"."""
        usual = name.replace("numpy._core.", "numpy.core.").replace("__builtin__.", "builtins.")
        if usual not in self._makers:
            raise Refused(f"its pickle names {name!r:.200}, and nothing that it names is ever run")
        return Global(usual, self._makers[usual])

    def build(self, value, state) -> None:
        """Gives an array or a type of elements its state."""
        if type(state) is not tuple or type(value) not in (_Dtype, _Array):
            raise Refused(f"its pickle sets attributes of a {type(value).__name__}")
        if type(value) is _Dtype:
            if len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
                raise Refused("its pickle has an array of an unknown order of bytes")
            value.found = value.found.newbyteorder(state[1])
        elif len(state) == 5:
            _, shape, dtype, fortran, data = state
            value.found = self._view(data, dtype, shape, "F" if fortran else "C")
        else:
            raise Refused("its pickle has an array without elements")

    def _encode(self, text, encoding) -> bytes:
        if type(text) is not str or encoding != "latin1":
            raise Refused("its pickle encodes something other than bytes")
        return self._bytes(text)

    def _copies(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Refused("its pickle makes more of its bytes than there are")

    def _bytes(self, text: str) -> bytes:
        self._copies(len(text))
        return text.encode("latin-1")  # a UnicodeEncodeError is a ValueError: damaged

    def _scalar(self, dtype, data):
        self._copies(len(data))
        found = self._view(data, dtype, (1,), "C")
        return found[0].item() if found.size else dtype.found.type().item()  # "" has no bytes

    def _view(self, data, dtype, shape, order: str) -> np.ndarray:
        """Returns a view of the bytes; nothing is copied."""
        if type(data) is str:
            data = self._bytes(data)  # a string of Python 2
        if type(data) not in (bytes, bytearray) or type(dtype) is not _Dtype:
            raise Refused("it has a NumPy array of objects; write it with .tolist()")
        plain = type(shape) is tuple and all(type(side) is int and side >= 0 for side in shape)
        if not plain or len(shape) > _MOST_DIMENSIONS or order not in ("C", "F"):
            raise Refused(f"it has a NumPy array of shape {shape!r:.60}; write it as a list")
        if math.prod(shape) * dtype.found.itemsize != len(data):
            raise Refused(f"its array of shape {shape!r:.60} has {len(data)} bytes")
        if not data:
            return np.zeros(0, dtype.found)
        return np.ndarray(shape, dtype.found, data, order=order)


def _set(elements) -> set:
    if type(elements) is not list:
        raise Refused("its pickle makes a set of something other than a list")
    # Emptied, so that many calls with one list do not fill the memory.
    taken = set(map(hashable, elements))
    elements.clear()
    return taken


def _dict(factory=None) -> dict:
    if factory is not None and type(factory) is not Global:
        raise Refused("its pickle makes a dict of something other than nothing")
    return {}


def _dtype(code, *_) -> _Dtype:
    if type(code) is str and code.startswith("O"):
        raise Refused("it has a NumPy array of objects; write it with .tolist()")
    if type(code) is not str or not _PLAIN.fullmatch(code):
        raise Refused(f"it has a NumPy array of type {code!r:.60}; write it with .tolist()")
    return _Dtype(code)


def _reconstruct(kind, *_) -> _Array:
    if type(kind) is not Global or kind.name != _ARRAY:
        raise Refused("it has an array of a class of its own; write it with .tolist()")
    return _Array()
