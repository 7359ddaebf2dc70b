"""The learning rate, step by step."""

import math

import numpy as np
import pytest

from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.optimizers import make_schedule
from dolg_tf.training.schedules import CosineByEpoch, WarmupCosine


def _naive(step, peak, warmup, total, start=0.0):
    if step < warmup:
        return peak * (start + (1 - start) * (step + 1) / warmup)
    done = min(1.0, (step - warmup) / (total - warmup))
    return peak * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_warmup_then_cosine_to_zero(start):
    schedule = WarmupCosine(0.05, 10, 100, start)
    for step in (0, 1, 9, 10, 11, 50, 99, 100, 120):
        np.testing.assert_allclose(schedule(step), _naive(step, 0.05, 10, 100, start), atol=1e-7)


def test_without_warmup_it_starts_at_the_peak():
    np.testing.assert_allclose(WarmupCosine(0.1, 0, 10)(0), 0.1)


def _official(step, peak, warmup_epochs, epochs, steps_per_epoch, factor):
    """The authors' get_epoch_lr, called with the number of the epoch."""
    epoch = step // steps_per_epoch
    rate = peak * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
    if epoch < warmup_epochs:
        alpha = epoch / warmup_epochs
        rate *= factor * (1.0 - alpha) + alpha
    return rate


def test_by_epoch_is_the_authors_schedule():
    schedule = CosineByEpoch(0.01, 5, 100, 7, 0.1)
    found = [float(schedule(step)) for step in range(700)]
    expected = [_official(step, 0.01, 5, 100, 7, 0.1) for step in range(700)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert len(set(found[:7])) == 1 and found[7] > found[6]


def test_flags_choose_the_schedule():
    base = {"logdir": "", "epochs": 10, "warmup_epochs": 2, "initial_lr": 0.4, "warmup_start": 0.5}
    cosine = make_schedule(TrainingConfig(**base), 5)
    np.testing.assert_allclose(cosine(0), _naive(0, 0.4, 10, 50, 0.5))
    by_epoch = make_schedule(TrainingConfig(**base, schedule="cosine_by_epoch"), 5)
    np.testing.assert_allclose(by_epoch(5), _official(5, 0.4, 2, 10, 5, 0.5), rtol=1e-6)
    # A few steps on one batch would never leave the warm-up.
    assert make_schedule(TrainingConfig(**base, overfit_batch=True), 5) == 0.4
