"""Two workers on this machine train like one process, stop together, and notice a lost one."""

import contextlib
import dataclasses
import os
import signal
import socket
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from processes import run, start_workers
from tiny import metrics, recipe

from dolg_tf.stage.config import InputError
from dolg_tf.training import distribution

# A connection to a dead process is reset at once; the rest is for a busy machine.
_NOTICE = 60  # seconds


def _saved(logdir):
    return int(tf.train.latest_checkpoint(str(logdir / "checkpoints")).rsplit("-", 1)[1])


@pytest.mark.slow
def test_two_workers_train_like_one_whatever_stops_them(data, tmp_path):
    """SIGTERM to one, kill -9 of one, kill -9 of the chief: the same command always continues."""
    together, alone, elsewhere = (tmp_path / name for name in ("together", "alone", "elsewhere"))
    training = recipe(
        together,
        epochs=5,
        initial_lr=0.002,
        clip_norm=1.0,  # steps that throw the loss about magnify the last digit of a float
        log_every=1,
        validate_every=20,
        sync_batch_norm=True,
        deterministic=True,
    )
    # The other worker has a folder of its own here, to see that it writes nothing.
    workers = start_workers(data, training, dataclasses.replace(training, logdir=str(elsewhere)))
    workers[0].wait_for("step 3/")
    workers[1].signal(signal.SIGTERM)
    for worker in workers:
        log = worker.end(128 + signal.SIGTERM)
        assert f"interrupted and saved at step {_saved(together)};" in log
    assert not elsewhere.exists()

    for victim, survivor in ((1, 0), (0, 1)):
        before = _saved(together)
        workers = start_workers(data, training, training)
        workers[survivor].wait_for(f"step {before + 2}/")
        workers[victim].signal(signal.SIGKILL)
        killed = time.monotonic()
        error = workers[survivor].error(_NOTICE)
        said = next(at for at, line in workers[survivor].lines if line == error)
        print(f"said after {said - killed:.1f} s, ended after {time.monotonic() - killed:.1f} s")
        assert "another worker is gone" in error and "start all workers again" in error
        assert f"at step {before} of 20" in workers[survivor].log

    workers = start_workers(data, training, training)
    for worker in workers:
        worker.end(0)
    run(data, dataclasses.replace(training, logdir=str(alone)))
    for name in ("loss", "learning_rate", "gradient_norm"):
        found, expected = metrics(together, name=name), metrics(alone, name=name)
        assert sorted(found) == sorted(expected) == list(range(1, 21))
        steps = sorted(found)
        found, expected = ([values[s] for s in steps] for values in (found, expected))
        print(name, "differs by", np.abs(np.subtract(found, expected)).max())
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
    loss = [metrics(folder, "validation")[20] for folder in (together, alone)]
    np.testing.assert_allclose(*loss, rtol=1e-3)
    files = [sorted(p.name for p in folder.iterdir()) for folder in (together, alone)]
    assert files[0] == files[1]


@pytest.mark.slow
def test_a_worker_says_that_it_waits_for_the_others(data, tmp_path):
    (worker,) = start_workers(data, recipe(tmp_path))
    worker.wait_for("waiting for all workers of TF_CONFIG: localhost:")
    time.sleep(2)  # so that it does wait
    worker.signal(signal.SIGINT)
    worker.end(-signal.SIGINT)


_CLUSTER = '{"cluster": {"worker": [%s]}, "task": {"type": "worker", "index": %d}}'


@pytest.mark.parametrize(
    "value",
    [
        *("{", "{}", '{"cluster": {"worker": ["a:1"]}}', "[]"),
        _CLUSTER % ('"a:1", "b:1"', 2),
        _CLUSTER % ('"a:1", "a:1"', 0),
        _CLUSTER % ('"a", "b"', 0),
        _CLUSTER % ('"a:1", "b:99999"', 0),
        _CLUSTER % ("1, 2", 0),
    ],
)
def test_a_tf_config_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setitem(os.environ, "TF_CONFIG", value)
    with pytest.raises(InputError, match="is not like"):
        distribution.make_strategy()


def _addresses(count):
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [f"localhost:{one.getsockname()[1]}" for one in free]


def test_workers_that_start_at_different_times_meet():
    workers, through = _addresses(3), []

    def start(own, after):
        time.sleep(after)
        distribution.wait_for(workers, own, 30)
        through.append(own)

    threads = [
        threading.Thread(target=start, args=(own, after), daemon=True)
        for own, after in zip(workers, (0, 0.3, 1), strict=True)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.7)
    assert not through  # the last has not started
    # Who is through leaves its port to TensorFlow's server; here, nobody else listens there.
    deadline = time.monotonic() + 20
    while len(through) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    servers = [_serve(own, deadline) for own in list(through)]
    while len(through) < 3 and time.monotonic() < deadline:
        for own in through[len(servers) :]:
            servers.append(_serve(own, deadline))
        time.sleep(0.05)
    assert sorted(through) == sorted(workers)
    for server in servers:
        server.close()


def _serve(own, deadline):
    """Listens where a worker did, as TensorFlow's server does."""
    while True:
        try:
            return socket.create_server(("", int(own.rpartition(":")[2])))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_worker_that_never_starts_is_named():
    own, there, missing = _addresses(3)
    with socket.create_server(("", int(there.rpartition(":")[2]))):
        start = time.monotonic()
        with pytest.raises(ConnectionError, match=f"no answer from {missing} of TF_CONFIG for 1s"):
            distribution.wait_for([own, there, missing], own, 1)
    assert time.monotonic() - start < 5
    distribution.wait_for([own], own, 1)  # and its port is free again


def test_a_port_that_is_taken_is_told():
    (own,) = _addresses(1)
    port = int(own.rpartition(":")[2])
    with (
        socket.create_server(("", port)),
        pytest.raises(InputError, match=f"port {port} of {own} cannot be used"),
    ):
        distribution.wait_for([own, "localhost:1"], own, 1)
