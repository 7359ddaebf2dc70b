"""Dataclasses, flags and flagfiles say the same; commands fail in one line."""

import dataclasses
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest
from absl import flags
from commands import list_commands

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError, option
from dolg_tf.training.config import TrainingConfig

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.flags"))


def _parse(classes, *argv):
    values = flags.FlagValues()
    configs.define_flags(*classes, values=values)
    values(["program", *argv])
    return tuple(configs.from_flags(cls, values) for cls in classes)


def _command(*argv, env=None):
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )


def test_flags_give_the_defaults_and_take_values():
    (config,) = _parse([DolgConfig])
    assert config == DolgConfig()
    (config,) = _parse([DolgConfig], "--nomulti_atrous", "--dilations=1,2", "--gem_p=4.6")
    assert config == DolgConfig(multi_atrous=False, dilations=(1, 2), gem_p=4.6)


def test_a_flagfile_written_from_configs_gives_them_again(tmp_path):
    model = DolgConfig(dilations=(1, 2), global_pooling="learned")
    training = TrainingConfig(logdir="run", clip_norm=0.5)
    path = tmp_path / "flags.txt"
    path.write_text(configs.to_flagfile(model, training))
    assert _parse([DolgConfig, TrainingConfig], f"--flagfile={path}") == (model, training)


def test_json_gives_the_config_again():
    config = DolgConfig(preprocessing=OFFICIAL_PREPROCESSING)
    assert configs.from_dict(DolgConfig, configs.to_dict(config), "here") == config
    with pytest.raises(InputError, match="here: unknown DolgConfig field 'nonsense'"):
        configs.from_dict(DolgConfig, {"nonsense": 1}, "here")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], r"here: DolgConfig is \[1\]; it must be an object"),
        (None, "DolgConfig is None; it must be an object"),
        ({"preprocessing": "bgr"}, "Preprocessing is 'bgr'; it must be an object"),
        ({"dilations": "abc"}, "here: dilations is 'abc'; it must be a list"),
        ({"dilations": [1, 2.5]}, "dilations is 2.5; it must be a whole number"),
        ({"dilations": [1, [2]]}, r"dilations is \[2\]; it must be a whole number"),
        ({"descriptor_size": True}, "descriptor_size is True; it must be a whole number"),
        ({"descriptor_size": None}, "descriptor_size is None; it must be a whole number"),
        ({"descriptor_size": -1}, "here: --descriptor_size=-1 must be at least 1"),
        ({"multi_atrous": 1}, "multi_atrous is 1; it must be true or false"),
        ({"backbone": 50}, "backbone is 50; it must be a string"),
        ({"fusion": "none"}, "fusion is 'none'; it must be one of orthogonal, concat"),
        ({"gem_p": "3"}, "gem_p is '3'; it must be a finite number"),
        ({"gem_p": float("inf")}, "gem_p is inf; it must be a finite number"),
        ({"gem_p": 10**400}, "gem_p is 1000.*; it must be a finite number"),
        ({"preprocessing": {"mean": [0, float("nan"), 0]}}, "mean is nan; it must be a finite"),
    ],
)
def test_json_of_another_kind_is_named(values, message):
    with pytest.raises(InputError, match=message):
        configs.from_dict(DolgConfig, values, "here")


def test_json_may_write_a_float_without_fraction():
    assert configs.from_dict(DolgConfig, {"gem_p": 3}, "here") == DolgConfig(gem_p=3.0)


def test_later_flags_override_the_flagfile():
    recipe = f"--flagfile={ROOT / 'configs' / 'r50.flags'}"
    training = _parse([DolgConfig, DataConfig, TrainingConfig], recipe, "--initial_lr=1")[2]
    assert training.initial_lr == 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_parses_and_says_what_it_is(recipe):
    _parse([DolgConfig, DataConfig, TrainingConfig], f"--flagfile={recipe}")
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "data", "hardware", "time", "expected"):
        assert any(line.startswith(f"# {word}") for line in header), f"{recipe} lacks {word}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dilations=1,x"], "--dilations=1,x: invalid literal"),
        (["--backbone=resnet50 # small"], "comments only on lines of their own"),
        (["--gem_p=0"], "--gem_p=0.0 must be above 0"),
    ],
)
def test_bad_values_are_named(argv, message):
    with pytest.raises(InputError, match=message):
        _parse([DolgConfig], *argv)


def test_a_required_flag_is_asked_for():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stage:
        images: str = option("folder of photos")

    with pytest.raises(InputError, match="--images is required: folder of photos"):
        _parse([Stage])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bach_size=3"], "Unknown command line flag 'bach_size'. Did you mean: batch_size"),
        (["--batch_size=many"], "--batch_size=many"),
        (["64"], "'64' is no flag; write --name=value"),
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
        ("KeyboardInterrupt", 130, "interrupted"),
        ("SystemExit(143)", 143, ""),
        ("ZeroDivisionError", 1, "Traceback"),  # a fault of ours is no one-liner
    ],
)
def test_what_a_stage_raises_decides_line_and_exit_code(raised, code, message):
    program = f"""
from dolg_tf.stage import config
from dolg_tf.stage.config import InputError

def stage():
    raise {raised}

config.main(stage)
"""
    done = _command("-c", program)
    assert done.returncode == code and message in done.stderr
    assert ("Traceback" in done.stderr) == (message == "Traceback")


TWO_COMMANDS = """
import dataclasses
from dolg_tf.stage import config

@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos:
    count: int = config.option("how many", 3)

def take(settings):
    '''Takes photos.'''
    print("took", settings.count)

def drop(settings):
    '''Drops photos.'''
    raise config.InputError("they are heavy")

config.commands({"take": (take, Photos), "drop": (drop, Photos)})
"""


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        (["take"], 0, "took 3\n", ""),
        (["take", "--count=5"], 0, "took 5\n", ""),
        (["drop"], 1, "", "python -c drop: error: they are heavy\n"),
        (["take", "drop"], 1, "", "take: error: 'drop' is no flag; write --name=value"),
        (["take", "--help"], 0, "usage: python -c take [--flagfile=FILE]", ""),
        (["--help"], 0, "  take      Takes photos.\n  drop      Drops photos.\n", ""),
        (["help"], 0, "usage: python -c COMMAND", ""),
        ([], 1, "", "python -c: error: the first argument is ''; it must be one of take, drop"),
        (["tale"], 1, "", "the first argument is 'tale'; it must be one of take, drop"),
        (["--count=5", "take"], 1, "", "the first argument is '--count=5'"),
    ],
)
def test_the_first_argument_chooses_a_command(argv, code, out, err):
    done = _command("-c", TWO_COMMANDS, *argv)
    assert done.returncode == code
    assert out in done.stdout and bool(out) == bool(done.stdout)
    assert err in done.stderr and bool(err) == bool(done.stderr)
    assert len(done.stderr.splitlines()) <= 1


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
    assert float(done.stdout) < 0.3
