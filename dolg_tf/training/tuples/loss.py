"""The contrastive loss of a tuple."""

import tensorflow as tf

_EPSILON = 1e-6  # added to each difference, as in the authors' code


def contrastive_loss(descriptors: tf.Tensor, margin: float) -> tf.Tensor:
    """Returns the loss of a tuple: the positive is drawn near, near negatives are pushed away.

    With the distance D to the query, the sum of D^2 / 2 of the positive and of max(0, margin - D)^2
    / 2 of the negatives: a sum over photos, not a mean.

    Args:
      descriptors: float32 (2 + negatives, D): of the query, the positive and the negatives.
      margin: distance from which a negative costs nothing.

    Returns:
      float32 ().

    Reference: Tolias et al., HOW, ECCV 2020, section 4; `contrastive_loss` of
    cnnimageretrieval-pytorch.
    """
    squares = tf.square(descriptors[:1] - descriptors[1:] + _EPSILON)
    distances = tf.sqrt(tf.reduce_sum(squares, axis=1))
    far = tf.square(tf.maximum(0.0, margin - distances[1:]))
    return 0.5 * (tf.square(distances[0]) + tf.reduce_sum(far))
