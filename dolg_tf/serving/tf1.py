"""The TF1-style SavedModel: tensors of fixed names, for `.prune(feeds, fetches)` and sessions."""

import pathlib

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

# Of `modes.delg`; the last one may be left out.
INPUTS = ("input_image", "input_scales", "input_global_scales_ind")
OUTPUT = "global_descriptors"


def write_tf1(function: tf.types.experimental.PolymorphicFunction, path: pathlib.Path) -> None:
    """Writes the function of `modes.delg` as a TF1-style SavedModel.

    Its tensors are `input_image:0`, `input_scales:0`, `input_global_scales_ind:0` and
    `global_descriptors:0`. Without the indices every scale is walked, as DELF's extractor does
    with an empty `image_scales_ind`.
    """
    # Variables that were made eagerly cannot be captured by a TF1 graph: they become constants.
    frozen = convert_variables_to_constants_v2(function.get_concrete_function())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image, scales = (
            tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name)
            for name, tensor in zip(INPUTS[:2], frozen.inputs[:2], strict=True)
        )
        every = tf.range(tf.size(scales))
        indices = tf.compat.v1.placeholder_with_default(every, [None], INPUTS[2])
        feeds = dict(zip([t.name for t in frozen.inputs], (image, scales, indices), strict=True))
        (rows,) = tf.graph_util.import_graph_def(
            frozen.graph.as_graph_def(),
            input_map=feeds,
            return_elements=[frozen.outputs[0].name],
            name="network",
        )
        rows = tf.identity(rows, OUTPUT)
        inputs = dict(zip(INPUTS, (image, scales, indices), strict=True))
        tf.compat.v1.saved_model.simple_save(session, str(path), inputs, {OUTPUT: rows})
