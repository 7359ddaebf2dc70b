"""Files of an earlier release: flags.txt and config.json are read, and the run continues."""

import dataclasses
import pathlib
import shutil

import pytest
from absl import flags

from dolg_tf.data.config import DataConfig
from dolg_tf.modeling.config import DolgConfig, Preprocessing
from dolg_tf.modeling.files.config_file import read_config
from dolg_tf.stage import config as configs
from dolg_tf.stage.config import InputError
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.run_log import check_run

LATER = {"attention_loss", "worker_timeout"}
OLD_RUN = pathlib.Path(__file__).parents[1] / "golden" / "old_run"
MODEL = DolgConfig(
    backbone="efficientnet_lite0",
    stride32="top_conv",
    fusion="hadamard",
    local_source="p4+p5",
    dilations=(3, 6),
    fused_pooling="learned",
    descriptor_size=64,
    preprocessing=Preprocessing(channel_order="bgr", mean=(0.5,) * 3, std=(0.5,) * 3),
)
DATA = DataConfig(train_file_pattern="data/mine/train-*", num_classes=7, image_size=160)
TRAINING = TrainingConfig(
    logdir="runs/old",
    loss="subcenter_arcface",
    margin_range=0.3,
    sub_centers=2,
    optimizer="adam",
    profile_steps=(3, 5),
    backbone_lr=0.1,
    max_steps=9,
    recompute=True,
)


def test_a_flagfile_gives_its_recipe():
    values, classes = flags.FlagValues(), (DolgConfig, DataConfig, TrainingConfig)
    configs.define_flags(*classes, values=values)
    values(["program", f"--flagfile={OLD_RUN / 'flags.txt'}"])
    model = dataclasses.replace(MODEL, preprocessing=Preprocessing())  # not a flag
    found = tuple(configs.from_flags(cls, values) for cls in classes)
    assert found == (model, DATA, TRAINING)


def test_a_run_directory_gives_its_recipe():
    model, values = read_config(OLD_RUN)
    assert model == MODEL
    sections = {"data": (DataConfig, DATA), "training": (TrainingConfig, TRAINING)}
    for section, (cls, config) in sections.items():
        # Options that came later are not in it.
        assert {field.name for field in dataclasses.fields(cls)} - set(values[section]) <= LATER
        assert configs.from_dict(cls, values[section], "here") == config


def test_a_run_continues(tmp_path):
    shutil.copytree(OLD_RUN, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "checkpoint").touch()
    training = dataclasses.replace(TRAINING, logdir=str(tmp_path / "run"))
    check_run(MODEL, DATA, training, "0" * 64)
    with pytest.raises(InputError, match=r"holds a run with --margin_range=0\.3, not 0\.0"):
        check_run(MODEL, DATA, dataclasses.replace(training, margin_range=0.0), "0" * 64)
