"""Learning rates over the steps of a run."""

import math

import keras
from keras import ops


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear up to `peak` over `warmup_steps`, then half a cosine down to 0.

    Args:
      peak: largest learning rate.
      warmup_steps: may be 0.
      total_steps: where the rate reaches 0.
      start: share of the peak from which the warm-up rises.

    Reference: DOLG, section 4.1 (0.05, five warm-up epochs, cosine).
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int, start: float = 0.0):
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps
        self.start = start

    def __call__(self, step):
        step = ops.cast(step, "float32")
        # The first step already moves: step 0 is 1 / warmup_steps of the way.
        risen = (step + 1.0) / max(self.warmup_steps, 1)
        warmup = self.start + (1.0 - self.start) * risen
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return self.peak * ops.where(step < self.warmup_steps, warmup, cosine)


class CosineByEpoch(keras.optimizers.schedules.LearningRateSchedule):
    """Half a cosine over all epochs, constant inside each, times a linear warm-up.

    Args:
      peak: what the rate would be at the start without warm-up.
      warmup_epochs: over which the factor rises from `start` to 1.
      epochs: where the rate would reach 0.
      steps_per_epoch: steps.
      start: factor in the first epoch.

    Reference: the authors' code (`lr_policy: cos` of pycls, evaluated once an epoch).
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
