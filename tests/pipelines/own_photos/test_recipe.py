"""The recipe of `dolg search --learn`: its steps, and what stays of them."""

import pathlib
import subprocess
import sys

import pytest

from dolg_tf.pipelines.own_photos.finding import find
from dolg_tf.pipelines.own_photos.learning import recipe


@pytest.fixture
def steps(monkeypatch):
    """Commands that were run; each leaves what it would write."""
    found = []

    def run(command):
        words = dict(word[2:].partition("=")[::2] for word in command[4:])
        found.append((command[3], words))
        made = {"records": ("output_dir", "records.json"), "export": ("output", "saved_model.pb")}
        if command[3] in made:
            flag, name = made[command[3]]
            pathlib.Path(words[flag]).mkdir(parents=True)
            pathlib.Path(words[flag], name).write_text("")

    monkeypatch.setattr(recipe, "_run", run)
    return found


def test_the_recipe_trains_on_small_copies_that_do_not_stay(world, tmp_path, steps):
    photos = find({"": world.folder}, world.kept).photos
    chosen = [(photo, f"place {row // 6}") for row, photo in enumerate(photos[:12])]
    folder = tmp_path / "learnt"

    def interrupted(command):
        raise KeyboardInterrupt

    run, recipe._run = recipe._run, interrupted
    with pytest.raises(KeyboardInterrupt):
        recipe.train(folder, chosen, "efficientnet_lite0")
    recipe._run = run
    lines = (folder / "work" / "labels.csv").read_text().splitlines()
    assert lines[:2] == ["path,landmark", "photos/000000.jpg,place 0"] and len(lines) == 13
    assert len(list((folder / "work" / "photos").iterdir())) == 12
    made = recipe.train(folder, chosen, "efficientnet_lite0", max_steps=3)
    assert made == folder / "model" and [name for name, _ in steps] == [
        "records",
        "train",
        "export",
    ]
    assert steps[0][1]["labels_csv"] == str(folder / "work" / "labels.csv")
    assert steps[1][1]["recipe"] == "finetune_small" and steps[1][1]["max_steps"] == "3"
    assert steps[1][1]["backbone_weights"] == steps[1][1]["backbone"] == "efficientnet_lite0"
    assert steps[2][1]["weights"] == "ema"
    assert [path.name for path in folder.iterdir()] == ["model"]
    assert recipe.train(folder, chosen, "efficientnet_lite0") == made and len(steps) == 3


def test_a_step_that_fails_ends_with_its_code(tmp_path):
    with pytest.raises(SystemExit) as ended:
        recipe._step("records", labels_csv=tmp_path / "none.csv", output_dir=tmp_path / "out")
    assert ended.value.code == 1


def test_the_steps_have_these_flags(steps, world, tmp_path, monkeypatch):
    """Each command line is one that the command takes."""
    recipe.train(tmp_path / "learnt", [], "efficientnet_lite0")
    for name, words in steps:
        flags = [f"--{flag}={value}" if value else f"--{flag}=" for flag, value in words.items()]
        flags = ["--overwrite" if flag == "--overwrite=" else flag for flag in flags]
        command = [sys.executable, "-m", "dolg_tf", name, *flags, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
