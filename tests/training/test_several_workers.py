"""Two workers train like one process, stop together, and notice a lost one."""

import dataclasses
import signal
import time

import hosts
import numpy as np
import pytest
import tensorflow as tf
from processes import Process, free_ports, run, start_workers, tf_config
from tiny import metrics, recipe

from dolg_tf.training.workers.cluster import Cluster
from dolg_tf.training.workers.meeting import meet

# A connection to a dead process is reset at once; the rest is for a busy machine.
_NOTICE = 60  # seconds


def _saved(logdir):
    return int(tf.train.latest_checkpoint(str(logdir / "checkpoints")).rsplit("-", 1)[1])


@pytest.mark.slow
def test_two_workers_train_like_one_whatever_stops_them(data, tmp_path):
    """SIGTERM to one, then kill -9 of the chief: the same command always continues."""
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

    before = _saved(together)
    workers = start_workers(data, training, training)
    workers[1].wait_for(f"step {before + 2}/")
    workers[0].signal(signal.SIGKILL)
    killed = time.monotonic()
    error = workers[1].error(_NOTICE)
    said = next(at for at, line in workers[1].lines if line == error)
    print(f"said after {said - killed:.1f} s, ended after {time.monotonic() - killed:.1f} s")
    assert "another worker is gone: worker 0 at localhost:" in error
    assert "start all workers again" in error
    assert f"at step {before} of 20" in workers[1].log

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
def test_a_worker_that_never_starts_is_named(data, tmp_path):
    (worker,) = start_workers(data, recipe(tmp_path, worker_timeout=2.0))
    error = worker.error()
    assert "worker 1 at localhost:" in error
    assert "has not answered for 2 s (connection refused)" in error
    assert "within --worker_timeout=2 seconds" in error


# A minute without a sign of life is long for a test, and so are two to connect.
_BRISK = """
import sys
from dolg_tf import cli
from dolg_tf.training import distribution
distribution.SILENCE, distribution._REGISTER = 6, 10
cli.run("train", sys.argv[1:], "train.py")
"""


@pytest.mark.slow
def test_a_worker_that_is_lost_before_tensorflow_connects_is_named(data, tmp_path):
    addresses = [f"localhost:{port}" for port in free_ports(2)]
    environment = tf_config(addresses, 0)
    worker = Process(data, recipe(tmp_path), environment, ("-c", _BRISK))
    meet(Cluster(tuple(("worker", i, place) for i, place in enumerate(addresses)), 1), 300)
    error = worker.error()
    assert f"another worker is gone: worker 1 at {addresses[1]}, since all had started" in error


@pytest.mark.slow
@pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())
def test_a_host_that_vanishes_is_named_and_the_run_continues_bit_for_bit(data, tmp_path):
    """Its link fails without a word, as when a machine loses power; the other host trains."""

    def start(network, logdir):
        training = recipe(
            logdir,
            epochs=4,
            log_every=1,
            checkpoint_every=4,
            deterministic=True,
            sync_batch_norm=True,
        )
        addresses = [f"{address}:2222" for address in network.addresses]
        return [
            Process(data, training, tf_config(addresses, i), ("-c", _BRISK), launcher=network.on(i))
            for i in range(2)
        ]

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    with hosts.Network(2) as network:
        for worker in start(network, undisturbed):
            worker.end(0)
        workers = start(network, disturbed)
        workers[0].wait_for("step 6/")
        network.plug(1, False)
        cut = time.monotonic()
        errors = [worker.error(_NOTICE) for worker in workers]
        print(f"ended after {time.monotonic() - cut:.1f} s", *errors, sep="\n")
        for other, error in ((1, errors[0]), (0, errors[1])):
            assert f"worker {other} at {network.addresses[other]}:2222" in error
        network.plug(1, True)
        workers = start(network, disturbed)
        for worker in workers:
            worker.end(0)
        assert "at step 4 of 16" in workers[0].log or "at step 8 of 16" in workers[0].log
    for name in ("loss", "gradient_norm", "weight_norm"):
        found, expected = metrics(disturbed, name=name), metrics(undisturbed, name=name)
        assert found == expected and len(found) == 16
    assert metrics(disturbed, "validation") == metrics(undisturbed, "validation")
