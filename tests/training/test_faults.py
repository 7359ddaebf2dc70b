"""Faults of a run: it is killed, the disk is full, files are damaged, the loss is NaN."""

import contextlib
import dataclasses
import json
import random
import resource
import signal

import numpy as np
import pytest
import tensorflow as tf
from processes import Process, run
from tensorflow.python.framework.config import disable_op_determinism
from tiny import MODEL, metrics, recipe

from dolg_tf.stage.config import InputError
from dolg_tf.training.checkpoints import Checkpoints
from dolg_tf.training.loop import train
from dolg_tf.training.run_log import RunLog, lock_run

# The size that no file may pass stands in for a full disk. Python passes over the signal for it;
# "kill" puts its default back, which ends the process in the middle of a write.
_FULL = """
import resource, runpy, signal, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
if sys.argv.pop(1) == "kill":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""
_RATES = ("images_per_second", "input_wait")  # of the machine, not of the run


@pytest.fixture(autouse=True)
def _determinism_ends_with_the_test():
    """A run switches it on for its process; XLA, which other tests use, does not support it."""
    yield
    disable_op_determinism()


def _curve(logdir):
    rows = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["name"] not in _RATES]


def _weights(logdir):
    """Returns everything in the latest checkpoint."""
    reader = tf.train.load_checkpoint(str(logdir / "checkpoints"))
    names = reader.get_variable_to_shape_map()
    values = {name: reader.get_tensor(name) for name in sorted(names)}
    return {k: v for k, v in values.items() if "OBJECT_GRAPH" not in k and "save_counter" not in k}


def _assert_same_run(found, expected):
    assert _curve(found) == _curve(expected)
    found, expected = _weights(found), _weights(expected)
    assert found.keys() == expected.keys() and len(found) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def _seed():
    seed = random.SystemRandom().randrange(1000)
    print("seed of the random step:", seed)  # pytest shows it when the test fails
    return random.Random(seed)


def _kill_at(step, data, training):
    process = Process(data, training)
    process.wait_for(f"step {step}/")
    process.signal(signal.SIGKILL)
    process.end(-signal.SIGKILL)


def test_a_killed_run_ends_bit_for_bit_like_one_that_was_not(data, tmp_path):
    data = dataclasses.replace(data, validation_file_pattern="")
    settings = {"epochs": 7, "log_every": 1, "checkpoint_every": 5, "deterministic": True}
    whole, killed = recipe(tmp_path / "whole", **settings), recipe(tmp_path / "killed", **settings)
    _kill_at(_seed().randrange(7, 17), data, killed)
    assert "continuing" in run(data, killed)
    train(MODEL, data, whole)  # here, since starting a process takes longer
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_so_does_one_with_everything_switched_on(data, tmp_path):
    """Killed twice, with pieces, moving average, Adam, validation and rare reports."""
    settings = {
        "epochs": 6,
        "log_every": 5,
        "checkpoint_every": 4,
        "validate_every": 6,
        "deterministic": True,
        "accumulate": 2,
        "ema_decay": 0.9,
        "optimizer": "adam",
        "decay": "decoupled",
        "initial_lr": 0.001,
        "loss": "curricularface",
    }
    whole, killed = recipe(tmp_path / "whole", **settings), recipe(tmp_path / "killed", **settings)
    chance = _seed()
    _kill_at(chance.choice([5, 6, 8]), data, killed)
    _kill_at(chance.choice([10, 12, 15]), data, killed)
    assert "continuing" in run(data, killed)
    train(MODEL, data, whole)  # here, since starting a process takes longer
    _assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_and_a_kill_while_saving_harm_nothing(data, tmp_path):
    data = dataclasses.replace(data, validation_file_pattern="")
    logdir = tmp_path / "run"
    settings = {"log_every": 1, "checkpoint_every": 4, "deterministic": True}
    training = recipe(logdir, **settings)
    first = Process(data, training)
    first.wait_for("step 5/")
    first.signal(signal.SIGINT)
    first.end(128 + signal.SIGINT)
    saved = sorted(path.name for path in (logdir / "checkpoints").iterdir())

    error = Process(data, training, prefix=("-c", _FULL, "full")).error()
    assert "cannot be saved" in error and "continues from the latest checkpoint" in error
    assert sorted(path.name for path in (logdir / "checkpoints").iterdir()) == saved

    Process(data, training, prefix=("-c", _FULL, "kill")).end(-signal.SIGXFSZ)
    left = sorted(path.name for path in (logdir / "checkpoints").iterdir())
    assert set(left) > set(saved)  # it was killed in the middle of a write

    run(data, training)
    assert not list((logdir / "checkpoints").glob("*temp*"))
    train(MODEL, data, recipe(tmp_path / "whole", **settings))
    # The interruption of the first start wrote a window of its own, at a step that is reported
    # anyway; else nothing tells the two runs apart.
    _assert_same_run(logdir, tmp_path / "whole")


def test_a_full_disk_under_the_log_is_one_sentence(tmp_path):
    """TensorBoard's file, with longer rows, is full first, then metrics.jsonl."""
    log = RunLog(tmp_path, 0, chief=True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    failures = []
    try:
        for step in range(300):
            try:
                log.write(step, "train", {"loss": 1.0})
            except OSError as error:
                failures.append(str(error))
        with contextlib.suppress(OSError):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert any("tfevents" in failure for failure in failures)
    assert any("Errno 27" in failure for failure in failures)
    assert all(f"the log in {tmp_path} cannot be written" in failure for failure in failures)
    log = RunLog(tmp_path, 5, chief=True)  # the half line at the end is dropped
    log.write(6, "train", {"loss": 2.0})
    log.close()
    assert sorted(metrics(tmp_path)) == [0, 1, 2, 3, 4, 5, 6]


def test_a_second_run_in_the_same_folder_is_refused(data, tmp_path):
    with (
        lock_run(tmp_path),
        pytest.raises(InputError, match="another process is training in"),
    ):
        train(MODEL, data, recipe(tmp_path))
    lock_run(tmp_path).close()  # free again


@pytest.mark.slow
def test_the_lock_of_a_killed_run_is_free(data, tmp_path):
    data = dataclasses.replace(data, validation_file_pattern="")
    training = recipe(tmp_path, epochs=500, log_every=1)
    first = Process(data, training)
    first.wait_for("step 1/")
    assert "another process is training in" in Process(data, training).error()
    first.signal(signal.SIGKILL)
    first.end(-signal.SIGKILL)
    lock_run(tmp_path).close()


@pytest.mark.slow
def test_nan_stops_the_run_before_it_reaches_a_checkpoint(data, tmp_path):
    """The first step's update ruins the weights; its own loss is still finite."""
    data = dataclasses.replace(data, validation_file_pattern="")
    training = recipe(tmp_path, initial_lr=1e30, log_every=100, checkpoint_every=1)
    error = Process(data, training).error()
    assert "the norm of the weights is inf at step 1" in error
    found = json.loads((tmp_path / "bad_step_1.json").read_text())
    assert found["step"] == 1 and len(found["ids"]) == 8
    assert not list((tmp_path / "checkpoints").glob("ckpt-*"))


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"garbage"])
def test_a_damaged_list_of_checkpoints_is_no_fresh_start(tmp_path, content):
    """As after a power failure."""
    state = {"step": tf.Variable(3, dtype=tf.int64)}
    Checkpoints(tmp_path, state, keep=1, chief=True).save()
    (tmp_path / "checkpoints" / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match="which lists the checkpoints, is damaged"):
        Checkpoints(tmp_path, state, keep=1, chief=True)
    # What the error says.
    (tmp_path / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "ckpt-3"')
    assert Checkpoints(tmp_path, state, keep=1, chief=True).restore()


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(data, tmp_path):
    data = dataclasses.replace(data, validation_file_pattern="")
    settings = {"checkpoint_every": 2, "deterministic": True}
    whole, damaged = (recipe(tmp_path / name, **settings) for name in ("whole", "damaged"))
    train(MODEL, data, dataclasses.replace(damaged, max_steps=8))
    path = tmp_path / "damaged" / "checkpoints" / "ckpt-8.data-00000-of-00001"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    error = Process(data, damaged).error()
    assert "ckpt-8 is damaged" in error and "--restore=previous" in error
    train(MODEL, data, dataclasses.replace(damaged, restore="previous"))
    train(MODEL, data, whole)
    _assert_same_run(tmp_path / "damaged", tmp_path / "whole")
