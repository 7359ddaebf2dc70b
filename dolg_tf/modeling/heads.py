"""Class heads: from descriptors to cosines, and from cosines to logits, in float32.

`head(descriptors)` gives cosines without margin, which rank the classes.
`head.logits(cosines, labels, weights, training)` applies the margin, for the loss. The only
variable trained by gradient is `kernel`, with one row (or several) per class.
"""

import keras
import numpy as np
from keras import ops

from dolg_tf.modeling import delg  # noqa: F401 - a .keras file opens after importing the heads
from dolg_tf.modeling.config import HEADS, HeadConfig
from dolg_tf.modeling.layers import l2_normalize
from dolg_tf.stage.config import InputError


class _CosineHead(keras.layers.Layer):
    """The common part of all heads: cosines, and a margin on the target only.

    Shapes: descriptors (B, D) of any norm -> cosines (B, num_classes) in [-1, 1].
    """

    def __init__(self, num_classes, margin, scale, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes, self.scale = num_classes, scale
        # One number, or one per class.
        self.margin = tuple(map(float, margin)) if np.ndim(margin) else float(margin)
        if np.ndim(margin) and np.shape(margin) != (num_classes,):
            raise ValueError(f"margin has shape {np.shape(margin)} for {num_classes} classes")

    def build(self, descriptors_shape):
        # One row per class, as in the authors' checkpoints.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_classes, descriptors_shape[-1]),
            initializer=keras.initializers.VarianceScaling(1.0, "fan_out", "normal"),
        )

    def call(self, descriptors):
        return _cosines(descriptors, self.kernel)

    def logits(self, cosines, labels, weights=None, training=False):
        """Returns logits (B, num_classes) with the margin on the target.

        Args:
          cosines: (B, num_classes), from calling the head.
          labels: integers (B,) in [0, num_classes).
          weights: (B,), 1 or 0; photos of weight 0 do not change the head's state. None: all 1.
          training: whether to update the head's state, if it has any.
        """
        labels = ops.cast(labels, "int32")[:, None]
        target = ops.take_along_axis(cosines, labels, axis=1)  # (B, 1)
        margins = ops.convert_to_tensor(self.margin, dtype="float32")
        if isinstance(self.margin, tuple):
            margins = ops.take(margins, labels)  # (B, 1)
        others = self._others(cosines, target, margins, weights, training)
        # A scatter instead of a one-hot: no second tensor of size (B, num_classes).
        row = ops.arange(ops.shape(cosines)[0], dtype="int32")[:, None]
        position = ops.concatenate([row, labels], axis=1)
        shifted = self._shifted(target, margins)
        return self.scale * ops.scatter_update(others, position, shifted[:, 0])

    def _others(self, cosines, target, margins, weights, training):
        """Returns the cosines (B, num_classes) of the classes other than the target."""
        return cosines

    def compute_output_shape(self, descriptors_shape):
        return (descriptors_shape[0], self.num_classes)

    def get_config(self):
        options = {"num_classes": self.num_classes, "margin": self.margin, "scale": self.scale}
        return {**super().get_config(), **options}


def _cosines(descriptors, kernel):
    """Returns the cosines (B, C) of descriptors (B, D) and rows (C, D)."""
    # Dividing the product by the rows' norms avoids a normalised copy of the kernel, which takes
    # 1.7 times as long with its gradient, and 0.5 GB more at 81,313 x 512.
    # The kernel comes first, because the gradient of a transposed kernel is transposed as a whole.
    product = ops.transpose(ops.matmul(kernel, ops.transpose(l2_normalize(descriptors))))
    return ops.clip(product / _norms(kernel), -1.0, 1.0)


def _norms(kernel):
    """Returns the norms (C,) of rows (C, D), at least 1e-12."""
    if keras.backend.backend() != "tensorflow":
        return _plain_norms(kernel)
    import tensorflow as tf

    # The gradient takes one pass over the kernel, instead of three with copies of its size.
    @tf.custom_gradient
    def norms_of(kernel):
        norms = _plain_norms(kernel)
        return norms, lambda upstream: (upstream / norms)[:, None] * kernel

    return norms_of(tf.convert_to_tensor(kernel))


def _plain_norms(kernel):
    return ops.sqrt(ops.maximum(ops.sum(ops.square(kernel), axis=-1), 1e-24))


def _add_angle(cosine, angle):
    """Returns cos(theta + angle) for cosine = cos(theta), without acos.

    The floor keeps the gradient of the root finite at cosine 1 and -1, at a cost of 1e-6 in the
    sine.
    """
    sine = ops.sqrt(ops.maximum(1.0 - ops.square(cosine), 1e-12))
    return cosine * ops.cos(angle) - sine * ops.sin(angle)


@keras.saving.register_keras_serializable("dolg_tf")
class ArcFace(_CosineHead):
    """Cosine classifier with an additive angular margin on the target class.

    The target's logit is `scale * cos(theta + margin)`, all others are `scale * cos(theta)`.
    If theta exceeds pi - margin, the target's is `scale * (cos(theta) - margin sin(margin))`, as
    in the ArcFace authors' code.

    Args:
      num_classes: number of classes.
      margin: in radians; one number, or one per class (see `dynamic_margins`).
      scale: of the logits.

    Reference: Deng et al., ArcFace, CVPR 2019, equation 3. DOLG takes margin 0.15, scale 30.
    """

    def __init__(self, num_classes, margin=0.15, scale=30.0, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)

    def _shifted(self, target, margins):
        # Beyond theta = pi - m the cosine would rise again; the line keeps the loss monotonic.
        line = target - margins * ops.sin(margins)
        return ops.where(target > -ops.cos(margins), _add_angle(target, margins), line)


