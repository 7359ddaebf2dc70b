"""Dataclasses, flags and flagfiles say the same."""

import dataclasses
import pathlib
import typing

import pytest
from absl import flags

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import OFFICIAL_PREPROCESSING, DolgConfig
from dolg_tf.pipelines.train import train, train_how
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


def test_a_value_that_looks_like_a_comment_survives_the_flagfile(tmp_path):
    training = TrainingConfig(logdir="run #2", init_from="#1")
    path = tmp_path / "flags.txt"
    path.write_text(configs.to_flagfile(training))
    assert _parse([TrainingConfig], f"--flagfile={path}") == (training,)


@pytest.mark.parametrize("value", ["#1 #2", "// #1", "-x #1"])
def test_a_value_that_no_flagfile_can_hold_is_refused(value):
    with pytest.raises(InputError, match="a flagfile cannot hold this value"):
        configs.to_flagfile(TrainingConfig(logdir=value))


def test_a_tilde_is_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    (training,) = _parse([TrainingConfig], "--logdir=~/runs/", "--init_from=a~b")
    assert training.logdir == "/home/somebody/runs/" and training.init_from == "a~b"
    (training,) = _parse([TrainingConfig], "--logdir=~nobody_of_this_name/runs")
    assert training.logdir == "~nobody_of_this_name/runs"

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Pair:
        photos: tuple[str, ...] = option("two photos")

    (pair,) = _parse([Pair], "--photos=~/a.jpg,b.jpg")
    assert pair.photos == ("/home/somebody/a.jpg", "b.jpg")


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
        ({"descriptor_size": -1}, "here: --descriptor_size=-1 must be at least 0"),
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
    stage = train_how if recipe.name.startswith("how_") else train
    classes = [hint for name, hint in typing.get_type_hints(stage).items() if name != "return"]
    _parse(classes, f"--flagfile={recipe}")
    header = [line for line in recipe.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "data", "hardware", "time", "expected"):
        assert any(line.startswith(f"# {word}") for line in header), f"{recipe} lacks {word}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dilations=1,x"], "--dilations=1,x: invalid literal"),
        (["--gem_p=0"], "--gem_p=0.0 must be above 0"),
    ],
)
def test_bad_values_are_named(argv, message):
    with pytest.raises(InputError, match=message):
        _parse([DolgConfig], *argv)


def test_a_flag_may_be_left_unset():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Turned:
        upright: bool | None = option("turn photos; unset: as recorded", None)

    assert configs.default_text(configs.options(Turned)[0]) == "unset"
    for argv, value in ([], None), (["--upright"], True), (["--noupright"], False):
        (config,) = _parse([Turned], *argv)
        assert config.upright is value
        assert configs.to_flagfile(config).split() == argv
        assert configs.from_dict(Turned, configs.to_dict(config), "here") == config
    with pytest.raises(InputError, match="upright is 'yes'; it must be true or false"):
        configs.from_dict(Turned, {"upright": "yes"}, "here")


def test_a_required_flag_is_asked_for():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Stage:
        images: str = option("folder of photos")

    with pytest.raises(InputError, match="--images is required: folder of photos"):
        _parse([Stage])
