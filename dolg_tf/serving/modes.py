"""The export modes: the signatures that a SavedModel of each mode has.

A function a mode. It takes the network, float32 RGB in [0, 1] (B, H, W, 3) -> (B, D), and the
`ExportConfig`, and gives the graph functions to save, by signature.
"""

import functools

import keras
import tensorflow as tf

from dolg_tf.modeling.dolg import has_local_branch
from dolg_tf.serving import requests, signatures
from dolg_tf.serving.folding import FoldedNetwork
from dolg_tf.stage.whitening import Whitening

Functions = dict[str, tf.types.experimental.PolymorphicFunction]

_PHOTO = [None, None, 3]
# There is no Python control flow in them to translate, which takes a quarter of the export.
_function = functools.partial(tf.function, autograph=False)


def serving(network: keras.Model, config, whitening: Whitening | None) -> Functions:
    """TF Serving, extraction, report and demo: encoded photos, pixels, what is in a photo."""
    folded = FoldedNetwork(network)
    width = network.output_shape[-1] if whitening is None else whitening.projection.shape[1]

    @_function(
        input_signature=[
            tf.TensorSpec([None, *_PHOTO], tf.uint8, "images"),
            tf.TensorSpec([None], tf.float32, "scales"),
        ]
    )
    def images(images, scales):
        return {"descriptors": _descriptors(folded, images, scales, whitening)}

    @_function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")])
    def encoded(image_bytes):
        scales = tf.constant(config.scales, tf.float32)
        return requests.describe_encoded(
            lambda photos: images(photos, scales)["descriptors"],
            image_bytes,
            config.max_pixels,
            width,
        )

    functions = {"serving_default": encoded, "images": images}
    if has_local_branch(network):
        photo = tf.TensorSpec(_PHOTO, tf.uint8, "image")
        for name, of in signatures.OF_LOCAL_BRANCH.items():
            functions[name] = _function(of(folded.intermediates), input_signature=[photo])
    return functions


def delg(network: keras.Model, config, whitening: None) -> Functions:
    """DELF's and DELG's extractor: one row a scale, which it normalises and pools itself.

    DELG's own rows are as the network gives them; these have unit norm, which the extractor's
    normalisation leaves as it is, so that who sums without normalising gets DOLG's descriptor too.
    """
    folded = FoldedNetwork(network)

    @_function(
        input_signature=[
            tf.TensorSpec(_PHOTO, tf.uint8, "input_image"),
            tf.TensorSpec([None], tf.float32, "input_scales"),
            tf.TensorSpec([None], tf.int32, "input_global_scales_ind"),
        ]
    )
    def extract(input_image, input_scales, input_global_scales_ind):
        scales = signatures.chosen_scales(input_scales, input_global_scales_ind)
        rows = signatures.per_scale(folded, input_image[None], scales)
        return {"global_descriptors": rows[:, 0]}

    return {"serving_default": extract}


def kaggle(network: keras.Model, config, whitening: Whitening | None) -> Functions:
    """The scorer of Kaggle's Landmark Retrieval 2020: one photo in, one descriptor out."""
    folded = FoldedNetwork(network)

    @_function(input_signature=[tf.TensorSpec(_PHOTO, tf.uint8, "input_image")])
    def describe(input_image):
        scales = tf.constant(config.scales, tf.float32)
        rows = _descriptors(folded, input_image[None], scales, whitening)
        return {"global_descriptor": rows[0]}

    return {"serving_default": describe}


def _descriptors(network, photos, scales, whitening: Whitening | None) -> tf.Tensor:
    """Returns one unit descriptor a photo, whitened where that is asked for."""
    descriptors = signatures.multi_scale(network, photos, scales)
    if whitening is None:
        return descriptors
    return tf.math.l2_normalize((descriptors - whitening.mean) @ whitening.projection, axis=-1)


# `tf1` has the same function in another file format.
MODES = {"serving": serving, "delg": delg, "kaggle": kaggle, "tf1": delg}