@keras.saving.register_keras_serializable("dolg_tf")
class CosFace(_CosineHead):
    """Cosine classifier whose target has the logit `scale * (cos(theta) - margin)`.

    Args:
      num_classes: number of classes.
      margin: a difference of cosines; one number, or one per class.
      scale: of the logits.

    Reference: Wang et al., CosFace, CVPR 2018, equation 4.
    """

    def __init__(self, num_classes, margin=0.35, scale=64.0, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)

    def _shifted(self, target, margins):
        return target - margins


@keras.saving.register_keras_serializable("dolg_tf")
class SubCenterArcFace(ArcFace):
    """ArcFace with several centres per class, of which the nearest counts.

    Photos of a landmark's other sides, or mislabelled ones, find a centre of their own.

    Args:
      num_classes: number of classes.
      margin: in radians; one number, or one per class (see `dynamic_margins`).
      scale: of the logits.
      sub_centers: centres per class.

    Reference: Deng et al., Sub-center ArcFace, ECCV 2020, section 3.
    """

    def __init__(self, num_classes, margin=0.5, scale=64.0, sub_centers=3, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)
        self.sub_centers = sub_centers

    def build(self, descriptors_shape):
        size = descriptors_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_classes, self.sub_centers, size),
            # ArcFace's deviation; its initializer would mistake the classes for filter taps.
            initializer=keras.initializers.RandomNormal(stddev=size**-0.5),
        )

    def call(self, descriptors):
        kernel = ops.reshape(self.kernel, (-1, self.kernel.shape[-1]))
        cosines = _cosines(descriptors, kernel)
        return ops.max(ops.reshape(cosines, (-1, self.num_classes, self.sub_centers)), axis=-1)

    def get_config(self):
        return {**super().get_config(), "sub_centers": self.sub_centers}


@keras.saving.register_keras_serializable("dolg_tf")
class CurricularFace(ArcFace):
    """ArcFace with hard negatives that weigh more as training progresses, as in the authors' code.

    A class other than the target whose cosine exceeds cos(theta_target + margin) gets the logit
    `scale * cos(theta) * (t + cos(theta))`. `t` starts at 0 and is a moving average of the mean
    target cosine over the photos of all replicas; it is stored with the weights.

    Args:
      num_classes: number of classes.
      margin: in radians.
      scale: of the logits.

    Reference: Huang et al., CurricularFace, CVPR 2020, section 3.
    """

    def build(self, descriptors_shape):
        super().build(descriptors_shape)
        # No aggregation: each replica writes the same value to its own copy.
        self.t = self.add_weight(name="t", shape=(), initializer="zeros", trainable=False)

    def _others(self, cosines, target, margins, weights, training):
        if training:
            total, photos = _global_sums(ops.stop_gradient(target[:, 0]), weights)
            before = ops.convert_to_tensor(self.t)  # JAX's `where` does not accept a variable
            moved = 0.01 * total / ops.maximum(photos, 1e-12) + 0.99 * before
            self.t.assign(ops.where(photos > 0, moved, before))
        hard = cosines > _add_angle(target, margins)
        return ops.where(hard, cosines * (self.t + cosines), cosines)


def _global_sums(values, weights):
    """Returns the sums of weighted values (B,) and of weights, over all replicas."""
    weights = ops.ones_like(values) if weights is None else ops.cast(weights, values.dtype)
    sums = ops.stack([ops.sum(weights * values), ops.sum(weights)])
    if keras.backend.backend() == "tensorflow":  # the only one we train on several replicas
        import tensorflow as tf

        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
    return sums[0], sums[1]


def dynamic_margins(class_counts, margin: float, margin_range: float) -> np.ndarray:
    """Returns a margin per class, larger for rarer classes.

    `margin + margin_range * minmax(n ** -1/4)`: the commonest class gets `margin`, the rarest
    `margin + margin_range`. A class without photos counts as one with a single photo; if all
    classes are equally common, each gets `margin`.

    Args:
      class_counts: (C,), training photos per class.
      margin, margin_range: in radians, or as a difference of cosines.

    Returns:
      float32 (C,).

    Reference: Ha et al., Google Landmark Recognition 2020 Competition Third Place Solution
      (arXiv 2010.05350).
    """
    rarity = np.maximum(np.asarray(class_counts, np.float64), 1) ** -0.25
    spread = rarity.max() - rarity.min()
    share = (rarity - rarity.min()) / spread if spread else np.zeros_like(rarity)
    return (margin + margin_range * share).astype(np.float32)


CLASSES = {  # of the names of `HEADS`
    "arcface": ArcFace,
    "curricularface": CurricularFace,
    "cosface": CosFace,
    "subcenter_arcface": SubCenterArcFace,
}


def build_head(training: HeadConfig, num_classes: int, class_counts=None) -> keras.layers.Layer:
    """Returns the class head of a run, not yet built, with the name "head".

    Args:
      training: loss, margin, margin_range, scale and sub_centers.
      num_classes: number of classes.
      class_counts: (num_classes,), training photos per class; required if margin_range is above 0.

    Raises:
      InputError: if the loss does not support a margin per class.
    """
    margin, options = training.margin, HEADS[training.loss].options
    if training.margin_range:
        if "margin_range" not in options:
            raise InputError(
                f"--margin_range={training.margin_range}: {training.loss} has one margin for all "
                "landmarks; give 0, or another --loss"
            )
        if class_counts is None or len(class_counts) != num_classes:
            raise ValueError(f"margin_range needs the photos of each of the {num_classes} classes")
        margin = dynamic_margins(class_counts, margin, training.margin_range)
    others = {name: getattr(training, name) for name in options if name != "margin_range"}
    return CLASSES[training.loss](num_classes, margin, training.scale, **others, name="head")
