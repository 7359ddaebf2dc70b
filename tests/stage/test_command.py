"""A stage as a command: one line for an error, an honest exit code, flagfiles and recipes."""

import ast
import os
import pathlib
import resource
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _command(*argv):
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bach_size=3"], "Unknown command line flag 'bach_size'. Did you mean: batch_size"),
        (["--batch_size=many"], "--batch_size=many"),
        (["64"], "'64' is not a flag; write --name=value"),
        (["--flagfile=nowhere.flags"], "nowhere.flags"),
        (["--flagfile=configs/r50.flags", "--batch_size=0"], "--batch_size=0 must be at least 1"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_1(argv, message):
    done = _command("train.py", *argv)
    assert done.returncode == 1 and done.stdout == ""
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        ("InputError('no such\\nphoto')", 1, "error: no such photo"),
        ("FloatingPointError('the loss is nan')", 1, "error: the loss is nan"),
        ("PermissionError(13, 'Permission denied', 'out')", 1, "Permission denied: 'out'"),
        (
            "OSError('No space left on device; keep calm')",
            1,
            "error: No space left on device; keep",
        ),
        ("FullDisk(28, 'No space', 'set')", 1, "error: set: No space left on device; what was"),
        ("ValueError('x: File too large')", 1, "error: the output: File too large; what was there"),
        ("KeyboardInterrupt", 130, "interrupted"),
        ("SystemExit(143)", 143, ""),
        ("ZeroDivisionError", 1, "Traceback"),  # a fault of ours is no one-liner
    ],
)
def test_what_a_stage_raises_decides_line_and_exit_code(raised, code, message):
    program = f"""
from dolg_tf.stage import command
from dolg_tf.stage.config import InputError
from dolg_tf.stage.files import FullDisk

def stage():
    raise {raised}

command.main(stage)
"""
    done = _command("-c", program)
    assert done.returncode == code and message in done.stderr
    assert ("Traceback" in done.stderr) == (message == "Traceback")


SHOW = """
import dataclasses, pathlib, sys
from dolg_tf.stage import command
from dolg_tf.stage.config import option

@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos:
    name: str = option("a name", "none")
    count: int = option("how many", 3)

def show(settings):
    print(settings)

recipes = {"small": pathlib.Path(sys.argv[1])}
command.run("show", show, [Photos], sys.argv[2:], recipes)
"""


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["--name=a #1"], "Photos(name='a #1', count=3)"),  # typed, so it is a value
        (["--recipe=small"], "Photos(name='b', count=7)"),
        (["--recipe", "small", "--count=8"], "Photos(name='b', count=8)"),
        (["--count=8", "--recipe=small"], "Photos(name='b', count=7)"),
    ],
)
def test_flags_recipes_and_their_order(tmp_path, argv, shown):
    recipe = tmp_path / "small.flags"
    recipe.write_text("# command: none\n--name=b\n--count=7\n")
    done = _command("-c", SHOW, recipe, *argv)
    assert done.stdout.strip() == shown, done.stderr


@pytest.mark.parametrize(
    ("text", "argv", "message"),
    [
        ("--count=7 # seven\n", ["--recipe=small"], "'--count=7 # seven': a flagfile takes comm"),
        ("--count=7\n", ["--recipe=smal"], "--recipe=smal is unknown; it must be one of small"),
        ("--count=7\n", ["--recipe"], "--recipe needs a name: one of small"),
        ("--count=7\n", ["--recipe", "--help"], "--recipe needs a name: one of small"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, text, argv, message):
    recipe = tmp_path / "small.flags"
    recipe.write_text(text)
    done = _command("-c", SHOW, recipe, *argv)
    assert done.returncode == 1 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not done.stdout


def test_a_flagfile_may_be_a_pipe(tmp_path):
    recipe = tmp_path / "none.flags"
    done = subprocess.run(
        [sys.executable, "-c", SHOW, recipe, "--flagfile=/dev/stdin"],
        input="--name=b\n--count=7\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "Photos(name='b', count=7)", done.stderr


PRINT = """
import sys
from dolg_tf.stage import command

def stage():
    print("x" * int(sys.argv[1]))

command.run("print", stage, [], [])
"""


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("length", ["5", "500000"])
def test_output_that_nobody_reads_is_no_error_and_a_full_disk_is(length, buffered):
    shell = f'"{sys.executable}" -c "$0" {length}'
    environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
    run = {"cwd": ROOT, "env": environment, "capture_output": True, "text": True}
    script = f"set -o pipefail; {shell} | true"
    done = subprocess.run(["bash", "-c", script, PRINT], **run)
    assert done.stderr == "" and done.returncode in (0, 1)
    done = subprocess.run(["bash", "-c", f"{shell} > /dev/full", PRINT], **run)
    assert done.returncode == 1 and "print: error: " in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "space left" in done.stderr


CONTROLS = """
import logging, pathlib
from dolg_tf.stage import command
from dolg_tf.stage.config import InputError

NAME = "a\\x1b[2J\\x07\\r\\x9b1m\\u202egpj\\u2066\\udcff\\u2028é\\tb"

def stage():
    command.show("shown " + NAME)
    logging.getLogger("any").info("two lines:\\n%s", NAME)
    logging.getLogger("any").warning("warned %s", NAME)
    name = "a\\nok: fine.jpg"
    told = "%s, %r, %.3s, %d: %s"
    logging.getLogger("any").warning(told, pathlib.Path(name), name, name, 1, OSError(name))
    raise InputError("refused " + NAME)

command.run("controls", stage, [], [])
"""


def test_nothing_is_printed_by_another_way():
    for path in (ROOT / "dolg_tf").rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        printing = {"print", "sys.stdout.write", "sys.stderr.write"} & {*calls}
        assert not printing or (path.name == "command.py" and calls.count("print") == 1), path


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_no_commands_to_the_terminal(encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", CONTROLS], cwd=ROOT, env=environment, capture_output=True
    )
    plain = r"a\x1b[2J\x07\r\x9b1m\u202egpj\u2066\udcff\u2028" + (
        "é" if encoding == "utf-8" else r"\xe9"
    )
    assert done.stdout.decode(encoding) == f"shown {plain}\tb\n", done.stderr
    log, named, warned, folded, refused = done.stderr.decode(encoding).splitlines()
    assert log == "two lines:" and named == rf"{plain}\tb" and warned == rf"warned {plain}\tb"
    assert folded == r"a\nok: fine.jpg, 'a\nok: fine.jpg', a\n, 1: a\nok: fine.jpg"
    assert refused == f"controls: error: refused {plain}\tb" and done.returncode == 1


def test_a_closed_standard_output_is_no_fault():
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "$0" 5 >&-', PRINT], cwd=ROOT, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_command_continues_after_a_full_disk(tmp_path):
    words = [sys.executable, "-m", "dolg_tf", "draw", f"--output={tmp_path / 'photos'}"]
    words += ["--landmarks=2", "--unseen_landmarks=1", "--photos_per_landmark=3"]
    run = {"cwd": ROOT, "capture_output": True, "text": True}

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    full = subprocess.run(words, preexec_fn=limit, **run)
    error = full.stderr.splitlines()[-1]
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert f"draw: error: {tmp_path}/photos/" in error and ".jpg: File too large;" in error
    assert error.endswith(
        "; the finished parts are kept: make room, and the same command continues"
    )
    assert not [*tmp_path.rglob(".*")]
    assert subprocess.run(words, **run).returncode == 0
