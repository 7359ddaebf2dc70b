"""Mode `delg`: DELF's and DELG's extractor, which normalises and pools one row per scale itself.

DELG's own rows are as the network gives them; these have unit norm, which the extractor's
normalisation leaves unchanged, so that summing without normalising gives DOLG's descriptor too.
Local features are as the network gives them, as DELG's; with a reduction, they have unit norm.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.runtime.whitening import Whitening
from dolg_tf.serving.config import ExportConfig
from dolg_tf.serving.graph import local_features, pyramid
from dolg_tf.serving.graph.folding import FoldedNetwork
from dolg_tf.serving.local_reference import (
    LIMITS,
    SCALES,
    LocalReference,
    by_place,
    strengths_alone,
)
from dolg_tf.serving.model_card import Words
from dolg_tf.serving.saved_model import LOAD_MODEL_AND_PHOTO, Functions, Inside, SavedModelMode
from dolg_tf.serving.verify import Check, Reference, random_photos
from dolg_tf.stage.config import InputError

INPUTS = ("input_image", "input_scales", "input_global_scales_ind")
LOCAL_INPUTS = ("input_max_feature_num", "input_abs_thres")  # after image and scales
OUTPUT = "global_descriptors"
_PHOTO = tf.TensorSpec([None, None, 3], tf.uint8, INPUTS[0])
_INDICES = tf.TensorSpec([None], tf.int32, INPUTS[2])

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
    """The local features, and one row per scale that the indices name."""
    if network.name == "how" and config.features != "local":
        raise InputError(
            f"--features={config.features} with a HOW network: its descriptor is one sum over all "
            "scales, and DELF's scripts take a row of each; give --features=local"
        )
    folded = FoldedNetwork(network)
    specs = [_PHOTO, *local_features.specs(INPUTS[1], *LOCAL_INPUTS)]

    @tf.function(input_signature=[*specs[:2], _INDICES], autograph=False)
    def rows(input_image, input_scales, input_global_scales_ind):
        asked = at_indices(input_scales, input_global_scales_ind)
        scales = tf.boolean_mask(input_scales, asked)
        return {OUTPUT: pyramid.per_scale(folded, input_image[None], scales)[:, 0]}

    def found(*inputs, **options):
        features = local_features.of_photo(folded, *inputs, iou=config.iou, **options)
        return features, {
            "boxes": features.boxes,
            "features": _described(folded, features.features, inside.reduction),
            "scales": features.scales,
            "scores": features.strengths[:, None],
        }

    @tf.function(input_signature=specs, autograph=False)
    def local(input_image, input_scales, input_max_feature_num, input_abs_thres):
        return found(input_image, input_scales, input_max_feature_num, input_abs_thres)[1]

    @tf.function(input_signature=[*specs, _INDICES], autograph=False)
    def both(
        input_image, input_scales, input_max_feature_num, input_abs_thres, input_global_scales_ind
    ):
        asked = at_indices(input_scales, input_global_scales_ind, may_be_empty=True)
        inputs = input_image, input_scales, input_max_feature_num, input_abs_thres
        features, outputs = found(*inputs, described=asked)
        return {**outputs, OUTPUT: features.rows}

    return {"serving_default": {"global": rows, "local": local, "both": both}[config.features]}


def _described(
    network: FoldedNetwork, features: tf.Tensor, reduction: Whitening | None
) -> tf.Tensor:
    """Returns features as the network makes them, which the extractor normalises; or reduced."""
    return features if reduction is None else local_features.unit(network, features, reduction)


def at_indices(scales: tf.Tensor, indices: tf.Tensor, may_be_empty: bool = False) -> tf.Tensor:
    """Returns at which scales DELG's `input_global_scales_ind` asks for a row: bool (S,).

    Args:
      scales: float32 (S,).
      indices: int32 (N,), in any order; duplicates count once.
      may_be_empty: whether there may be no index.

    Raises:
      tf.errors.InvalidArgumentError: when there is no index, or one is outside [0, S).
    """
    name, count = INPUTS[2], tf.size(scales)
    least = -1 if may_be_empty else 0
    checks = [
        tf.debugging.assert_greater(
            tf.size(indices), least, f"{name} is empty; give at least one index"
        ),
        tf.debugging.assert_non_negative(indices, f"{name} holds an index below 0"),
        tf.debugging.assert_less(indices, count, f"{name} holds an index that has no scale"),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        asked = tf.equal(tf.range(count)[:, None], indices[None, :])  # (S, N)
    return tf.reduce_any(asked, axis=1)


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


def checks_of_local(network: keras.Model, config: ExportConfig, inside: Inside) -> list[Check]:
    """Returns checks of local features, with rows of two scales where both are given."""
    reference, described = LocalReference(network, inside.reduction), Reference(network, None)
    # Where overlaps are dropped: all features of a single cell, and the strongest of others.
    limits = LIMITS if config.iou == 1 else {1: strengths_alone}
    calls = [(photo, SCALES, *limit) for photo in random_photos() for limit in limits.items()]
    if config.iou < 1:
        calls.append((random_photos()[-1], SCALES[:1], 1000, by_place))
    checks = []
    for photo, scales, limit, compared in calls:
        values = photo, scales, np.asarray(limit, np.int32), np.float32(0)
        inputs = dict(zip((*INPUTS[:2], *LOCAL_INPUTS), values, strict=True))
        found = reference.found(photo, scales, limit, normalized=False)
        expected = {
            "boxes": found["boxes"],
            "features": found["descriptors"],
            "scales": found["scales"],
            "scores": found["strengths"][:, None],
        }
        if config.features == "both":
            inputs[INPUTS[2]] = np.asarray((len(scales) - 1, 0), np.int32)
            chosen = scales[np.unique(inputs[INPUTS[2]])]
            expected[OUTPUT] = described.rows(photo[None], chosen)[:, 0]
        checks.append(Check("serving_default", inputs, expected, compared))
    return checks


def _checks(network: keras.Model, config: ExportConfig, inside: Inside) -> list[Check]:
    if config.gives_local:
        return checks_of_local(network, config, inside)
    return [check_of_indices(inputs, rows) for inputs, rows in expected_rows(network)]


MODE = SavedModelMode(
    functions=functions,
    checks=_checks,
    words=Words(
        use=LOAD_MODEL_AND_PHOTO + _USE + POOL_ROWS.format(call='found["global_descriptors"]')
    ),
)
