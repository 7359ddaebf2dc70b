"""Checkpoints hold everything, and refuse what is not theirs."""

import pytest
import tensorflow as tf

from dolg_tf.config import InputError
from dolg_tf.training.checkpoints import Checkpoints


def _state(**values):
    state = {name: tf.Variable(value) for name, value in values.items()}
    return {"step": tf.Variable(0, dtype=tf.int64), "network": state}


def test_the_latest_is_restored_and_old_ones_go(tmp_path):
    state = _state(a=[1.0, 2.0])
    checkpoints = Checkpoints(tmp_path, state, keep=2, chief=True)
    assert not checkpoints.restore(tmp_path)
    for step in (1, 2, 3):
        state["step"].assign(step)
        state["network"]["a"].assign([step, step])
        checkpoints.save()
    found = _state(a=[0.0, 0.0])
    assert Checkpoints(tmp_path, found, keep=2, chief=True).restore(tmp_path)
    assert int(found["step"]) == 3 and found["network"]["a"].numpy().tolist() == [3, 3]
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.index"))
    assert kept == ["ckpt-2.index", "ckpt-3.index"]


@pytest.mark.parametrize(
    "other", [{"a": [0.0, 0.0], "b": 0.0}, {"b": [0.0, 0.0]}, {"a": [0.0, 0.0, 0.0]}]
)
def test_another_state_is_refused(tmp_path, other):
    Checkpoints(tmp_path, _state(a=[1.0, 2.0]), keep=1, chief=True).save()
    with pytest.raises(InputError, match="does not fit this run"):
        Checkpoints(tmp_path, _state(**other), keep=1, chief=True).restore(tmp_path)


def test_less_than_was_saved_is_refused(tmp_path):
    Checkpoints(tmp_path, _state(a=1.0, b=2.0), keep=1, chief=True).save()
    with pytest.raises(InputError, match="does not fit this run"):
        Checkpoints(tmp_path, _state(a=1.0), keep=1, chief=True).restore(tmp_path)


def test_other_workers_write_elsewhere(tmp_path):
    checkpoints = Checkpoints(tmp_path, _state(a=1.0), keep=1, chief=False)
    checkpoints.save()
    checkpoints.save_best()
    assert not list(tmp_path.iterdir())
