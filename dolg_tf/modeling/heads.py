"""Class heads: descriptors become cosines, and cosines logits, in float32."""

import math

import keras
from keras import ops

from dolg_tf.modeling.layers import l2_normalize


@keras.saving.register_keras_serializable("dolg_tf")
class ArcFace(keras.layers.Layer):
    """Cosine classifier with an additive angular margin on the target class.

    The target's logit is `scale * cos(theta + margin)`, every other one `scale * cos(theta)`.
    Where theta exceeds pi - margin, the target's is `scale * (cos(theta) - margin sin(margin))`,
    as in the ArcFace authors' code.

    Args:
      num_classes: number of classes.
      margin: in radians.
      scale: of the logits.

    Shapes: descriptors (B, D) of any norm -> cosines (B, num_classes), which rank the classes
      without margin; `logits(cosines, labels)` is what the loss takes.

    Reference: Deng et al., ArcFace, CVPR 2019, equation 3. DOLG takes margin 0.15, scale 30.
    """

    def __init__(self, num_classes, margin=0.15, scale=30.0, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.num_classes, self.margin, self.scale = num_classes, margin, scale

    def build(self, descriptors_shape):
        # One row a class, as in the authors' checkpoints.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.num_classes, descriptors_shape[-1]),
            initializer=keras.initializers.VarianceScaling(1.0, "fan_out", "normal"),
        )

    def call(self, descriptors):
        rows, classes = l2_normalize(descriptors), l2_normalize(self.kernel)
        return ops.clip(ops.matmul(rows, ops.transpose(classes)), -1.0, 1.0)

    def logits(self, cosines, labels):
        """Returns logits (B, num_classes) with the margin on the target.

        Args:
          cosines: (B, num_classes), from calling the head.
          labels: integers (B,) in [0, num_classes).
        """
        labels = ops.cast(labels, "int32")[:, None]
        target = ops.take_along_axis(cosines, labels, axis=1)  # (B, 1)
        # cos(theta + m) without acos; the floor keeps the gradient of the root finite at
        # cosine 1 and -1 and costs 1e-6 in the sine.
        sine = ops.sqrt(ops.maximum(1.0 - ops.square(target), 1e-12))
        shifted = target * math.cos(self.margin) - sine * math.sin(self.margin)
        # Beyond theta = pi - m the cosine would rise again; the line keeps the loss monotonic.
        line = target - self.margin * math.sin(self.margin)
        shifted = ops.where(target > -math.cos(self.margin), shifted, line)
        # A scatter, not a one-hot: nothing else of size (B, num_classes) is made.
        row = ops.arange(ops.shape(cosines)[0], dtype="int32")[:, None]
        position = ops.concatenate([row, labels], axis=1)
        return self.scale * ops.scatter_update(cosines, position, shifted[:, 0])

    def compute_output_shape(self, descriptors_shape):
        return (descriptors_shape[0], self.num_classes)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "margin": self.margin,
            "scale": self.scale,
        }
