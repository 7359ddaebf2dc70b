"""DELG's local branch: attention and an autoencoder on the stride-16 map, trained by themselves.

DOLG's own local branch may learn its attention in the same way (`AttentionLoss`).

Reference: Cao et al., Unifying Deep Local and Global Features for Image Search, ECCV 2020,
https://arxiv.org/abs/2001.05027, sections 3.2 and 3.3; delg_model.py of its authors.
"""

import keras
from keras import ops

from dolg_tf.modeling.batch_norm import BatchNormalization
from dolg_tf.modeling.layers import l2_normalize

FEATURE_SIZE = 128  # numbers of a local feature
_ATTENTION_CHANNELS = 512
_ATTENTION_WEIGHT, _RECONSTRUCTION_WEIGHT = 1.0, 10.0
NAMES = ("attention_loss", "attention_accuracy", "reconstruction")


@keras.saving.register_keras_serializable("dolg_tf")
class DelgLocal(keras.layers.Layer):
    """Local features and their attention, from a map that their training does not change.

    The features are a linear 1x1 convolution, and another one with a ReLU makes the map anew from
    them: an autoencoder. The attention is softplus of two 1x1 convolutions with batch norm and ReLU
    between them. No gradient reaches the map.

    Shapes: (B, h, w, C) -> features (B, h, w, 128), not normalised; attention (B, h, w, 1), above 0
      without bound; expanded (B, h, w, C), the map made anew; all float32.
    """

    def build(self, map_shape):
        dtype = self.dtype_policy
        area, channels = map_shape[:-1], map_shape[-1]

        def conv(size, name, inputs, activation=None):
            layer = keras.layers.Conv2D(size, 1, activation=activation, dtype=dtype, name=name)
            layer.build((*area, inputs))
            return layer

        self.encode = conv(FEATURE_SIZE, "encode", channels)
        self.expand = conv(channels, "expand", FEATURE_SIZE, "relu")
        self.conv = conv(_ATTENTION_CHANNELS, "conv", channels)
        self.norm = BatchNormalization(epsilon=1e-3, momentum=0.99, dtype=dtype, name="norm")
        self.norm.build((*area, _ATTENTION_CHANNELS))
        self.score = conv(1, "score", _ATTENTION_CHANNELS)

    def call(self, inputs, training=None):
        x = ops.stop_gradient(inputs)
        features = self.encode(x)
        hidden = ops.relu(self.norm(self.conv(x), training=training))
        attention = ops.softplus(ops.cast(self.score(hidden), "float32"))
        expanded = ops.cast(self.expand(features), "float32")
        return ops.cast(features, "float32"), attention, expanded

    def compute_output_spec(self, inputs, training=None):
        *area, channels = inputs.shape
        sizes = (FEATURE_SIZE, 1, channels)
        return tuple(keras.KerasTensor((*area, size), dtype="float32") for size in sizes)


@keras.saving.register_keras_serializable("dolg_tf")
class Beside(keras.layers.Layer):
    """Returns its first input: the others become part of a network without changing its output."""

    def call(self, inputs):
        return inputs[0]

    def compute_output_shape(self, inputs_shape):
        return tuple(inputs_shape[0])


def attended_mean(attention, expanded):
    """Returns the feature that DELG classifies to train its attention.

    Args:
      attention: (B, h, w, 1).
      expanded: (B, h, w, C).

    Returns:
      (B, C), the mean over all cells of attention times the unit vector of `expanded`. The
      attention does not sum to 1: cells that say nothing may all be given little.
    """
    return ops.mean(attention * l2_normalize(expanded), axis=(1, 2))


def reconstruction_error(target, expanded):
    """Returns how far the map made anew is from the map: the mean square over cells and channels.

    Args:
      target: (B, h, w, C), which gets no gradient.
      expanded: (B, h, w, C).

    Returns:
      (B,).
    """
    difference = ops.stop_gradient(ops.cast(target, "float32")) - expanded
    return ops.mean(ops.square(difference), axis=(1, 2, 3))


class DelgLosses:
    """Losses of the local branch, with the classifier that only they train.

    Equations 5 to 7 of the paper, with the weights of its authors' code. That code sums the
    reconstruction over replicas, so that it weighs the more the more there are; here it is a mean
    over the global batch, like the others.

    Args:
      num_classes: of the classifier.
      channels: of the map that the branch starts from.
    """

    names = NAMES

    def __init__(self, num_classes: int, channels: int):
        self.classifier = _classifier("delg_classifier", num_classes, channels)

    def sums(self, outputs: dict, labels, weights):
        """Returns float32 (3,), summed over the photos that count.

        Args:
          outputs: of `dolg.with_delg_local`.
          labels: int (B,).
          weights: float (B,), 1 or 0.

        Returns:
          Sums of cross-entropy, of photos whose class is found, and of the reconstruction's error.
        """
        pooled = attended_mean(outputs["attention"], outputs["expanded"])
        error = reconstruction_error(outputs["p4"], outputs["expanded"])
        parts = ops.stack([*_classified(self.classifier, pooled, labels), error])
        return ops.sum(weights * parts, axis=1)

    def total(self, sums):
        """Returns the weighted sum of both losses, of `sums`."""
        return _ATTENTION_WEIGHT * sums[0] + _RECONSTRUCTION_WEIGHT * sums[2]


class AttentionLoss:
    """DELG's loss of the attention, for DOLG's own local features; with its classifier.

    DOLG's attention otherwise learns only through the fused descriptor, where nothing makes it rise
    at few places. Its local features are unit vectors times their attention, so that their mean is
    what DELG classifies. Unlike DELG's expanded features, the vectors learn from this loss too; the
    map before the local branch must not.

    Args:
      num_classes: of the classifier.
      channels: of the local features.
      weight: of the loss.
    """

    names = NAMES[:2]

    def __init__(self, num_classes: int, channels: int, weight: float):
        self.classifier = _classifier("attention_classifier", num_classes, channels)
        self._weight = weight

    def sums(self, outputs: dict, labels, weights):
        """Returns float32 (2,), summed over the photos that count.

        Args:
          outputs: of `dolg.with_local`.
          labels: int (B,).
          weights: float (B,), 1 or 0.

        Returns:
          Sums of cross-entropy, and of photos whose class is found.
        """
        pooled = ops.mean(outputs["local"], axis=(1, 2))
        parts = ops.stack(_classified(self.classifier, pooled, labels))
        return ops.sum(weights * parts, axis=1)

    def total(self, sums):
        """Returns the weighted loss, of `sums`."""
        return self._weight * sums[0]


def _classifier(name: str, num_classes: int, channels: int) -> keras.layers.Dense:
    """Returns a plain softmax classifier: no margin, no scale."""
    classifier = keras.layers.Dense(num_classes, dtype="float32", name=name)
    classifier.build((None, channels))
    return classifier


def _classified(classifier: keras.layers.Dense, pooled, labels) -> list:
    """Returns cross-entropies (B,) of pooled features (B, C), and whether the class is found."""
    logits = classifier(pooled)
    loss = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    hits = ops.cast(ops.argmax(logits, axis=1), labels.dtype) == labels
    return [loss, ops.cast(hits, "float32")]
