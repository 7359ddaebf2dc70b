"""The pickles inside PyTorch's files: names, and tensors as views of storages."""

import dataclasses
import re
from collections.abc import Mapping
from typing import IO

from dolg_tf.stage.plain_pickle import UNREAD, Global, Refused, Unread, set_item, unpickle
from dolg_tf.weights.files.arrays import quoted

# Types of storages in PyTorch, and the dtypes of `arrays.DTYPES` that they hold.
STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
_DTYPE = re.compile(r"torch\.(bool|half|double|long|short|int|float|b?(u?int|float|complex)\d\w*)")


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers of which tensors are views.

    Attributes:
      key: of its bytes in the file.
      dtype: a key of `arrays.DTYPES`.
      size: of the whole storage, in elements.
      first: first element of this view.
      view_size: number of elements in this view.
    """

    key: str
    dtype: str
    size: int
    first: int
    view_size: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor: which elements of a storage, `offset` and `strides` in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise Refused("its pickle makes a tensor of something other than a storage")
    if metadata:
        raise Refused("a tensor is negated or conjugated: save it again after .resolve_neg()")
    return View(storage, offset, shape, strides)


def _parameter(data, requires_grad=False, hooks=None, state=None):
    if type(data) is not View:
        raise Refused("its pickle makes a parameter of something other than a tensor")
    return data


def _ordered_dict(pairs=None):
    mapping = {}
    if pairs is not None:  # Python 2 passes the items as an argument, later versions set them
        if type(pairs) is not list:
            raise Refused("its pickle makes an OrderedDict of something other than pairs")
        # Emptied, so that many calls with one list do not fill the memory.
        taken = pairs[:]
        pairs.clear()
        for pair in taken:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise Refused("its pickle makes an OrderedDict of something other than pairs")
            set_item(mapping, *pair)
    return mapping


def _unread(*arguments):
    return UNREAD


_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,  # before 2018
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.nn.parameter.Parameter": _parameter,  # before 2018
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    # Often found beside weights: sizes, schedules, numbers and arrays of NumPy.
    **dict.fromkeys(
        (
            "torch.Size",
            "torch.device",
            "collections.Counter",
            "builtins.set",
            "__builtin__.set",
            "_codecs.encode",
            "numpy.dtype",
            "numpy.core.multiarray.scalar",
            "numpy.core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
        ),
        _unread,
    ),
}


def _find(name: str):
    module, _, last = name.rpartition(".")
    if module in ("torch", "torch.cuda") and last in STORAGES:
        return Global(last)
    if name in _CALLS:
        return Global(name, _CALLS[name])
    if name == "numpy.ndarray" or _DTYPE.fullmatch(name):
        return UNREAD
    raise Refused(
        f"holds a {name!r:.200}, which is neither a tensor nor a plain value, and nothing that a "
        "file names is ever run here. Where it was made, save the weights alone: "
        "torch.save(model.state_dict(), FILE), or .npz, or .safetensors"
    )


def _build(value, state) -> None:
    # Ignored: the `_metadata` of a state dict, whatever is set on unread values, and, before 2018,
    # (requires_grad, volatile, hooks) of a parameter. Any other state of one holds its numbers.
    old_parameter = type(value) is View and type(state) is tuple and len(state) == 3
    if not old_parameter and type(value) not in (dict, Unread):
        raise Refused(f"its pickle sets attributes of a {type(value).__name__}")


class _Storages(dict):
    """The storages that a pickle refers to, by key."""

    def load(self, identity) -> Storage:
        """Returns the storage that a persistent id stands for."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise Refused("its pickle refers to something that is not a storage")
        _, kind, key, _, size = identity[:5]
        dtype = STORAGES.get(kind.name) if type(kind) is Global else None
        if dtype is None or type(key) is not str or type(size) is not int or size < 0:
            raise Refused("its pickle has an impossible storage")
        whole = self.setdefault(key, Storage(key, dtype, size, 0, size))
        if (whole.dtype, whole.size) != (dtype, size):
            raise Refused(f"its pickle has two storages {quoted(key)}")
        view = identity[5] if len(identity) == 6 else None
        if view is None:
            return whole
        # Before 2018: (key of the view, first element, elements).
        if type(view) is not tuple or len(view) != 3 or [type(n) for n in view[1:]] != [int, int]:
            raise Refused("its pickle has an impossible view of a storage")
        first, view_size = view[1:]
        if min(first, view_size) < 0 or first + view_size > size:
            raise Refused("its pickle has a view that reaches beyond its storage")
        return dataclasses.replace(whole, first=first, view_size=view_size)


def read_pickle(stream: IO[bytes]) -> tuple[object, Mapping[str, Storage]]:
    """Reads the pickle at the position of a stream, up to its end.

    Returns:
      Its value, with dict for dicts and OrderedDicts and `View` for tensors and parameters; and
      all storages that it refers to, by key, unread.

    Raises:
      Refused: on anything but tensors and plain values, and on damage.
    """
    storages = _Storages()
    return unpickle(stream, _find, storages.load, _build), storages
