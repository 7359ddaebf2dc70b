"""SavedModels that older releases of TensorFlow load as well.

A loader refuses a graph in which it does not know one operation, or one attribute that is not at
its default, whether a call needs it or not. TensorFlow writes two that only its latest releases
know: a name of each variable that helps in debugging, and in the function that saves variables,
which no server calls, an operation that sets how they are read afterwards.
"""

import pathlib

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

# There is no public way to write the fingerprint of a changed file.
from tensorflow.python.saved_model import fingerprinting_utils

# Without the gradients of the network's functions: they hold tensors of a kind that TensorFlow 2.2
# does not know, and nobody trains an export.
OPTIONS = tf.saved_model.SaveOptions(experimental_custom_gradients=False)

_NEW = "DisableCopyOnRead"  # an operation without outputs


def simplify(path: pathlib.Path) -> None:
    """Takes out of a SavedModel what only TensorFlow's latest releases know.

    Args:
      path: its directory, which nobody else uses yet.
    """
    file = path / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        _simplify(graph.graph_def.node)
        for function in graph.graph_def.library.function:
            _forget_results(function)
            _simplify(function.node_def)
    file.write_bytes(model.SerializeToString(deterministic=True))
    if (path / "fingerprint.pb").exists():
        fingerprinting_utils.write_fingerprint(str(path))


def _simplify(nodes) -> None:
    """Changes the nodes of a graph or function in place."""
    new = {node.name for node in nodes if node.op == _NEW}
    for node in nodes:
        if node.op == "VarHandleOp":
            node.attr.pop("debug_name", None)
        kept = [name for name in node.input if name.removeprefix("^") not in new]
        node.input[:] = kept
    for i in reversed(range(len(nodes))):
        if nodes[i].op == _NEW:
            del nodes[i]


def _forget_results(function: function_pb2.FunctionDef) -> None:
    """Takes the operation from what a function waits for."""
    new = {node.name for node in function.node_def if node.op == _NEW}
    gone = {key for key, name in function.control_ret.items() if name in new}
    for key in gone:
        del function.control_ret[key]
    function.signature.control_output[:] = [
        key for key in function.signature.control_output if key not in gone
    ]
