"""Learning rates over the steps of a run."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("dolg_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 to `peak` over `warmup_steps`, then half a cosine down to 0.

    Args:
      peak: largest learning rate.
      warmup_steps: may be 0.
      total_steps: where the rate reaches 0.

    Reference: DOLG, section 4.1 (0.05, five warm-up epochs, cosine).
    """

    def __init__(self, peak: float, warmup_steps: int, total_steps: int):
        self.peak, self.warmup_steps, self.total_steps = peak, warmup_steps, total_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        # The first step already moves: step 0 is 1 / warmup_steps of the way.
        warmup = (step + 1.0) / max(self.warmup_steps, 1)
        done = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return self.peak * ops.where(step < self.warmup_steps, warmup, cosine)

    def get_config(self):
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
        }
