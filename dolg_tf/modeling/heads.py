"""Class heads: descriptors become cosines, and cosines logits, in float32.

`head(descriptors)` gives cosines without margin, which rank the classes;
`head.logits(cosines, labels, weights, training)` puts the margin on, for the loss. The only
variable that training moves by gradient is `kernel`, one row (or several) a class.
"""

import keras
import numpy as np
from keras import ops

from dolg_tf.modeling.config import HEADS, HeadConfig
from dolg_tf.modeling.layers import l2_normalize
from dolg_tf.stage.config import InputError


class _CosineHead(keras.layers.Layer):
    """What the heads share: the cosines, and a margin put on the target's alone.

    Shapes: descriptors (B, D) of any norm -> cosines (B, num_classes) in [-1, 1].
    """

    def __init__(self, num_classes, margin, scale, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes, self.scale = num_classes, scale
        # A number, or one a class.
        self.margin = tuple(map(float, margin)) if np.ndim(margin) else float(margin)
        if np.ndim(margin) and np.shape(margin) != (num_classes,):
            raise ValueError(f"margin has shape {np.shape(margin)} for {num_classes} classes")

    def build(self, descriptors_shape):
        # One row a class, as in the authors' checkpoints.
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
          weights: (B,), 1 or 0; a photo of weight 0 leaves the head's state as it is. None: all 1.
          training: whether the head's state, where it has one, moves on.
        """
        labels = ops.cast(labels, "int32")[:, None]
        target = ops.take_along_axis(cosines, labels, axis=1)  # (B, 1)
        margins = ops.convert_to_tensor(self.margin, dtype="float32")
        if isinstance(self.margin, tuple):
            margins = ops.take(margins, labels)  # (B, 1)
        others = self._others(cosines, target, margins, weights, training)
        # A scatter, not a one-hot: nothing else of size (B, num_classes) is made.
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
    # The product is divided by the rows' norms: a normalised copy of the kernel takes 1.7 times
    # as long with its gradient, and 0.5 GB more at 81,313 x 512.
    # And the rows come first: the gradient of a transposed kernel would be transposed as a whole.
    product = ops.transpose(ops.matmul(kernel, ops.transpose(l2_normalize(descriptors))))
    return ops.clip(product / _norms(kernel), -1.0, 1.0)


def _norms(kernel):
    """Returns the norms (C,) of rows (C, D), at least 1e-12."""
    if keras.backend.backend() != "tensorflow":
        return _plain_norms(kernel)
    import tensorflow as tf

    # One pass over the kernel for its gradient, not three and copies of its size.
    @tf.custom_gradient
    def norms_of(kernel):
        norms = _plain_norms(kernel)
        return norms, lambda upstream: (upstream / norms)[:, None] * kernel

    return norms_of(tf.convert_to_tensor(kernel))


def _plain_norms(kernel):
    return ops.sqrt(ops.maximum(ops.sum(ops.square(kernel), axis=-1), 1e-24))


def _add_angle(cosine, angle):
    """Returns cos(theta + angle) of cosine = cos(theta), without acos.

    The floor keeps the gradient of the root finite at cosine 1 and -1 and costs 1e-6 in the sine.
    """
    sine = ops.sqrt(ops.maximum(1.0 - ops.square(cosine), 1e-12))
    return cosine * ops.cos(angle) - sine * ops.sin(angle)


@keras.saving.register_keras_serializable("dolg_tf")
class ArcFace(_CosineHead):
    """Cosine classifier with an additive angular margin on the target class.

    The target's logit is `scale * cos(theta + margin)`, every other one `scale * cos(theta)`.
    Where theta exceeds pi - margin, the target's is `scale * (cos(theta) - margin sin(margin))`,
    as in the ArcFace authors' code.

    Args:
      num_classes: number of classes.
      margin: in radians; a number, or one a class (see `dynamic_margins`).
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
    """Cosine classifier whose target's logit is `scale * (cos(theta) - margin)`.

    Args:
      num_classes: number of classes.
      margin: a difference of cosines; a number, or one a class.
      scale: of the logits.

    Reference: Wang et al., CosFace, CVPR 2018, equation 4.
    """

    def __init__(self, num_classes, margin=0.35, scale=64.0, **kwargs):
        super().__init__(num_classes, margin, scale, **kwargs)

    def _shifted(self, target, margins):
        return target - margins


@keras.saving.register_keras_serializable("dolg_tf")
class SubCenterArcFace(ArcFace):
    """ArcFace with several centres a class, of which the nearest counts.

    A landmark's photos seen from its sides, or mislabelled ones, find a centre of their own.

    Args:
      num_classes: number of classes.
      margin: in radians; a number, or one a class (see `dynamic_margins`).
      scale: of the logits.
      sub_centers: centres of each class.

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
            # ArcFace's deviation; its initializer would take the classes for a filter's taps.
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
    """ArcFace whose hard negatives weigh more as training goes on: the authors' code's head.

    A class other than the target whose cosine exceeds cos(theta_target + margin) gets
    `scale * cos(theta) * (t + cos(theta))`. `t` is a moving average, from 0, of the mean target
    cosine over the photos of all replicas; it is stored with the weights.

    Args:
      num_classes: number of classes.
      margin: in radians.
      scale: of the logits.

    Reference: Huang et al., CurricularFace, CVPR 2020, section 3.
    """

    def build(self, descriptors_shape):
        super().build(descriptors_shape)
        # Without aggregation: each replica writes the same value to its own copy.
        self.t = self.add_weight(name="t", shape=(), initializer="zeros", trainable=False)

    def _others(self, cosines, target, margins, weights, training):
        if training:
            total, photos = _global_sums(ops.stop_gradient(target[:, 0]), weights)
            before = ops.convert_to_tensor(self.t)  # JAX's `where` takes no variable
            moved = 0.01 * total / ops.maximum(photos, 1e-12) + 0.99 * before
            self.t.assign(ops.where(photos > 0, moved, before))
        hard = cosines > _add_angle(target, margins)
        return ops.where(hard, cosines * (self.t + cosines), cosines)


def _global_sums(values, weights):
    """Returns the sum of weighted (B,) values and that of weights, over the batches of replicas."""
    weights = ops.ones_like(values) if weights is None else ops.cast(weights, values.dtype)
    sums = ops.stack([ops.sum(weights * values), ops.sum(weights)])
    if keras.backend.backend() == "tensorflow":  # the one whose strategies train us
        import tensorflow as tf

        sums = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, sums)
    return sums[0], sums[1]


def dynamic_margins(class_counts, margin: float, margin_range: float) -> np.ndarray:
    """Returns one margin a class, the larger the rarer the class is.

    `margin + margin_range * minmax(n ** -1/4)`: the commonest class gets `margin`, the rarest
    `margin + margin_range`. A class without photos counts as one with one photo; where all are
    as common, each gets `margin`.

    Args:
      class_counts: (C,), training photos of each class.
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
    """Returns the class head of a run, not yet built; named "head".

    Args:
      training: loss, margin, margin_range, scale and sub_centers.
      num_classes: number of classes.
      class_counts: (num_classes,), training photos of each class; needed where margin_range
        is above 0.

    Raises:
      InputError: where the loss knows no margin of each class.
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
