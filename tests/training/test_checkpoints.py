"""Checkpoints hold everything, and refuse those of another run."""

import pytest
import tensorflow as tf

from dolg_tf.stage.config import InputError
from dolg_tf.training.checkpoints import Checkpoints


def _state(**values):
    state = {name: tf.Variable(value) for name, value in values.items()}
    return {"step": tf.Variable(0, dtype=tf.int64), "network": state}


def test_the_latest_is_restored_and_old_ones_go(tmp_path):
    state = _state(a=[1.0, 2.0])
    checkpoints = Checkpoints(tmp_path, state, keep=2, chief=True)
    assert not checkpoints.restore()
    for step in (1, 2, 3):
        state["step"].assign(step)
        state["network"]["a"].assign([step, step])
        checkpoints.save()
    found = _state(a=[0.0, 0.0])
    assert Checkpoints(tmp_path, found, keep=2, chief=True).restore()
    assert int(found["step"]) == 3 and found["network"]["a"].numpy().tolist() == [3, 3]
    kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.index"))
    assert kept == ["ckpt-2.index", "ckpt-3.index"]


@pytest.mark.parametrize(
    ("stored", "needed", "named"),
    [
        ({"a": [1.0, 2.0]}, {"a": [0.0, 0.0], "x/b": 0.0}, r"network/x\.Sb is missing in the"),
        (
            {"a": 1.0, "b": 2.0},
            {"a": 1.0},
            r"network/b is of shape \(\) in the checkpoint, missing",
        ),
        (
            {"a": [1.0, 2.0]},
            {"a": [0.0] * 3},
            r"network/a is of shape \(2,\) .* of shape \(3,\) in",
        ),
    ],
)
def test_another_state_is_refused_by_its_first_tensor(tmp_path, stored, needed, named):
    Checkpoints(tmp_path, _state(**stored), keep=1, chief=True).save()
    with pytest.raises(InputError, match=f"ckpt-0 does not fit this run: {named}"):
        Checkpoints(tmp_path, _state(**needed), keep=1, chief=True).restore()


def test_a_checkpoint_of_before_the_threshold_of_local_features_is_taken(tmp_path):
    Checkpoints(tmp_path, _state(a=1.0), keep=2, chief=True).save()
    found = {**_state(a=0.0), "local_threshold": {"raw": tf.Variable(5.0)}}
    checkpoints = Checkpoints(tmp_path, found, keep=2, chief=True)
    assert checkpoints.restore() and float(found["network"]["a"]) == 1
    found["step"].assign(1)
    found["network"]["a"].assign(7.0)
    checkpoints.save()
    found["local_threshold"]["raw"].assign(0.0)
    assert Checkpoints(tmp_path, found, keep=2, chief=True).restore()
    assert float(found["local_threshold"]["raw"]) == 5
    with pytest.raises(InputError, match=r"local_threshold/raw is of shape .*, missing in this"):
        Checkpoints(tmp_path, _state(a=1.0), keep=2, chief=True).restore()


def _saved_twice(folder):
    state = _state(a=[1.0] * 1000)
    checkpoints = Checkpoints(folder, state, keep=2, chief=True)
    for step in (1, 2):
        state["step"].assign(step)
        checkpoints.save()
    return state, checkpoints


@pytest.mark.parametrize("part", ["data-00000-of-00001", "index"])
@pytest.mark.parametrize("fault", ["cut", "gone", "changed"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken_when_asked(tmp_path, part, fault):
    state, checkpoints = _saved_twice(tmp_path)
    file = tmp_path / "checkpoints" / f"ckpt-2.{part}"
    data = bytearray(file.read_bytes())
    if fault == "gone":
        file.unlink()
    elif fault == "cut":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(InputError, match=r"ckpt-2 is damaged .*--restore=previous"):
        checkpoints.restore()
    assert checkpoints.restore("previous")
    assert int(state["step"]) == 1
    state["step"].assign(3)
    checkpoints.save()
    assert checkpoints.restore("previous") and int(state["step"]) == 1  # 2 is forgotten


def test_the_one_before_is_asked_for_in_vain(tmp_path):
    Checkpoints(tmp_path, _state(a=1.0), keep=1, chief=True).save()
    with pytest.raises(InputError, match="no checkpoint before the latest"):
        Checkpoints(tmp_path, _state(a=1.0), keep=1, chief=True).restore("previous")


def test_other_workers_write_elsewhere(tmp_path):
    checkpoints = Checkpoints(tmp_path, _state(a=1.0), keep=1, chief=False)
    checkpoints.save()
    checkpoints.save_best()
    assert not list(tmp_path.iterdir())
