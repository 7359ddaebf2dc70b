import json
import os

import numpy as np
import pytest

from dolg_tf.apps.report.figures import training_curves
from dolg_tf.stage.config import InputError


def _write(path, *rows, end=""):
    lines = [
        json.dumps(dict(zip(("step", "split", "name", "value"), row, strict=True))) for row in rows
    ]
    path.write_text("\n".join([*lines, end]))
    return path


def test_read_metrics(tmp_path):
    path = _write(
        tmp_path / "metrics.jsonl",
        (50, "train", "own", 1.0),
        (50, "train", "loss", 4.0),
        (100, "train", "loss", 2.0),
        (100, "validation", "loss", float("nan")),
        end='{"step": 150, "split": "tr',
    )
    found = training_curves.read_metrics(path)
    assert list(found) == ["loss", "own"] and list(found["loss"]) == ["train", "validation"]
    steps, values = found["loss"]["train"]
    assert steps.tolist() == [50, 100] and values.tolist() == [4.0, 2.0]
    text = training_curves.describe_curve("loss", found["loss"])
    assert "train from 4 to 2 at step 100" in text and "validation is never finite" in text


def test_a_line_that_is_no_metric_is_named(tmp_path):
    path = _write(tmp_path / "metrics.jsonl", (50, "train", "loss", 4.0), end="[]\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2: not a metric"):
        training_curves.read_metrics(path)


def test_training_curve():
    steps = np.array([1, 2])
    splits = {"train": (steps, np.array([3.0, 1.0])), "validation": (steps, np.array([4.0, 2.0]))}
    (axes,) = training_curves.training_curve("learning_rate", splits).axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[3, 1], [4, 2]]
    assert axes.get_title(loc="left") == "learning rate"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["train", "validation"]


def test_a_pipe_in_the_place_of_the_metrics(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics\.jsonl: not a file"):
        training_curves.read_metrics(tmp_path / "metrics.jsonl")


def test_a_metric_of_one_value_is_no_curve():
    steps = np.array([1, 2])
    level = {"train": (steps, np.array([3.0, 3.0])), "validation": (steps[:1], np.array([4.0]))}
    assert not training_curves.varies(level)
    assert training_curves.values_of(level) == "train 3, validation 4"
    assert not training_curves.varies({"train": (steps, np.array([np.nan, 2.0]))})
    assert training_curves.varies(level | {"retrieval": (steps, np.array([1.0, 2.0]))})
