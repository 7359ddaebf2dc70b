"""The learning rate, step by step."""

import math

import keras
import numpy as np

from dolg_tf.training.schedules import WarmupCosine


def _naive(step, peak, warmup, total):
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / (total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def test_warmup_then_cosine_to_zero():
    schedule = WarmupCosine(0.05, 10, 100)
    for step in (0, 1, 9, 10, 11, 50, 99, 100, 120):
        np.testing.assert_allclose(schedule(step), _naive(step, 0.05, 10, 100), atol=1e-7)


def test_without_warmup_it_starts_at_the_peak():
    np.testing.assert_allclose(WarmupCosine(0.1, 0, 10)(0), 0.1)


def test_it_serialises():
    schedule = WarmupCosine(0.05, 10, 100)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    np.testing.assert_allclose(again(37), schedule(37))
