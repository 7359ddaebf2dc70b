"""A wrong path or name is told at once, before TensorFlow is imported, by every command."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import wrong_paths

from dolg_tf.cli import COMMANDS

CASES = [
    f"{name} {flag}={value}"
    for name, flags in wrong_paths.TABLE.items()
    for flag, (_, wrong) in flags.items()
    for value in wrong
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """{case: (what the command says, seconds of CPU)}, all from one process."""
    done = subprocess.run(
        [sys.executable, wrong_paths.__file__, tmp_path_factory.mktemp("world")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, _paths()))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _paths() -> list[pathlib.Path]:
    here = pathlib.Path(__file__).parent
    return [here.parent, here / "support"]


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_path_is_told_at_once(case, answers):
    told, seconds = answers[case]
    wrong = case.rpartition("=")[2].partition(",")[0]
    assert told.startswith("error: ") and wrong in told
    assert seconds < 1.0  # besides the start of Python


def test_every_command_is_tried():
    tried = {wrong_paths.command_of(name.split()) for name in wrong_paths.TABLE}
    assert tried == set(COMMANDS)
