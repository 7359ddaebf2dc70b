"""What a SavedModel needs that an older release of TensorFlow does not have."""

import json
import pathlib

from tensorflow.core.protobuf import saved_model_pb2

_OPS = pathlib.Path(__file__).parents[1] / "golden" / "tensorflow_ops.json"


def unknown(path, release):
    """The operations and attributes that `release` is not known to have, of "2.2" and "2.4"."""
    known = {}
    for since, ops in json.loads(_OPS.read_text()).items():
        if tuple(map(int, since.split("."))) <= tuple(map(int, release.split("."))):
            known |= {op: set(attributes.split()) for op, attributes in ops.items()}
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    found = set()
    for graph in model.meta_graphs:
        library = graph.graph_def.library.function
        for nodes in (graph.graph_def.node, *(function.node_def for function in library)):
            for node in nodes:
                attributes = {name for name in node.attr if not name.startswith("_")}
                if node.op not in known:
                    found.add(node.op)
                elif attributes - known[node.op]:
                    found.add(f"{node.op}: {sorted(attributes - known[node.op])}")
        if any(node.HasField("captured_tensor") for node in graph.object_graph_def.nodes):
            found.add("captured_tensor, which its Python loader refuses")
    return found
