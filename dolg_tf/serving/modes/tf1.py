"""Mode `tf1`: delg's function as tensors of fixed names, for `.prune(feeds, fetches)` and sessions.

Without the indices every scale is used, as DELF's extractor does with an empty `image_scales_ind`.
"""

import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.serving import older_loaders
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph.folding import owner
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.modes import delg
from dolg_tf.serving.modes.delg import INPUTS, OUTPUT
from dolg_tf.serving.saved_model import LOAD_MODEL_AND_PHOTO, Functions, Inside, SavedModelMode
from dolg_tf.serving.verify import Check, Run

_USE = """describe = model.prune(["input_image:0", "input_scales:0"], ["global_descriptors:0"])
"""


def _write(functions: Functions, path: pathlib.Path) -> None:
    """Writes delg's function as a TF1-style SavedModel.

    Its tensors have the names of the inputs and outputs, with ":0".
    """
    extract = functions["serving_default"].get_concrete_function()
    weights = [(weight.handle, weight.numpy()) for weight in owner([extract]).weights]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        given = len(extract.inputs) - len(extract.captured_inputs)
        inputs = {}
        for tensor in extract.inputs[:given]:
            name = tensor.op.name
            if name == INPUTS[2]:
                every = tf.range(tf.size(inputs[INPUTS[1]]))
                inputs[name] = tf.compat.v1.placeholder_with_default(every, [None], name)
            else:
                inputs[name] = tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name)
        copies = {id(handle): _variable(array, session).handle for handle, array in weights}
        captured = [copies[id(handle)] for handle in extract.captured_inputs]
        names = [tensor.name for tensor in extract.inputs]
        found = tf.graph_util.import_graph_def(
            extract.graph.as_graph_def(),
            input_map=dict(zip(names, (*inputs.values(), *captured), strict=True)),
            return_elements=[tensor.name for tensor in extract.outputs],
            name="network",
        )
        outputs = sorted(extract.structured_outputs)  # the order in which a dict is flattened
        tensors = {name: tf.identity(x, name) for name, x in zip(outputs, found, strict=True)}
        signature = tf.compat.v1.saved_model.predict_signature_def(inputs, tensors)
        builder = tf.compat.v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": signature}, strip_default_attrs=True
        )
        builder.save()
    older_loaders.simplify(path)


def _variable(array: np.ndarray, session: tf.compat.v1.Session) -> tf.Variable:
    """Returns a variable in the TF1 graph of a session, which holds no copy of its values."""
    zeros = functools.partial(tf.zeros, array.shape, array.dtype)
    variable = tf.compat.v1.Variable(zeros, use_resource=True, name="weights")
    session.run(variable.initializer, {variable.initial_value: array})
    return variable


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> list[Check]:
    if config.gives_local:
        return delg.checks_of_local(network, config, inside)
    checks = []
    for inputs, rows in delg.expected_rows(network):
        checks.append(delg.check_of_indices(inputs, rows))
        checks.append(Check("serving_default", inputs, {OUTPUT: rows}))
    return checks


def _runner(path: pathlib.Path) -> Run:
    prune = functools.cache(tf.saved_model.load(str(path)).prune)

    def run(check):
        feeds = tuple(f"{name}:0" for name in check.inputs)
        fetches = tuple(f"{name}:0" for name in check.expected)
        found = prune(feeds, fetches)(*map(tf.constant, check.inputs.values()))
        return {name: tensor.numpy() for name, tensor in zip(check.expected, found, strict=True)}

    return run


MODE = SavedModelMode(
    functions=delg.functions,
    checks=_checks,
    words=Words(
        use=LOAD_MODEL_AND_PHOTO
        + _USE
        + delg.POOL_ROWS.format(call="describe(photo, tf.constant(SCALES))[0]")
    ),
    write=_write,
    runner=_runner,
)
