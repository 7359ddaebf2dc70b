"""Optimizers, and what happens to a gradient before they see it."""

from collections.abc import Collection

import keras
import tensorflow as tf

from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.schedules import CosineByEpoch, WarmupCosine


class _SummedGradients:
    """Leaves out Keras' sum over the replicas: clipping needs the sum, so it is made before."""

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)


class _Shares:
    """Lets each variable have its own share of the learning rate, decoupled decay included."""

    def set_shares(self, shares: list[float]) -> None:
        """Takes the share of each variable, in the order in which the optimizer was built."""
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


# TensorFlow's kernels move a variable and its slots in one pass over memory; Keras, operation by
# operation, takes three times as many. The formulas are the same.


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


def make_schedule(training: TrainingConfig, steps_per_epoch: int):
    """Returns the learning rate as a function of the step."""
    if training.overfit_batch:  # a few steps, which a warm-up would swallow
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


def is_decayed(variable, training: TrainingConfig) -> bool:
    """Whether a variable takes weight decay."""
    return training.decay_all or variable.path.rsplit("/", 1)[-1] == "kernel"


def make_optimizer(
    training: TrainingConfig, steps_per_epoch: int, variables: list, backbone: Collection = ()
):
    """Returns the built optimizer of a run; its gradients must come summed over the replicas.

    Args:
      training: the recipe.
      steps_per_epoch: of the schedule.
      variables: that are trained.
      backbone: those of them that take `backbone_lr` of the learning rate.
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


def clip_and_decay(gradients: list, norm, variables: list, training: TrainingConfig) -> list:
    """Returns what the optimizer applies.

    The gradient of the loss is clipped before the coupled L2 term joins it, as PyTorch does.

    Args:
      gradients: of the global batch, summed over the replicas.
      norm: of all of them.
      variables: in the same order.
      training: `clip_norm`, `weight_decay` and which variables take it.
    """
    if training.clip_norm:
        gradients, _ = tf.clip_by_global_norm(gradients, training.clip_norm, use_norm=norm)
    if training.decay == "coupled" and training.weight_decay:
        gradients = [
            gradient + training.weight_decay * variable
            if is_decayed(variable, training)
            else gradient
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
    return gradients


class LossScale:
    """The factor that keeps float16 gradients from vanishing, and its history.

    Halved, and the step left out, when a gradient is not finite; doubled after 2,000 steps without.

    Reference: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """

    _PATIENCE = 2000

    def __init__(self):
        self.value = tf.Variable(2.0**15, trainable=False, name="loss_scale")
        self._good = tf.Variable(0, trainable=False, name="good_steps")

    def state(self) -> dict:
        """Returns what a checkpoint holds."""
        return {"value": self.value, "good_steps": self._good}

    def update(self, finite) -> None:
        """Takes note of a step; called once a step, outside the replicas."""
        good = tf.where(finite, self._good + 1, 0)
        grown = tf.where(good >= self._PATIENCE, 2.0 * self.value, self.value)
        self.value.assign(tf.where(finite, grown, self.value / 2))
        self._good.assign(tf.where(good >= self._PATIENCE, 0, good))
