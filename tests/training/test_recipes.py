"""The recipes: each flagfile names its needs, parses, builds, and trains by its command."""

import dataclasses
import functools
import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags

from dolg_tf.data.config import DataConfig
from dolg_tf.data.procedural.write import ToyConfig, write_toy
from dolg_tf.data.records.build import RecordsConfig, build_records
from dolg_tf.modeling.config import DolgConfig, HowConfig
from dolg_tf.modeling.dolg import build_dolg
from dolg_tf.modeling.heads import build_head
from dolg_tf.modeling.model_dir import load_network
from dolg_tf.stage import config, installed
from dolg_tf.training.config import TrainingConfig
from dolg_tf.training.tuples.config import TuplesData, TuplesTraining
from dolg_tf.weights.imagenet import load_backbone

ROOT = pathlib.Path(__file__).parents[2]
RECIPES, HOW = (sorted(installed.find_recipes(name)) for name in ("train", "train-how"))
# Flags that users add to the flagfile.
COMMAND_LINE = {
    "finetune": ["--num_classes=7", "--init_from=runs/mine"],
    "finetune_small": ["--num_classes=7"],
}
CHAIN = [f"effnet_kaggle2021_{size}" for size in (256, 448, 768)]


@functools.cache
def _recipe(name) -> tuple[DolgConfig, DataConfig, TrainingConfig]:
    lines = (ROOT / "configs" / f"{name}.flags").read_text().splitlines()
    values, classes = flags.FlagValues(), (DolgConfig, DataConfig, TrainingConfig)
    config.define_flags(*classes, values=values)
    arguments = [line for line in lines if not line.startswith("#")]
    values(["train.py", *arguments, *COMMAND_LINE.get(name, [])])
    return tuple(config.from_flags(cls, values) for cls in classes)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_parses_and_names_its_cost(name):
    text = (ROOT / "configs" / f"{name}.flags").read_text()
    for key in ("command", "data", "hardware", "time", "expected"):
        assert f"\n# {key}  " in text, key
    assert f"dolg train --recipe={name}" in text
    model, data, training = _recipe(name)
    assert f"runs/{name}" in training.logdir
    counts = None
    if training.margin_range:
        counts = [1 + label % 100 for label in range(data.num_classes)]
    head = build_head(training, data.num_classes, counts)
    assert head.compute_output_shape((None, model.descriptor_size)) == (None, data.num_classes)


@pytest.mark.parametrize("name", HOW)
def test_hows_recipes_are_the_authors(name):
    lines = (ROOT / "configs" / f"{name}.flags").read_text().splitlines()
    for key in ("command", "data", "hardware", "time", "expected"):
        assert any(line.startswith(f"# {key}  ") for line in lines), key
    values, classes = flags.FlagValues(), (HowConfig, TuplesData, TuplesTraining)
    config.define_flags(*classes, values=values)
    values(["dolg", *(line for line in lines if not line.startswith("#"))])
    model, data, training = (config.from_flags(cls, values) for cls in classes)
    r18 = name == "how_r18"
    assert (model.local_source, training.learning_rate) == (("p5", 5e-6) if r18 else ("p4", 1e-6))
    assert model.dimensions == 128 and data.image_size == 1024
    defaults = TuplesTraining(
        logdir=f"runs/{name}",
        backbone_weights=training.backbone_weights,
        learning_rate=training.learning_rate,
        checkpoint_every=100,
        retrieval_ground_truth="data/sfm120k/retrieval-SfM-120k-val-eccv2020.pkl",
        retrieval_image_root="data/sfm120k/ims",
        validation_words=65536,
    )
    assert training == defaults and training.margin == 0.8


def _networks():
    """Returns the distinct networks of the recipes that do not start from another run."""
    recipes = [_recipe(name) for name in RECIPES]
    return list(dict.fromkeys(model for model, _, training in recipes if not training.init_from))


def test_every_recipes_network_builds_on_a_small_backbone():
    change = {"backbone": "resnet17_small", "stride32": "last_block"}
    small = {dataclasses.replace(model, **change) for model in _networks()}
    for model in small:
        assert build_dolg(model).output_shape == (None, model.descriptor_size)


