"""Who the workers of a run are, and how they find each other, without TensorFlow."""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import hosts
import pytest
from processes import free_ports

from dolg_tf.pipelines.train import train
from dolg_tf.stage.config import InputError
from dolg_tf.training.workers import meeting
from dolg_tf.training.workers.cluster import Cluster, read_cluster

_MEET = """
import logging, sys
from dolg_tf.training.workers import cluster, meeting
from dolg_tf.stage import command
logging.basicConfig(level=logging.INFO, format="%(message)s")
meeting._REMIND = 0.5
with command.exit_code("meet"):
    meeting.meet(cluster.read_cluster(), float(sys.argv[1]))
"""


def _config(workers, own, job="worker", **jobs):
    cluster = {"worker": list(workers), **jobs}
    return json.dumps({"cluster": cluster, "task": {"type": job, "index": own}})


def _cluster(ports, own):
    workers = [("worker", i, f"localhost:{port}") for i, port in enumerate(ports)]
    return Cluster(tuple(workers), own)


def test_a_cluster_lists_the_chief_first(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", _config(["b:2", "[::1]:3"], "1", chief=["a:1"], evaluator=[]))
    cluster = read_cluster()
    assert cluster.names(range(2)) == "chief 0 at a:1 and worker 0 at b:2"
    assert cluster.name(2) == "worker 1 at [::1]:3"
    assert cluster.own == 2 and cluster.others == [0, 1] and cluster.address(2) == ("::1", 3)
    monkeypatch.delenv("TF_CONFIG")
    assert read_cluster() is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *((value, "is not like") for value in ("{", "{}", "[]", "7", '{"cluster": {"worker": 1}}')),
        ('{"cluster": {"worker": ["a:1"]}}', "is not like"),
        (
            '{"cluster": {"worker": {"0": "a:1"}}, "task": {"type": "worker", "index": 0}}',
            "not like",
        ),
        (_config(["a:1"], None), "is not like"),
        (_config(["a:1", "b:1"], 2), r"is worker 2, and the cluster has worker 0, worker 1; set"),
        (_config(["a:1", "b:1"], -1), "is worker -1, and"),
        (_config(["a:1"], 0, "chief"), "is chief 0, and the cluster has worker 0"),
        (_config([], 0), "the cluster has nobody"),
        (_config(["a:1", "b:1", "a:1"], 0), "worker 0 and worker 2 have one address, a:1"),
        (_config(["a:1"], 0, ps=["b:1"]), "the cluster has ps; training knows only"),
        (_config(["a:1"], 0, chief=["b:1", "c:1"]), "2 chiefs"),
        *(
            (_config([address], 0), "is not a host and a port")
            for address in ("a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:x", "http://a:1", 5)
        ),
    ],
)
def test_a_tf_config_that_is_none_is_refused_before_tensorflow(monkeypatch, value, message):
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(InputError, match=message):
        train(None, None, None)


def _all_meet(clusters, timeout=20.0):
    """Returns the errors of workers that meet at once, each in a thread."""
    with concurrent.futures.ThreadPoolExecutor(len(clusters)) as pool:
        done = [pool.submit(meeting.meet, cluster, timeout) for cluster in clusters]
        return [future.exception() for future in done]


def test_workers_meet_whoever_starts_first():
    ports = free_ports(3)
    clusters = [_cluster(ports, own) for own in range(3)]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        done = [pool.submit(meeting.meet, cluster, 20) for cluster in clusters[:2]]
        time.sleep(0.3)
        assert not any(future.done() for future in done)
        done.append(pool.submit(meeting.meet, clusters[2], 20))
        assert [future.result() for future in done] == [None] * 3
    for port in ports:  # TensorFlow can have it now
        socket.create_server(("", port)).close()
    meeting.meet(_cluster(ports[:1], 0), 0)  # nobody to wait for


