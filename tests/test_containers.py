"""Dockerfiles and the lines for Slurm in docs/, as far as they go without Docker and Slurm."""

import os
import pathlib
import re
import subprocess

import pytest

from dolg_tf.training.workers.cluster import read_cluster

ROOT = pathlib.Path(__file__).parents[1]
_DOCKER = ROOT / "docs" / "docker"


def _instructions(name):
    lines = (_DOCKER / name).read_text().splitlines()
    assert "Not tested" in lines[0] and lines[1].startswith("FROM ")
    return [line.split(maxsplit=1) for line in lines if not line.startswith("#")]


def test_the_training_image_copies_what_the_package_is_built_from():
    steps = _instructions("training.Dockerfile")
    copied = [word for what, rest in steps if what == "COPY" for word in rest.split()[:-1]]
    project = (ROOT / "pyproject.toml").read_text()
    needed = {"pyproject.toml", "setup.py", "constraints.txt", "configs", "dolg_tf"}
    needed |= set(re.findall(r'^(?:readme = |license-files = \[)"(.*?)"', project, re.MULTILINE))
    assert set(copied) == needed and all((ROOT / path).exists() for path in copied)
    (install,) = (rest for what, rest in steps if what == "RUN")
    (extra,) = re.findall(r"/src\[(.*?)\]", install)
    assert re.search(rf"^{extra} = ", project, re.MULTILINE)
    assert ["ENTRYPOINT", '["dolg"]'] in steps


def test_the_serving_image_has_the_model_where_the_server_looks():
    steps = _instructions("serving.Dockerfile")
    # The server's own image reads MODEL_NAME, and looks in /models/$MODEL_NAME for versions.
    assert ["ENV", "MODEL_NAME=${MODEL}"] in steps
    assert ["COPY", "${MODEL} /models/${MODEL}"] in steps
    page = (ROOT / "docs" / "serving.md").read_text()
    (model,) = re.findall(r"--build-arg MODEL=(\w+) -t \w+ models\n", page)
    assert f"/models/{model}:" in page


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder of programs that stand in for Slurm's on four machines, and for `dolg`."""
    for name, script in {
        "scontrol": 'test "$*" = "show hostnames node[1-4]" && printf "node%s\\n" 1 2 3 4',
        "srun": 'for i in 0 1 2 3; do SLURM_NODEID=$i "$@"; done',
        "dolg": 'echo "$TF_CONFIG" | tr -d "\\n"; echo; echo "$@"',
    }.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-4]")


@pytest.mark.usefixtures("slurm")
def test_under_slurm_each_machine_knows_its_place(monkeypatch):
    page = (ROOT / "docs" / "training.md").read_text()
    (script,) = re.findall(r"^```slurm\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True
    )
    assert not done.returncode and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    for i, (config, arguments) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        monkeypatch.setenv("TF_CONFIG", config)
        cluster = read_cluster()
        assert cluster.name(cluster.own) == f"worker {i} at node{i + 1}:5000"
        assert len(cluster.workers) == 4
        assert arguments == "train --recipe=r50 --logdir=/shared/runs/r50"
