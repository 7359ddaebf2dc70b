"""The reports of a run: metrics, TensorBoard, a profile and a picture; and when it stops."""

import json
import math
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import MODEL, metrics, recipe

from dolg_tf.stage.config import InputError
from dolg_tf.training.loop import train
from dolg_tf.training.run_log import RunLog
from dolg_tf.training.watch import Reports


def _reports(folder, weight_norm=1.0, **changes):
    """Reports of a made-up run."""
    trainer = types.SimpleNamespace(
        training=recipe(folder, **changes),
        optimizer=types.SimpleNamespace(learning_rate=0.1),
        watched=lambda: {"weight_norm": weight_norm},
    )
    photos = types.SimpleNamespace(
        ids_of_step=lambda step: [f"photo of {step}"],
        faults_of_step=lambda step: [f"fault of {step}"],
    )
    return Reports(trainer, photos, RunLog(folder, 0, chief=True), 100)


def _result(loss=1.0, hits=4.0, photos=8.0, norm=2.0):
    return tf.constant([loss, hits, photos, 0.0, norm])


def test_means_are_over_the_steps_since_the_last_report(tmp_path, caplog):
    reports = _reports(tmp_path)
    for loss in (1.0, 2.0, 6.0):
        reports.add(_result(loss, hits=2.0, photos=6.0), waited=0.0)
    reports.report(3)
    reports.add(_result(10.0), waited=0.0)
    reports.report(4)
    assert metrics(tmp_path) == {3: 3.0, 4: 10.0}
    assert metrics(tmp_path, name="accuracy") == {3: pytest.approx(1 / 3), 4: 0.5}
    assert metrics(tmp_path, name="bad_photos") == {3: 6.0}
    assert [f"left out: fault of {step}" for step in range(3)] == caplog.messages
    assert metrics(tmp_path, name="gradient_norm") == {3: 2.0, 4: 2.0}


def test_a_starved_run_says_so(tmp_path, caplog):
    reports = _reports(tmp_path)
    reports._start -= 10.0
    reports.add(_result(), waited=9.0)
    with caplog.at_level("INFO"):
        reports.report(1)
    assert "90 % of the time waiting for photos" in caplog.text
    assert metrics(tmp_path, name="input_wait")[1] == pytest.approx(0.9, abs=0.01)
    assert metrics(tmp_path, name="images_per_second")[1] == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(
    ("results", "weight_norm", "message"),
    [
        ([_result(), _result(math.nan), _result(math.nan)], 1.0, "the loss is nan at step 6"),
        ([_result(), _result(norm=math.inf), _result(math.nan)], 1.0, "gradient is inf at step 6"),
        ([_result(), _result()], math.inf, "the norm of the weights is inf at step 7"),
    ],
)
def test_the_first_bad_step_is_named_with_its_photos(tmp_path, results, weight_norm, message):
    reports = _reports(tmp_path, weight_norm)
    for result in results:
        reports.add(result, 0.0)
    with pytest.raises(FloatingPointError, match=message + ";.*last checkpoint is intact"):
        reports.report(7)
    step = int(message.split()[-1])
    found = json.loads((tmp_path / f"bad_step_{step}.json").read_text())
    assert found["step"] == step and found["ids"] == [f"photo of {step - 1}"]
    assert not (tmp_path / "metrics.jsonl").exists()


def test_steps_that_float16_left_out_spoil_no_mean(tmp_path):
    reports = _reports(tmp_path, precision="float16")
    for norm in (3.0, math.inf):
        reports.add(_result(norm=norm), 0.0)
    reports.report(2)
    reports.add(_result(norm=math.nan), 0.0)
    reports.report(3)
    assert metrics(tmp_path, name="gradient_norm") == {2: 3.0}
    assert metrics(tmp_path) == {2: 1.0, 3: 1.0}


@pytest.mark.slow
def test_tensorboard_shows_it_all(data, tmp_path):
    training = recipe(tmp_path, epochs=2, log_every=1, profile_steps=(2, 3))
    train(MODEL, data, training)
    assert list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"tensors": 0})
    events.Reload()
    for name in (
        "loss",
        "accuracy",
        "learning_rate",
        "gradient_norm",
        "weight_norm",
        "gem_p",
        "images_per_second",
        "input_wait",
    ):
        found = {
            event.step: float(tf.make_ndarray(event.tensor_proto))
            for event in events.Tensors(f"train/{name}")
        }
        assert found == pytest.approx(metrics(tmp_path, name=name), rel=1e-5)
        assert set(found) - {1} == set(range(2, 9))
    picture = tf.make_ndarray(events.Tensors("attention")[-1].tensor_proto)
    pixels = tf.io.decode_png(picture[2]).numpy()  # behind width and height
    assert len(picture) == 2 + 4 and pixels.shape == (32, 64, 3)
    photo, attention = pixels[:, :32], pixels[:, 32:]
    assert photo.std() > 5 and attention.max() == 255
    assert np.array_equal(attention[..., 0], attention[..., 1])
    # A run that continues after the profiled steps neither starts nor stops a profile.
    train(MODEL, data, recipe(tmp_path, epochs=2, profile_steps=(2, 8), max_steps=8))


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart_or_the_check_fails(data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(MODEL, data, recipe(tmp_path, overfit_batch=True, max_steps=60))
    assert "overfit_batch: passed" in caplog.text
    with pytest.raises(InputError, match=r"--overfit_batch: the loss went from .*, not to a tenth"):
        train(MODEL, data, recipe(tmp_path, overfit_batch=True, max_steps=5, initial_lr=1e-9))
    assert not list(tmp_path.iterdir())


def test_float16_that_overflows_at_any_scale_stops(tmp_path):
    reports = _reports(tmp_path, precision="float16")
    reports._trainer.watched = lambda: {"weight_norm": 1.0, "loss_scale": 0.5}
    reports.add(_result(norm=float("inf")), waited=0.0)
    with pytest.raises(FloatingPointError, match=r"not finite even with a loss scale of 0\.5"):
        reports.report(1)
