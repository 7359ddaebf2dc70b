"""Extraction by the commands of docs/cluster.md equals that of one process, bit for bit."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import stand_in_saved_model
from PIL import Image

ROOT = pathlib.Path(__file__).parents[3]
# A `dolg` whose shards are small.
DOLG = f"""#!{sys.executable}
import sys
from dolg_tf.retrieval.extract import shards
shards.SHARD_PHOTOS = 4
from dolg_tf.cli import main
sys.exit(main())
"""
LOCAL = ["--saved_model=models/mine/1", "--images=photos", "--output=alone"]


def block(language):
    """Returns the only block of this language in the page."""
    page = (ROOT / "docs/cluster.md").read_text()
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A folder with a model, photos, the commands' `dolg` and the set that one process makes."""
    disk = tmp_path_factory.mktemp("disk")
    (disk / "models/mine").mkdir(parents=True)
    stand_in_saved_model.save(disk / "models/mine/1", local=())
    (disk / "photos").mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (40 + number % 3 * 8, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(disk / f"photos/{number:02d}.png")
    (disk / "bin").mkdir()
    (disk / "bin/dolg").write_text(DOLG)
    (disk / "bin/dolg").chmod(0o755)
    start(disk, ["dolg", "extract", *LOCAL]).communicate()
    return disk


def start(disk, command, **variables):
    paths = {
        "PATH": f"{disk / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=disk, env=os.environ | paths | variables, **pipe)


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def check(disk, jobs, tmp_path):
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * len(jobs), said
    assert sum("30 photos described" in text for text in said) == 1  # one put it together
    made = disk / "sets/photos"
    assert everything(made) == everything(disk / "alone")
    made.rename(tmp_path / "done")


def test_the_tasks_of_a_slurm_array(disk, tmp_path):
    script = block("sbatch")
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    (disk / "extract.sbatch").write_text(script)
    tasks = range(first, last + 1)
    jobs = [
        start(disk, ["bash", "extract.sbatch"], SLURM_ARRAY_TASK_ID=str(task)) for task in tasks
    ]
    check(disk, jobs, tmp_path)


def test_the_pods_of_a_kubernetes_job(disk, tmp_path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(block("yaml"))["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    indices = map(str, range(job["completions"]))
    command = [*container["command"], *container["args"]]
    check(disk, [start(disk, command, JOB_COMPLETION_INDEX=index) for index in indices], tmp_path)


# What a worker imports first, perhaps twice: small shards, each of which takes a while.
SLOW = """
import time
from dolg_tf.retrieval.extract import shards
shards.SHARD_PHOTOS = 4
def slowly(*args, write=shards.UnfinishedSet.write):
    time.sleep(2)
    write(*args)
if shards.UnfinishedSet.write.__name__ == "write":
    shards.UnfinishedSet.write = slowly
"""


def wait_for(found, seconds=60):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_dask_with_a_worker_killed_and_one_cut_off(disk, tmp_path):
    pytest.importorskip("distributed", reason="pip install distributed")
    import hosts

    if hosts.why_not():
        pytest.skip(hosts.why_not())
    script = block("python")
    (disk / "extract_on_dask.py").write_text(re.sub(r"sleep\(\d+\)", "sleep(1)", script))
    (disk / "slow.py").write_text(SLOW)
    timeout = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s"}  # Dask takes no less
    started = []

    def begin(network, host, *words):
        environment = os.environ | timeout | {"PYTHONPATH": str(ROOT)}
        command = [*network.on(host), sys.executable, *words]
        with (disk / f"{len(started)}.log").open("w") as log:
            streams = {"stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(
                command, cwd=disk, env=environment, start_new_session=True, **streams
            )
        started.append(process)
        return process

    def text(number):
        return (disk / f"{number}.log").read_text()

    with hosts.Network(4) as network:
        address = f"tcp://{network.addresses[0]}:8786"
        try:
            begin(network, 0, "-m", "dask", "scheduler", "--no-dashboard")
            options = ("--nthreads=1", "--no-dashboard", "--preload=slow.py")
            for host in (1, 2, 3):
                begin(network, host, "-m", "dask", "worker", address, *options)
            wait_for(lambda: text(0).count("Register worker") >= 3)
            client = begin(network, 0, "extract_on_dask.py", address)
            unfinished = disk / "sets/photos/unfinished"
            wait_for(lambda: len(list(unfinished.glob("part-*.lock"))) == 3)
            wait_for(lambda: list(unfinished.glob("shard-*.json")))
            os.killpg(started[1].pid, signal.SIGKILL)
            network.plug(2, False)
            assert client.poll() is None and not (disk / "sets/photos/meta.json").exists()
            assert client.wait(150) == 0, text(4)
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    assert text(0).count("Remove worker") >= 2
    made = disk / "sets/photos"
    assert everything(made) == everything(disk / "alone")
    made.rename(tmp_path / "done")
