"""Mode `onnx`: the network as an ONNX file; its contract: `dolg_tf/serving/one_file.py`.

It takes `image`, float32 RGB in [0, 1], (batch, height, width, 3), and gives `descriptor`,
float32 (batch, D), of unit L2 norm, at one scale. Its metadata say where it comes from.
"""

import json
import logging
import os
import pathlib

import onnx
import tf2onnx

from dolg_tf.runtime.one_file import load_onnx, seal_onnx
from dolg_tf.serving import one_file
from dolg_tf.serving.one_file import Distance, Exported, FileMode

# Supported by onnxruntime since 1.10, from 2021.
_OPSET = 15
_TOLERANCE = 1e-5
_USE = """session = onnxruntime.InferenceSession("NAME")
descriptor = session.run(["descriptor"], {"image": photo})[0][0]  # (D,)
"""


def _write(exported: Exported, path: pathlib.Path) -> None:
    # Otherwise it copies the whole graph, with the weights, before each of some forty passes.
    os.environ.setdefault("TF2ONNX_CATCH_ERRORS", "FALSE")
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)  # it logs each of its passes
    signature = exported.describe.input_signature
    model, _ = tf2onnx.convert.from_function(exported.describe, signature, opset=_OPSET)
    for node in model.graph.node:
        if node.op_type == "Conv":
            _set_padding(node)
    for value, names in (
        (model.graph.input[0], ("batch", "height", "width")),
        (model.graph.output[0], ("batch",)),
    ):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    model.producer_name = "dolg_tf"
    onnx.helper.set_model_props(
        model,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in exported.about.items()
        },
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    seal_onnx(path)


def _set_padding(node) -> None:
    """Writes the padding of a convolution of stride 1 as numbers.

    tf2onnx leaves "same" to the runtime where the photo's size is unknown, and onnxruntime lacks it
    for dilated kernels. With stride 1 it depends on the kernel alone.
    """
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if attributes.get("auto_pad") is None or list(attributes["strides"].ints) != [1, 1]:
        return
    sides = zip(attributes["kernel_shape"].ints, attributes["dilations"].ints, strict=True)
    pads = [(kernel - 1) * dilation // 2 for kernel, dilation in sides]  # kernels are odd
    node.attribute.remove(attributes["auto_pad"])
    node.attribute.append(onnx.helper.make_attribute("pads", pads + pads))


def _check(exported: Exported, path: pathlib.Path) -> Distance:
    found = one_file.distance(exported, load_onnx(path).describe)
    if not found.difference <= _TOLERANCE:
        raise RuntimeError(f"onnxruntime's descriptors are too far from the network's: {found}")
    return found


MODE = FileMode(
    form=lambda config: {"mode": "onnx", "opset": _OPSET},
    write=_write,
    check=_check,
    words=one_file.card_words("import onnxruntime", _USE, "onnx"),
)
