"""The signatures of a SavedModel, read from its file without loading it.

Reference: `saved_model.proto`, `meta_graph.proto`, `tensor_shape.proto` of TensorFlow.
"""

import mmap
import pathlib
import typing

from google.protobuf import empty_pb2, message, unknown_fields

from dolg_tf.stage import files

_TAG = b"serve"  # of the graph that servers run


class Tensor(typing.NamedTuple):
    """An input or output of a signature.

    Attributes:
      name: in the graph, "operation:index".
      dtype: TensorFlow's number for it, as in `types.proto`.
    """

    name: str
    dtype: int


class Signature(typing.NamedTuple):
    """A function of a SavedModel: its tensors by name."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def read_signatures(saved_model: files.Path) -> dict[str, Signature]:
    """Returns the signatures by name.

    A graph without any, as TensorFlow 1 could save it, is one function `serving_default` of its
    placeholders, whose results are the identities that nothing in the graph takes, as DELF's are;
    those in scopes are the graph's own.

    Args:
      saved_model: the directory.

    Raises:
      OSError: when its `saved_model.pb` cannot be read.
      ValueError: when that is damaged, or of another kind than for serving.
    """
    path = pathlib.Path(saved_model, "saved_model.pb")
    with path.open("rb") as file:
        try:
            # Mapped, since the weights may be in it.
            with (
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
                memoryview(mapped) as data,
            ):
                graphs = _fields(data).get(2, [])
            for graph in map(_fields, graphs):
                if _fields(graph[1][-1]).get(4) == [_TAG]:
                    found = {_text(name): _signature(value) for name, value in _map(graph, 5)}
                    # The loader's own names begin so.
                    found = {name: x for name, x in found.items() if not name.startswith("__")}
                    return found or _of_tensors(graph)
        except (message.DecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged") from error
    raise ValueError(f"{path} has no graph for serving (with the tag {_TAG.decode()!r} alone)")


def _signature(data: bytes) -> Signature:
    fields = _fields(data)
    inputs, outputs = (
        {_text(name): _tensor(value) for name, value in _map(fields, number)} for number in (1, 2)
    )
    return Signature(inputs, outputs)


def _of_tensors(graph: dict[int, list]) -> dict[str, Signature]:
    nodes = [_fields(node) for node in _fields(graph[2][-1]).get(1, [])]
    taken = {_text(name).lstrip("^").split(":")[0] for node in nodes for name in node.get(3, [])}
    inputs, outputs = {}, {}
    for node in nodes:
        name, kind = _text(node[1][-1]), _text(node[2][-1])
        if "/" in name:  # inside a scope, such as what saves and restores the variables
            continue
        if kind in ("Placeholder", "PlaceholderWithDefault"):
            inputs[name] = _result(name, node, b"dtype")
        elif kind == "Identity" and name not in taken:
            outputs[name] = _result(name, node, b"T")
    return {"serving_default": Signature(inputs, outputs)} if inputs and outputs else {}


def _result(name: str, node: dict[int, list], attribute: bytes) -> Tensor:
    """Returns the first result of an operation, of the type that an attribute names."""
    value = _fields(dict(_map(node, 5))[attribute])
    return Tensor(f"{name}:0", value.get(6, [0])[-1])


def _tensor(data: bytes) -> Tensor:
    fields = _fields(data)  # a sparse tensor has no name
    return Tensor(_text(fields.get(1, [b""])[-1]), fields.get(2, [0])[-1])


def _map(fields: dict[int, list], number: int) -> list[tuple[bytes, bytes]]:
    """Returns the entries of a field that is a map."""
    entries = map(_fields, fields.get(number, []))
    return [(entry.get(1, [b""])[-1], entry.get(2, [b""])[-1]) for entry in entries]


def _text(data: bytes) -> str:
    return str(data, "utf-8")


def _fields(data: bytes | memoryview) -> dict[int, list]:
    """Returns the values of a message's fields by number: int, or bytes.

    A message without fields of its own knows none of those that it reads, and lists them.
    """
    read = empty_pb2.Empty()
    read.ParseFromString(data)
    found = {}
    for field in unknown_fields.UnknownFieldSet(read):
        found.setdefault(field.field_number, []).append(field.data)
    return found
