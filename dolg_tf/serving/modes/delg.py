"""Mode `delg`: DELF's and DELG's extractor, which normalises and pools one row per scale itself.

DELG's own rows are as the network gives them; these have unit norm, which the extractor's
normalisation leaves unchanged, so that summing without normalising gives DOLG's descriptor too.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph import pyramid
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.saved_model import LOAD_MODEL_AND_PHOTO, Functions, Inside, SavedModelMode
from dolg_tf.serving.verify import Check, Reference, random_photos

INPUTS = ("input_image", "input_scales", "input_global_scales_ind")
OUTPUT = "global_descriptors"

# What a user makes of the rows; `{call}` gives them.
POOL_ROWS = """rows = tf.math.l2_normalize({call}, -1)
descriptor = tf.math.l2_normalize(tf.reduce_sum(rows, 0), -1)  # (D,)
"""
_USE = """found = model.signatures["serving_default"](
    input_image=photo,
    input_scales=tf.constant(SCALES),
    input_global_scales_ind=tf.range(len(SCALES)),
)
"""


def functions(network: keras.Model, config: ExportConfig, inside: Inside) -> Functions:
    """One row per scale that the indices name."""
    folded = FoldedNetwork(network)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3], tf.uint8, "input_image"),
            tf.TensorSpec([None], tf.float32, "input_scales"),
            tf.TensorSpec([None], tf.int32, "input_global_scales_ind"),
        ],
        autograph=False,
    )
    def extract(input_image, input_scales, input_global_scales_ind):
        scales = chosen_scales(input_scales, input_global_scales_ind)
        rows = pyramid.per_scale(folded, input_image[None], scales)
        return {OUTPUT: rows[:, 0]}

    return {"serving_default": extract}


def chosen_scales(scales: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Returns the scales that DELG's `input_global_scales_ind` names.

    Args:
      scales: float32 (S,).
      indices: int32 (N,), in any order; duplicates count once.

    Returns:
      float32 (rows,), by ascending index.

    Raises:
      tf.errors.InvalidArgumentError: when there is no index, or one is outside [0, S).
    """
    name, count = INPUTS[2], tf.size(scales)
    checks = [
        tf.debugging.assert_positive(tf.size(indices), f"{name} is empty; give at least one index"),
        tf.debugging.assert_non_negative(indices, f"{name} holds an index below 0"),
        tf.debugging.assert_less(indices, count, f"{name} holds an index that has no scale"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        asked = tf.equal(tf.range(count)[:, None], indices[None, :])  # (S, N)
    return tf.boolean_mask(scales, tf.reduce_any(asked, axis=1))


def expected_rows(network: keras.Model) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yields a photo and scales, by input name, and the network's rows for them."""
    reference = Reference(network, None)
    scales = np.asarray((0.7071, 1.0, 1.4142, 0.25), np.float32)
    for photo in random_photos():
        rows = reference.rows(photo[None], scales)[:, 0]
        yield dict(zip(INPUTS, (photo, scales), strict=False)), rows


def check_of_indices(inputs: dict[str, np.ndarray], rows: np.ndarray) -> Check:
    """Returns a check of some of the rows of `expected_rows`, asked for out of order and twice."""
    asked = np.asarray((3, 0, 3, 1), np.int32)
    return Check("serving_default", {**inputs, INPUTS[2]: asked}, {OUTPUT: rows[[0, 1, 3]]})


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> list[Check]:
    return [check_of_indices(inputs, rows) for inputs, rows in expected_rows(network)]


MODE = SavedModelMode(
    functions=functions,
    checks=_checks,
    words=Words(
        use=LOAD_MODEL_AND_PHOTO + _USE + POOL_ROWS.format(call='found["global_descriptors"]')
    ),
)
