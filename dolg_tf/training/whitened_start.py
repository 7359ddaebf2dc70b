"""A last layer that starts as a whitening of the pooled features, instead of randomly.

A few photos cannot teach a random layer of half a million weights what it needs: it learns to tell
their landmarks apart and loses what tells other landmarks apart. A whitening learned on the same
photos needs no training: it damps the directions in which photos of one landmark differ, and keeps
those that matter for unseen landmarks.
"""

import logging
import math

import keras
import numpy as np
import tensorflow as tf

from dolg_tf.data.input.pipeline import TrainingInput
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError
from dolg_tf.training.trainer import Trainer

log = logging.getLogger(__name__)

# Views of photos per number that is whitened.
_VIEWS = 5


class LandmarkMoments:
    """Counts, sums and squares of rows by landmark, for a covariance in a single pass.

    Args:
      num_classes: number of landmarks.
      size: D, the length of a row.
    """

    def __init__(self, num_classes: int, size: int):
        self.counts = np.zeros(num_classes)
        self.sums = np.zeros((num_classes, size))
        self._squares = np.zeros((size, size))

    def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Adds rows (N, D) of landmarks int (N,)."""
        rows = np.asarray(rows, np.float64)
        np.add.at(self.counts, labels, 1)
        np.add.at(self.sums, labels, rows)
        self._squares += rows.T @ rows

    @property
    def means(self) -> np.ndarray:
        """Mean rows (num_classes, D); zeros for a landmark without rows."""
        return self.sums / np.maximum(self.counts, 1)[:, None]

    @property
    def mean(self) -> np.ndarray:
        """Mean (D,) of all rows."""
        return self.sums.sum(axis=0) / self.counts.sum()

    def covariances(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the covariances (D, D) within landmarks and of all rows."""
        count = self.counts.sum()
        within = (self._squares - self.sums.T @ self.means) / count
        return within, self._squares / count - np.outer(self.mean, self.mean)


def whitening(moments: LandmarkMoments, size: int, shrinkage: float) -> np.ndarray:
    """Returns the projection (D, size) that evens out the differences within landmarks.

    With C the covariance within landmarks, t the mean of its diagonal and s the shrinkage,
    (C + s t I)^-1/2 makes all directions of C about equally strong, except that directions with
    hardly any variance within landmarks stay weak, since a few photos cannot tell them from noise.
    The result is rotated to its principal directions, of which the first are kept.

    Reference: Mikolajczyk and Matas, "Improving descriptors for fast tree matching by optimal
    linear projection", ICCV 2007; with the shrinkage of Ledoit and Wolf, "A well-conditioned
    estimator for large-dimensional covariance matrices", 2004.
    """
    within, total = moments.covariances()
    values, vectors = np.linalg.eigh(within)
    floor = shrinkage * np.trace(within) / len(within)
    whiten = vectors / np.sqrt(np.maximum(values, 0) + floor)
    _, turned = np.linalg.eigh(whiten.T @ total @ whiten)
    return whiten @ turned[:, ::-1][:, :size]


def start_whitened(trainer: Trainer, photos: TrainingInput) -> None:
    """Fills the last layer and the class head of a fresh run with their initial weights.

    The last layer becomes the whitening of its inputs about their mean, scaled to descriptors of
    length 1 (root mean square); in a fused network, the global and the local half have equal
    weight. The class head becomes the mean descriptor of each landmark. The views are the augmented
    ones of the first training steps, `_VIEWS` per number that is whitened.

    Args:
      trainer: with its other weights already filled.
      photos: that it trains on.

    Raises:
      InputError: if the last layer is not linear, or has more outputs than inputs.
    """
    training, network = trainer.training, trainer.network
    flag = f"--whiten_shrinkage={training.whiten_shrinkage}"
    layer = network.get_layer("descriptor")
    if not isinstance(layer, keras.layers.Dense):
        raise InputError(f"{flag} needs a linear last layer; omit --neck and --descriptor_size=0")
    width, size = layer.kernel.shape
    if size > width:
        raise InputError(
            f"{flag}: the last layer has {width} inputs, too few to whiten to {size} numbers; give "
            f"--descriptor_size={width} or less"
        )
    below = keras.Model(network.input, layer.input)
    describe = tf.function(lambda images: below(images, training=False))
    moments, scales = LandmarkMoments(trainer.head.num_classes, width), None
    steps = math.ceil(_VIEWS * width / training.batch_size)
    batches = iter(photos.dataset(0, steps))
    for step in progress.track(range(steps), steps, "whitened start", "batches"):
        try:
            images, labels, weights = next(batches)
        except tf.errors.OpError as error:
            raise photos.describe(error, step) from error
        counts = weights.numpy() > 0
        rows = describe(images).numpy()[counts]
        if scales is None:
            scales = _even_halves(rows, network.get_layer("global").output.shape[-1])
        moments.add(scales * rows, labels.numpy()[counts])
    _fill(layer, trainer.head, moments, scales, training.whiten_shrinkage)
    log.info(
        "last layer: whitening of %d numbers learned on %d views, shrinkage %g; class head: mean "
        "descriptor per landmark",
        width,
        moments.counts.sum(),
        training.whiten_shrinkage,
    )


def _even_halves(rows: np.ndarray, width: int) -> np.ndarray:
    """Returns factors (D,) that give each part of `width` numbers of rows (N, D) mean length 1."""
    parts = rows.reshape(len(rows), -1, width)
    return np.repeat(1 / np.linalg.norm(parts, axis=2).mean(axis=0), width)


def _fill(layer, head, moments: LandmarkMoments, scales: np.ndarray, shrinkage: float) -> None:
    projection = whitening(moments, layer.units, shrinkage)
    _, total = moments.covariances()
    projection /= np.sqrt(np.trace(projection.T @ total @ projection))
    layer.kernel.assign(scales[:, None] * projection)
    layer.bias.assign(-moments.mean @ projection)
    seen = moments.counts > 0
    centres = (moments.means[seen] - moments.mean) @ projection
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    kernel = head.kernel.numpy()
    if kernel.ndim == 3:  # sub-centres: close together but not equal, or only one would learn
        kernel[seen] = centres[:, None] + 0.1 * kernel[seen]
    else:
        kernel[seen] = centres
    head.kernel.assign(kernel)
