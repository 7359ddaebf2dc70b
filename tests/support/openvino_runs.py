"""A model in OpenVINO, where it is installed; docs/export.md says how."""

import numpy as np
import pytest


def run(path, inputs):
    """The outputs by name. Inputs that OpenVINO did not keep are left out."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    # Unless told so, it computes in bfloat16 where the processor can.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    kept = [port.any_name.removesuffix(":0") for port in compiled.inputs]
    found = compiled([np.asarray(inputs[name]) for name in kept])
    names = [port.any_name.removesuffix(":0") for port in compiled.outputs]
    return {name: found[i].copy() for i, name in enumerate(names)}
