"""HOW's network and optimizer: what a photo, a tuple and a step do."""

import logging
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dolg_tf.data import images
from dolg_tf.modeling.config import HowConfig
from dolg_tf.modeling.how import build_how, intermediates, unit
from dolg_tf.modeling.model_dir import checkpoint_variables
from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.config import TuplesTraining
from dolg_tf.training.tuples.loss import contrastive_loss
from dolg_tf.training.tuples.whitening import Moments
from dolg_tf.weights import published
from dolg_tf.weights.ready import build_gem

log = logging.getLogger(__name__)

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8  # PyTorch's Adam


class TuplesTrainer:
    """The network with its state, on one device; photos go through it one at a time.

    Batch norms keep their statistics; their scales and offsets are trained. The whitening is not,
    but gradients pass through it.

    Args:
      model, training: the recipe.
      pairs: of query and positive in an epoch.
    """

    def __init__(self, model: HowConfig, training: TuplesTraining, pairs: int):
        self.model, self.training = model, training
        self.network = build_how(model, seed=training.seed)
        self.network.get_layer("reduced").trainable = False
        self._results = intermediates(self.network)
        self.variables = self.network.trainable_variables
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.best = tf.Variable(-1.0, trainable=False, name="best")
        # Of this epoch, by the weights at its start: which it could not be mined from again.
        shape = (pairs, training.negatives)
        self.negatives = tf.Variable(np.zeros(shape, np.int64), trainable=False, name="negatives")
        self._totals, self._first, self._second = (
            [tf.Variable(tf.zeros(v.shape), trainable=False) for v in self.variables]
            for _ in range(3)
        )

    def state(self) -> dict:
        """Returns the variables for a checkpoint."""
        paths = [variable.path for variable in self.variables]
        return {
            "step": self.step,
            "best": self.best,
            "negatives": self.negatives,
            "network": checkpoint_variables(self.network),
            "first_moments": dict(zip(paths, self._first, strict=True)),
            "second_moments": dict(zip(paths, self._second, strict=True)),
        }

    def load_backbone(self, weights: str) -> None:
        """Fills the backbone with ImageNet weights, as `--backbone_weights` names them."""
        if weights == published.NONE:
            log.info("backbone: random weights (--backbone_weights=none)")
            return
        # The whole backbone is filled, since weights that nothing takes are refused.
        whole = build_gem(self.model.backbone, weights, "last_block", {}).network
        values = {v.path: v for v in whole.get_layer("backbone").variables}
        for variable in self.network.get_layer("backbone").variables:
            variable.assign(values[variable.path].numpy())

    def learn_whitening(self, photos: Iterable[np.ndarray]) -> None:
        """Makes the reduction a whitening of the smoothed features of photos.

        Raises:
          InputError: if the photos have too few features.
        """
        size = self.network.get_layer("smoothed").output.shape[-1]
        moments = Moments(size)
        for photo in photos:
            moments.add(self._strongest(photo).numpy())
        if moments.count <= size:
            raise InputError(
                f"the whitening needs more than {size} features; the photos gave {moments.count}: "
                "give more or larger photos, or a larger --whitening_photos"
            )
        kernel, bias = moments.whitening(self.model.dimensions)
        layer = self.network.get_layer("reduced")
        layer.kernel.assign(kernel[None, None])
        layer.bias.assign(bias)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def _strongest(self, photo):
        results = self._results(images.to_float(photo)[None], training=False)
        rows = tf.reshape(results["smoothed"], [-1, results["smoothed"].shape[-1]])
        strengths = tf.reshape(results["attention"], [-1])
        count = tf.minimum(self.training.whitening_features, tf.size(strengths))
        return tf.gather(rows, tf.math.top_k(strengths, count).indices)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def describe(self, photo) -> tf.Tensor:
        """Returns the descriptor (D,) of a photo, uint8 RGB (H, W, 3), with unit L2 norm."""
        return unit(self.network(images.to_float(photo)[None], training=False))[0]

    def add_tuple(self, photos: list[np.ndarray]) -> float:
        """Adds the gradient of a tuple to that of the step, and returns the tuple's loss.

        Photos are described twice, so that the layers' results of one photo alone are in memory.

        Args:
          photos: query, positive and negatives, each uint8 RGB (H, W, 3) of its own size.
        """
        descriptors = tf.stack([self.describe(photo) for photo in photos])
        loss, gradients = self._loss(descriptors)
        for photo, gradient in zip(photos, gradients.numpy(), strict=True):
            if gradient.any():  # a negative beyond the margin has none
                self._add_gradient(photo, gradient)
        return float(loss)

    @tf.function(reduce_retracing=True)
    def _loss(self, descriptors):
        with tf.GradientTape() as tape:
            tape.watch(descriptors)
            loss = contrastive_loss(descriptors, self.training.margin)
        return loss, tape.gradient(loss, descriptors)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([None])])
    def _add_gradient(self, photo, upstream):
        with tf.GradientTape() as tape:
            descriptor = unit(self.network(images.to_float(photo)[None], training=False))[0]
        values = [variable.value for variable in self.variables]
        gradients = tape.gradient(descriptor, values, output_gradients=upstream)
        for total, gradient in zip(self._totals, gradients, strict=True):
            total.assign_add(gradient)

    def update(self, rate: float) -> None:
        """Moves the weights by the gradients of all tuples since the last time, summed.

        Args:
          rate: learning rate.
        """
        self._update(tf.constant(rate), tf.constant(int(self.step.numpy()) + 1, tf.float32))
        self.step.assign_add(1)

    @tf.function
    def _update(self, rate, number):
        """Adam as in PyTorch: L2 term in the gradient, epsilon beside the corrected root."""
        power_1, power_2 = tf.pow(_BETA_1, number), tf.pow(_BETA_2, number)
        slots = zip(self.variables, self._totals, self._first, self._second, strict=True)
        for variable, total, first, second in slots:
            gradient = total + self.training.weight_decay * variable.value
            first.assign(_BETA_1 * first + (1 - _BETA_1) * gradient)
            second.assign(_BETA_2 * second + (1 - _BETA_2) * tf.square(gradient))
            root = tf.sqrt(second / (1 - power_2)) + _EPSILON
            variable.assign(variable.value - rate * first / (1 - power_1) / root)
            total.assign(tf.zeros_like(total))
