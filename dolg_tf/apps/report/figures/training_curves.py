"""The course of a training: curves of its metrics.jsonl."""

import json
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from dolg_tf.apps.pictures.names import legend, shown
from dolg_tf.apps.report.figures.style import COLOURS, DASHES, new_plot, slug
from dolg_tf.apps.report.page import Block, Note, Picture, Table
from dolg_tf.apps.report.run_files import RunFiles
from dolg_tf.apps.report.tables import recipe
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

# name in metrics.jsonl: its label; in the order of the page, all others follow.
NAMES = {
    "loss": "loss",
    "accuracy": "accuracy (share)",
    "mAP": "mAP, level medium (share)",
    "mAP_hard": "mAP, level hard (share)",
    "mP@1": "precision of the first photo (share)",
    "learning_rate": "learning rate",
    "gradient_norm": "norm of the gradient",
    "weight_norm": "norm of the weights",
    "gem_p": "exponent of GeM pooling",
    "images_per_second": "photos per second",
    "input_wait": "time spent waiting for photos (share)",
}
_STYLES = {
    "train": {"color": COLOURS[0], "linestyle": DASHES[0], "linewidth": 1.3},
    "validation": {"color": COLOURS[1], "linestyle": DASHES[1], "marker": "o", "markersize": 4},
    "retrieval": {"color": COLOURS[2], "linestyle": DASHES[2], "marker": "^", "markersize": 5},
}

Curve = tuple[np.ndarray, np.ndarray]
"""Steps int64 (n,), ascending, and values float64 (n,)."""


def show(run: RunFiles) -> Iterator[Block]:
    """Shows the curves and the recipe of the training."""
    if not run.metrics:
        where = f"{run.run} has no train/metrics.jsonl or metrics.jsonl" if run.run else "no run"
        yield Note(f"{where}; give the run directory of a training: --run.")
        return
    metrics = read_metrics(run.metrics)
    level = {name: splits for name, splits in metrics.items() if not varies(splits)}
    for name, splits in metrics.items():
        if name not in level:
            figure, alt = training_curve(name, splits), describe_curve(name, splits)
            yield Picture(f"training_{slug(name)}", figure, alt)
    if level:
        rows = [(NAMES.get(name, name), values_of(splits)) for name, splits in level.items()]
        yield Table(("metric", "value"), rows, "Of one value throughout", numbers=False)
    if not metrics:
        yield Note(f"{run.metrics} holds no metric yet.")
    if run.config:
        yield Table(("option", "value"), recipe(run.config), "The recipe", numbers=False)


def read_metrics(path: files.Path) -> dict[str, dict[str, Curve]]:
    """Reads the metrics.jsonl of a run directory.

    An incomplete last line (the run continues, or was killed) is left out.

    Returns:
      {name: {split: curve}}, names in the order of `NAMES`.

    Raises:
      InputError: naming the first line that is not a metric.
    """
    path = pathlib.Path(path)
    files.refuse_other_than_file(path)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            name, split = str(row["name"]), str(row["split"])
            point = np.int64(row["step"]), float(row["value"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not a metric of a run ({error!r})") from error
        found.setdefault(name, {}).setdefault(split, []).append(point)
    order = [*(name for name in NAMES if name in found), *(n for n in found if n not in NAMES)]
    return {name: {split: _curve(found[name][split]) for split in found[name]} for name in order}


def _curve(points: list[tuple[int, float]]) -> Curve:
    steps, values = zip(*sorted(points, key=lambda point: point[0]), strict=True)
    return np.array(steps, np.int64), np.array(values, np.float64)


def varies(splits: Mapping[str, Curve]) -> bool:
    """Returns whether a metric has two values in a split, so that there is a curve to draw."""
    return any(len(np.unique(values[np.isfinite(values)])) > 1 for _, values in splits.values())


def values_of(splits: Mapping[str, Curve]) -> str:
    """Returns the last value of each split, in words."""
    return ", ".join(f"{split} {values[-1]:.4g}" for split, (_, values) in splits.items())


def training_curve(name: str, splits: Mapping[str, Curve]):
    """Draws one metric of a run against its steps.

    Args:
      name: of the metric.
      splits: {"train"|"validation"|"retrieval": curve}, see `read_metrics`.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("step", "", NAMES.get(name, name))
    for number, (split, (steps, values)) in enumerate(splits.items()):
        style = _STYLES.get(split, {"color": COLOURS[(3 + number) % len(COLOURS)], "marker": "x"})
        axes.plot(steps, values, label=shown(split, 30), **style)
    if len(splits) > 1:
        legend(axes, fontsize=9)
    return figure


def describe_curve(name: str, splits: Mapping[str, Curve]) -> str:
    """Returns in words what `training_curve` draws, with its main numbers."""
    parts = []
    for split, (steps, values) in splits.items():
        there = values[np.isfinite(values)]
        if not len(there):
            parts.append(f"{split} is never finite")
            continue
        text = (
            f"{split} from {there[0]:.4g} to {there[-1]:.4g}"
            if len(there) > 1
            else (f"{split} {there[0]:.4g}")
        )
        lost = len(values) - len(there)
        text += f", {lost} values that are not finite" if lost else ""
        parts.append(f"{text} at step {steps[-1]:,}")
    return f"Curve of the {NAMES.get(name, name)} over the steps: {'; '.join(parts)}."