@pytest.mark.parametrize("fault", ["index", "cluster"])
def test_workers_that_contradict_each_other_end_at_once(fault):
    ports = free_ports(3)
    clusters = [_cluster(ports[:2], 0), _cluster(ports[:2], 1)]
    if fault == "cluster":
        clusters[1] = _cluster((ports[0], ports[1], ports[2]), 1)
        expected = f"has other workers in its TF_CONFIG (localhost:{ports[0]}, localhost:{ports[1]}"
    else:  # the second machine listens where it is expected, but takes itself for the first
        workers = (("worker", 0, f"localhost:{ports[0]}"), ("worker", 1, f"localhost:{ports[1]}"))
        clusters[1] = _Misled(workers, 0)
        expected = "says that it is worker 0, as does its TF_CONFIG; give each worker its own"
    start = time.monotonic()
    errors = _all_meet(clusters)
    assert time.monotonic() - start < 10
    assert all(isinstance(error, InputError) and expected in str(error) for error in errors), errors


class _Misled(Cluster):
    def address(self, worker):
        # One machine, so that the port must tell apart what the host does elsewhere.
        return super().address(1 if worker == self.own else worker)


def test_a_worker_that_is_called_by_nobody_says_so():
    """As behind a firewall: it reaches the other, which does not reach it."""
    ports = free_ports(2)
    words = json.dumps({"workers": _cluster(ports, 1).workers, "own": 1}).encode() + b"\n"
    with socket.create_server(("", ports[1])) as server:

        def answer():
            with contextlib.suppress(OSError):
                while True:
                    call, _ = server.accept()
                    call.sendall(words)
                    call.close()

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(answer)
            expected = f"worker 1 at localhost:{ports[1]} answers, but cannot reach worker 0 at"
            with pytest.raises(ConnectionError, match=expected):
                meeting.meet(_cluster(ports, 0), 1)
            server.shutdown(socket.SHUT_RDWR)


def test_strangers_are_no_workers():
    """Another program at a worker's port, calls of a port scanner, and a port that is taken."""
    ports = free_ports(2)
    with socket.create_server(("", ports[1])) as server:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            waits = pool.submit(meeting.meet, _cluster(ports, 0), 1.5)
            call, _ = server.accept()
            call.sendall(b"\0\0\x12\4\0\n")
            call.close()
            for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b'{"workers": 1, "own": 0}\n', b"[]\n"):
                with socket.create_connection(("localhost", ports[0])) as scan:
                    scan.sendall(noise)
            error = waits.exception()
        assert isinstance(error, ConnectionError) and "another program has this port" in str(error)
        with pytest.raises(InputError, match=f"port {ports[1]} of this machine.*end the process"):
            meeting.meet(_cluster(ports, 1), 1)


@contextlib.contextmanager
def _start(config, timeout, on=()):
    process = subprocess.Popen(
        [*on, sys.executable, "-c", _MEET, str(timeout)],
        env={**os.environ, "TF_CONFIG": config},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_wait_can_be_interrupted():
    ports = free_ports(2)
    with _start(_config([f"localhost:{port}" for port in ports], 0), 600) as process:
        for start in ("this is worker 0", "waiting: worker 1"):
            assert process.stderr.readline().startswith(start)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


@pytest.mark.slow
@pytest.mark.skipif(bool(hosts.why_not()), reason=hosts.why_not())
def test_the_missing_host_is_named():
    """Of three hosts, one does not start its worker, and one is cut off."""
    with hosts.Network(3) as network, contextlib.ExitStack() as stack:
        addresses = [f"{address}:2222" for address in network.addresses]
        network.plug(2, False)
        started = [
            stack.enter_context(_start(_config(addresses, i), 7, network.on(i))) for i in (0, 2)
        ]
        first, cut_off = (process.communicate(timeout=30)[1] for process in started)
        assert [process.returncode for process in started] == [1, 1]
        error = first.splitlines()[-1]
        assert "worker 1 at 10.77.0.2:2222 has not answered for 7 s (connection refused)" in error
        assert "worker 2 at 10.77.0.3:2222 has not answered for 7 s" in error
        assert "refused" not in error.partition("; ")[2]
        assert all(f"worker {i} at" in cut_off.splitlines()[-1] for i in (0, 1))

        network.plug(2, True)
        started = [
            stack.enter_context(_start(_config(addresses, i), 60, network.on(i))) for i in range(3)
        ]
        for process in started:
            assert process.wait(60) == 0


def test_who_does_not_answer_is_unreachable():
    ports = free_ports(3)
    with socket.create_server(("", ports[1])):
        assert meeting.unreachable(_cluster(ports, 0)) == [2]
