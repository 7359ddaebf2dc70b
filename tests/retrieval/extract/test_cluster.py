"""Extraction by the commands of docs/cluster.md equals that of one process, bit for bit."""

import os
import pathlib
import re
import subprocess
import sys

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
