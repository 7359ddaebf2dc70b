"""Learning rates, optimizers, and the processing of gradients before them."""

import math
from collections.abc import Collection

import keras
import tensorflow as tf
from keras import ops

from dolg_tf.training.config import TrainingConfig

# --- learning rates ----------------------------------------------------------------------


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear up to `peak` over `warmup_steps`, then half a cosine down to 0.

    Args:
      peak: largest learning rate.
      warmup_steps: at least 0.
      total_steps: where the rate reaches 0.
      start: share of the peak at which the warm-up starts.

    Reference: DOLG, section 4.1 (0.05, five warm-up epochs, cosine).
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, start: float = 0.0):
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps
        self.start = start

    def __call__(self, step):
        step = ops.cast(step, "float32")
        # The first step already moves the weights: step 0 is 1 / warmup_steps of the way.
        risen = (step + 1.0) / max(self.warmup_steps, 1)
        warmup = self.start + (1.0 - self.start) * risen
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return self.peak * ops.where(step < self.warmup_steps, warmup, cosine)


class CosineByEpoch(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine over all epochs, constant within each, times a linear warm-up.

    Args:
      peak: initial rate without warm-up.
      warmup_epochs: in which the factor rises from `start` to 1.
      epochs: where the rate would reach 0.
      steps_per_epoch: steps per epoch.
      start: factor in the first epoch.

    Reference: the authors' code (`lr_policy: cos` of pycls, evaluated once per epoch).
    """

    def __init__(
        self, peak: float, warmup_epochs: float, epochs: int, steps_per_epoch: int, start: float
    ):
        self.peak, self.warmup_epochs, self.epochs = peak, warmup_epochs, epochs
        self.steps_per_epoch, self.start = steps_per_epoch, start

    def __call__(self, step):
        epoch = ops.floor(ops.cast(step, "float32") / self.steps_per_epoch)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(epoch / self.epochs, 0.0, 1.0)))
        risen = ops.minimum(epoch / max(self.warmup_epochs, 1e-9), 1.0)
        return self.peak * cosine * (self.start + (1.0 - self.start) * risen)


def make_schedule(training: TrainingConfig, steps_per_epoch: int):
    """Returns the learning rate as a function of the step."""
    if training.overfit_batch:  # so few steps that the warm-up would not end
        return training.initial_lr
    if training.schedule == "cosine_by_epoch":
        return CosineByEpoch(
            training.initial_lr,
            training.warmup_epochs,
            training.epochs,
            steps_per_epoch,
            training.warmup_start,
        )
    return WarmupCosine(
        training.initial_lr,
        round(training.warmup_epochs * steps_per_epoch),
        training.epochs * steps_per_epoch,
        training.warmup_start,
    )


# --- optimizers --------------------------------------------------------------------------


class _SummedGradients:
    """Skips Keras' sum over replicas: clipping needs the sum, so it is computed earlier."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


class _Shares:
    """Gives each variable its own share of the learning rate, and of decoupled decay."""

    def set_shares(self, shares: list[float]) -> None:
        """Sets the share of each variable, in the order in which the optimizer was built."""
        self._shares = shares

    def _share(self, variable) -> float:
        return self._shares[self._get_variable_index(variable)]

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate * self._share(variable))

    def _apply_weight_decay(self, variables):
        decay = self.weight_decay
        if decay is None:
            return
        for share in sorted(set(self._shares)):
            self.weight_decay = decay * share
            super()._apply_weight_decay([v for v in variables if self._share(v) == share])
        self.weight_decay = decay


# TensorFlow's kernels update a variable and its slots in one pass over memory; Keras' separate
# operations take three. The formulas are the same.


class _FusedSGD(keras.optimizers.SGD):
    def update_step(self, gradient, variable, learning_rate):
        if not self.momentum:
            super().update_step(gradient, variable, learning_rate)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=self.momentums[self._get_variable_index(variable)].value.handle,
            lr=tf.cast(learning_rate, gradient.dtype),
            grad=gradient,
            momentum=self.momentum,
            use_nesterov=self.nesterov,
        )


class _FusedAdam(keras.optimizers.Adam):
    def update_step(self, gradient, variable, learning_rate):
        index, step = self._get_variable_index(variable), tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, gradient.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _SGD(_Shares, _SummedGradients, _FusedSGD):
    pass


class _Adam(_Shares, _SummedGradients, _FusedAdam):
    pass


def is_decayed(variable, training: TrainingConfig) -> bool:
    """Whether weight decay applies to a variable."""
    return training.decay_all or variable.path.rsplit("/", 1)[-1] == "kernel"


def make_optimizer(
    training: TrainingConfig, steps_per_epoch: int, variables: list, backbone: Collection = ()
):
    """Returns the built optimizer of a run, which expects gradients summed over the replicas.

    Args:
      training: the recipe.
      steps_per_epoch: steps per epoch, for the schedule.
      variables: the trained ones.
      backbone: those whose learning rate is multiplied by `backbone_lr`.
    """
    rate = make_schedule(training, steps_per_epoch)
    decay = training.weight_decay if training.decay == "decoupled" else None
    if training.optimizer == "sgd":
        optimizer = _SGD(
            rate, training.momentum, training.nesterov, weight_decay=decay, name="optimizer"
        )
    else:
        optimizer = _Adam(rate, weight_decay=decay, name="optimizer")
    if decay is not None:
        spared = [variable for variable in variables if not is_decayed(variable, training)]
        optimizer.exclude_from_weight_decay(spared)
    optimizer.build(variables)
    slow = {variable.path for variable in backbone}
    shares = [training.backbone_lr if v.path in slow else 1.0 for v in variables]
    optimizer.set_shares(shares)
    return optimizer


# --- gradients ---------------------------------------------------------------------------


def clip_and_decay(gradients: list, norm, variables: list, training: TrainingConfig) -> list:
    """Returns the gradients that the optimizer applies.

    The gradient of the loss is clipped before the coupled L2 term is added, as in PyTorch.

    Args:
      gradients: of the global batch, summed over the replicas.
      norm: of all of them together.
      variables: in the same order.
      training: `clip_norm`, `weight_decay` and which variables it applies to.
    """
    if training.clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, training.clip_norm, use_norm=norm)
    if training.decay == "coupled" and training.weight_decay:
        gradients = [
            _decayed(gradient, variable, training.weight_decay)
            if is_decayed(variable, training)
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
    return gradients


def _decayed(gradient, variable, decay: float) -> tf.Tensor:
    # A product that waits for nothing but its variable would be computed at the start of the step,
    # and all of them would be in memory throughout.
    with tf.control_dependencies([gradient]):
        return gradient + decay * variable


class LossScale:
    """The factor that keeps float16 gradients from vanishing, and its history.

    It is halved, and the step skipped, if a gradient is not finite, and doubled after 2,000 good
    steps.

    Reference: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """

    _PATIENCE = 2000

    def __init__(self):
        self.value = tf.Variable(2.0**15, trainable=False, name="loss_scale")
        self._good = tf.Variable(0, trainable=False, name="good_steps")

    def state(self) -> dict:
        """Returns the variables for a checkpoint."""
        return {"value": self.value, "good_steps": self._good}

    def update(self, finite) -> None:
        """Updates the factor; called once per step, outside the replicas."""
        good = tf.where(finite, self._good + 1, 0)
        grown = tf.where(good >= self._PATIENCE, 2.0 * self.value, self.value)
        self.value.assign(tf.where(finite, grown, self.value / 2))
        self._good.assign(tf.where(good >= self._PATIENCE, 0, good))
