"""The front door: every command is there, answers at once, and a wrong word is told."""

import ast
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
from commands import list_commands

import dolg_tf
from dolg_tf.cli import COMMANDS as TABLE

ROOT = pathlib.Path(__file__).parents[1]


def _command(*argv, env=None):
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        ([], 0, "usage: python -m dolg_tf COMMAND", ""),
        (["--help"], 0, "  index build ", ""),
        (["help", "draw"], 0, "usage: python -m dolg_tf draw [--flagfile=FILE]", ""),
        (["--version"], 0, f"dolg_tf {dolg_tf.__version__}\n", ""),
        (["index", "--help"], 0, "  index query ", ""),
        (["help", "--help"], 0, "  index build ", ""),
        (["--help", "draw"], 0, "usage: python -m dolg_tf draw [--flagfile=FILE]", ""),
        (
            ["extrakt"],
            1,
            "",
            "'extrakt' is not a command; did you mean `python -m dolg_tf ex",
        ),
        (["idnex", "build"], 1, "", "did you mean `python -m dolg_tf index`?"),
        (["index", "biuld"], 1, "", "did you mean `python -m dolg_tf index build`?"),
        (["evaluate", "--k=1"], 1, "", "see `python -m dolg_tf evaluate --help`"),
        (["--output=x", "draw"], 1, "", "'--output=x' is not a command; see `python -m dolg_tf"),
    ],
)
def test_the_first_words_choose_a_command(argv, code, out, err):
    done = _command("-m", "dolg_tf", *argv)
    assert done.returncode == code
    assert out in done.stdout and bool(out) == bool(done.stdout)
    assert err in done.stderr and bool(err) == bool(done.stderr)
    assert len(done.stderr.splitlines()) <= 1


def test_a_group_alone_is_incomplete():
    done = _command("-m", "dolg_tf", "index")
    assert done.returncode == 1 and not done.stdout and "  index query " in done.stderr


def test_every_command_leads_to_a_stage_and_fits_a_line():
    for name, entry in TABLE.items():
        module, function = entry.stage.split(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        stages = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == function]
        assert stages and all(a.annotation for a in stages[0].args.args), name
        assert len(entry.words) < 70


def test_the_scripts_are_the_same_commands():
    for script, name in (("train.py", "train"), ("export/convert_checkpoint.py", "convert")):
        ours, door = _command("-m", "dolg_tf", name, "--help"), _command(script, "--help")
        assert door.stdout == ours.stdout.replace(f"-m dolg_tf {name}", script) != ""


# --- answers at once ------------------------------------------------------------------


COMMANDS = list_commands()


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """An environment in which whoever imports TensorFlow ends."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "tensorflow.py").write_text("raise SystemExit('TensorFlow was imported')")
    return {**os.environ, "PYTHONPATH": str(folder)}


def _answer(environment, *argv):
    """Returns a finished child and its CPU time, which a busy machine leaves as it is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _command(*argv, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_and_a_mistyped_flag_are_answered_at_once(words, without_tensorflow):
    done, seconds = _answer(without_tensorflow, *words, "--help")
    assert done.returncode == 0 and "--flagfile" in done.stdout, done.stderr
    assert re.search(r"\((default|required)", done.stdout) and seconds < 1.5
    done, seconds = _answer(without_tensorflow, *words, "--no_such_flag=1")
    assert done.returncode == 1 and "Unknown command line flag 'no_such_flag'" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and seconds < 1.5


def test_the_package_is_imported_at_once(without_tensorflow):
    program = """
import time
start = time.process_time()
import dolg_tf
print(time.process_time() - start)
"""
    done, _ = _answer(without_tensorflow, "-c", program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1
