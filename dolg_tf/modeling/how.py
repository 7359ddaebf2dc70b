"""HOW's network: local features for ASMK, trained by one descriptor that is their weighted sum.

    image -> backbone -+- L2 norm ------------------- attention --+
                       |                                          +-> weighted sum -> descriptor
                       +- 3x3 mean -> 1x1 convolution - reduced --+

The convolution is a whitening that is learnt before the training and then kept.

Reference: Tolias, Jenicek and Chum, Learning and Aggregating Deep Local Descriptors for
Instance-Level Recognition, ECCV 2020, https://arxiv.org/abs/2007.13172, sections 3 and 4, and the
code of its authors.
"""

import dataclasses

import keras
from keras import ops

from dolg_tf.modeling.backbones import build_backbone
from dolg_tf.modeling.config import HowConfig
from dolg_tf.modeling.layers import ChannelNormalization
from dolg_tf.stage.config import InputError

_MAPS = ("p3", "p4", "p5")  # of the backbone, by stride: 8, 16, 32
STRIDES = {"p4": 16, "p5": 32}  # of the features, by `HowConfig.local_source`, pixels


@keras.saving.register_keras_serializable("dolg_tf")
class FeatureNorm(keras.layers.Layer):
    """HOW's attention: `sqrt(sum of squares + 1e-10)` over the channels.

    Shapes: (B, h, w, C) -> (B, h, w), above 0.
    """

    def call(self, inputs):
        return ops.sqrt(ops.sum(ops.square(inputs), axis=-1) + 1e-10)

    def compute_output_shape(self, inputs_shape):
        return tuple(inputs_shape[:-1])


@keras.saving.register_keras_serializable("dolg_tf")
class AttendedSum(keras.layers.Layer):
    """Returns the sum over all cells of attention times feature.

    Shapes: (B, h, w, D) and (B, h, w) -> (B, D).
    """

    def call(self, inputs):
        features, attention = inputs
        return ops.sum(features * attention[..., None], axis=(1, 2))

    def compute_output_shape(self, inputs_shape):
        features, _ = inputs_shape
        return (features[0], features[-1])


def build_how(
    config: HowConfig, dtype: str | keras.DTypePolicy | None = None, seed: int | None = None
) -> keras.Model:
    """Builds the network with random weights; the whitening's too, which training replaces.

    Args:
      config: what to build.
      dtype: dtype policy of the backbone; everything after it stays in float32. None: Keras'
        global policy.
      seed: of the initial weights, at least 0; None: another one each time.

    Returns:
      A `keras.Model`: float32 RGB in [0, 1], (B, H, W, 3), of any size -> float32 descriptors
      (B, `config.dimensions`), not normalised, so that those of several scales can be summed, as
      the authors do: see `unit`. Its local features and other results: see `intermediates`.

    Raises:
      InputError: if a feature would have more numbers than the map has channels, which no
        whitening gives.
    """
    if seed is not None:
        keras.utils.set_random_seed(seed)
    image = keras.Input((None, None, 3), name="image")
    x = ChannelNormalization(
        **dataclasses.asdict(config.preprocessing), dtype="float32", name="normalization"
    )(image)
    whole = build_backbone(config.backbone, dtype)
    # Without the layers behind the map: their weights are no part of the network.
    cut = whole.outputs[_MAPS.index(config.local_source)]
    if config.dimensions > cut.shape[-1]:
        raise InputError(
            f"--dimensions={config.dimensions}: {config.local_source} of {config.backbone} has "
            f"{cut.shape[-1]} channels, which is the most"
        )
    backbone = keras.Model(whole.input, cut, name="backbone")
    # What follows computes in float32, whatever the precision of the convolutions.
    features = keras.layers.Identity(dtype="float32", name=config.local_source)(backbone(x))
    attention = FeatureNorm(dtype="float32", name="attention")(features)
    # TensorFlow's "same" leaves the padding out of the mean, as count_include_pad=False there.
    smoothed = keras.layers.AveragePooling2D(
        3, strides=1, padding="same", dtype="float32", name="smoothed"
    )(features)
    reduced = keras.layers.Conv2D(config.dimensions, 1, dtype="float32", name="reduced")(smoothed)
    descriptor = AttendedSum(dtype="float32", name="descriptor")([reduced, attention])
    return keras.Model(image, descriptor, name="how")


def intermediates(network: keras.Model) -> keras.Model:
    """Returns a model that shares the network's weights and outputs every named result.

    Args:
      network: from `build_how`.

    Returns:
      A `keras.Model`: (B, H, W, 3) -> dict of `features` (B, h, w, C), the backbone's; `attention`
      (B, h, w), their L2 norm, to be divided by the largest over all scales of a photo;
      `smoothed` (B, h, w, C), their 3x3 mean; `reduced` (B, h, w, D), the local features, not
      normalised; `descriptor` (B, D). h and w are the photo's sides over `STRIDES`, rounded up.
    """
    outputs = {"features": network.get_layer(source_of(network)).output}
    for name in ("attention", "smoothed", "reduced", "descriptor"):
        outputs[name] = network.get_layer(name).output
    return keras.Model(network.input, outputs, name="how_intermediates")


def source_of(network: keras.Model) -> str:
    """Returns the map that a HOW network's features come from, a key of `STRIDES`."""
    return next(layer.name for layer in network.layers if layer.name in STRIDES)


def unit(descriptors):
    """Returns descriptors of a HOW network, or their sums over scales, as the authors train them.

    Shapes: (B, D) -> (B, D), `v / (|v| + 1e-6)`.
    """
    square = ops.sum(ops.square(descriptors), axis=-1, keepdims=True)
    return descriptors / (ops.sqrt(ops.maximum(square, 1e-24)) + 1e-6)