@pytest.mark.slow
def test_every_recipes_network_builds():
    for model in _networks():
        assert build_dolg(model).output_shape == (None, model.descriptor_size)


def test_the_kaggle_steps_follow_one_another():
    for before, after in itertools.pairwise(CHAIN):
        model, data, training = _recipe(after)
        assert training.init_from == _recipe(before)[2].logdir
        assert data.train_file_pattern == _recipe(before)[1].train_file_pattern
        # The network comes from the run before; only this is the run's own choice.
        assert model == dataclasses.replace(DolgConfig(), global_pooling="learned")


def test_fine_tuning_takes_the_network_it_is_given():
    model, _, training = _recipe("finetune")
    assert model == DolgConfig() and training.freeze_batch_norm
    done = _train(f"--flagfile={ROOT / 'configs' / 'finetune.flags'}")
    assert done.returncode == 1 and "no relabeling.csv beside 'data/mine/train-*'" in _last_line(
        done
    )


def test_one_gpu_scales_the_learning_rate_with_the_batch():
    _, _, paper = _recipe("r50")
    _, _, one = _recipe("r50_1gpu_16gb")
    assert one.initial_lr / paper.initial_lr == one.batch_size / paper.batch_size
    assert one.batch_size / one.accumulate == paper.batch_size / 8  # batch norm sees as many


def _train(*flags, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(done) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_bare_it_says_which_command_makes_the_records(tmp_path):
    done = _train(f"--flagfile={ROOT / 'configs' / 'r50.flags'}", cwd=tmp_path)
    assert done.returncode == 1
    assert "'data/gldv2/train-*'" in _last_line(done)
    assert "dolg records" in _last_line(done)
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def _toy_records(folder, name):
    toy = ToyConfig(output=str(folder / "photos"), landmarks=4, unseen_landmarks=2)
    write_toy(toy)
    build_records(
        RecordsConfig(
            images_dir=str(folder / "photos" / "train"),
            train_csv=str(folder / "photos" / "train.csv"),
            train_clean_csv=str(folder / "photos" / "train_clean.csv"),
            output_dir=str(folder / "data" / name),
            num_shards=2,
        )
    )


@pytest.mark.slow
def test_the_small_fine_tuning_keeps_what_imagenet_taught(tmp_path):
    _toy_records(tmp_path, "mine")
    flagfile = ROOT / "configs" / "finetune_small.flags"
    done = _train(
        f"--flagfile={flagfile}", "--image_size=96", "--max_steps=3", "--log_every=1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "whitening of 1280 numbers learned on 6400 views, shrinkage 0.3" in done.stderr
    network, model, _ = load_network(tmp_path / "runs" / "finetune_small")
    fresh = build_dolg(model, seed=0)
    load_backbone(fresh, "efficientnet_lite0")
    ours, theirs = (x.get_layer("backbone").variables for x in (network, fresh))
    for variable, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(variable, other, err_msg=variable.path)
    # Started by chance, with 4 landmarks and scale 30, the loss would be several times as high.
    losses = [float(x) for x in re.findall(r"step \d/3  loss (\S+)", done.stderr)]
    assert losses[0] < 1


@pytest.mark.slow
def test_r50_trains_on_real_records_at_a_reduced_size(tmp_path):
    _toy_records(tmp_path, "gldv2")
    flags = [f"--flagfile={ROOT / 'configs' / 'r50.flags'}", "--image_size=128", "--batch_size=4"]
    done = _train(*flags, "--max_steps=3", "--backbone_weights=nowhere.weights.h5", cwd=tmp_path)
    assert done.returncode == 1 and "nowhere.weights.h5: no such file" in _last_line(done)
    done = _train(*flags, "--max_steps=3", "--backbone_weights=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "random weights (--backbone_weights=none)" in done.stderr
    assert "81313 classes" in done.stderr and "step 3/3" in done.stderr
    assert (tmp_path / "runs" / "r50" / "checkpoints").is_dir()
