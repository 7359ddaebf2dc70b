"""Scores with their intervals, and their protocol."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dolg_tf.apps.pictures.names import PLAIN, shown
from dolg_tf.apps.report.figures.style import LEVEL, LEVEL_STYLE, new_plot, percent
from dolg_tf.apps.report.page import Block, Note, Picture, Table
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.apps.report.tables import how_scored, interval
from dolg_tf.evaluation.revisited.score import LEVELS


def show(run: RunFiles, evaluations: Sequence[Evaluation]) -> Iterator[Block]:
    """Shows scores with their intervals, and their protocol."""
    scored = {
        (name if name.startswith(one.name) else f"{name}, {one.name}"): scores
        for one in evaluations
        for name, scores in _with_and_without(one.scores).items()
    }
    if not scored:
        reason = run.lacking(scores="").removesuffix(".")
        yield Note(f"{reason}, or what they are computed from.")
        return
    header = ["", *(f"{level} mAP %" for level in LEVELS), "medium mP@1 %", "medium mP@10 %"]
    rows = [
        [name, *(interval(scores[level]) for level in LEVELS)]
        + [percent(scores[LEVEL][key]).removesuffix(" %") for key in ("mP@1", "mP@10")]
        for name, scores in scored.items()
    ]
    yield (
        "Mean average precision (mAP) is 100 % when every photo of the query's landmark is ranked "
        "before every other one; in brackets the 95 % bootstrap interval over queries. mP@10 is "
        "the share of right photos among the first ten."
    )
    yield Table(header, rows)
    if any(scores[level]["mAP"] is not None for scores in scored.values() for level in LEVELS):
        yield Picture("scores", score_intervals(scored), describe_scores(scored))
    yield "The protocol; only scores of the same protocol may be compared:"
    for one in evaluations:
        if one.own_scores:
            protocol = how_scored(one.own_scores["protocol"])
            caption = f"Protocol of {one.name}"
            yield Table(("how it was scored", ""), protocol, caption, numbers=False)
        if reason := run.lacking(scores=one.scores.get(one.files.own, "")):
            yield Note(f"the scores of {one.name}: {reason}")


def _with_and_without(scores: Mapping[str, dict]) -> dict[str, dict]:
    """Returns scores with distractors and without them as two entries."""
    found = {}
    for name, one in scores.items():
        count, without = one["protocol"].get("distractors"), one.get("without_distractors")
        found[f"{name} among {count:,} distractors" if without else name] = one
        if without:
            found[f"{name} without distractors"] = without
    return found


def score_intervals(scores: Mapping[str, Mapping[str, Mapping]]):
    """Draws mean average precisions with their intervals.

    Args:
      scores: {what was scored: {level: {"mAP", "mAP_interval"}}}.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("mAP (%) with its 95 % interval", "", height=1.1 + 0.55 * len(scores))
    shift = dict(zip(LEVELS, (-0.22, 0, 0.22), strict=True))
    for level in LEVELS:
        rows = [(row, one[level]) for row, one in enumerate(scores.values())]
        rows = [(row, found) for row, found in rows if found["mAP"] is not None]
        if not rows:
            continue
        means = np.array([100 * found["mAP"] for _, found in rows])
        low, high = 100 * np.array([found["mAP_interval"] for _, found in rows]).T
        style = {**LEVEL_STYLE[level], "linestyle": "none", "capsize": 3, "markersize": 5}
        spread = np.maximum([means - low, high - means], 0)
        places = np.array([row for row, _ in rows]) + shift[level]
        axes.errorbar(means, places, xerr=spread, label=level, **style)
    axes.set_yticks(
        range(len(scores)), [textwrap.fill(shown(name), 22) for name in scores], **PLAIN
    )
    axes.set(xlim=(0, 102), ylim=(len(scores) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside upper center")
    return figure


def describe_scores(scores: Mapping[str, Mapping[str, Mapping]]) -> str:
    """Returns in words what `score_intervals` draws."""
    parts = [
        f"{name}: " + ", ".join(f"{level} {percent(one[level]['mAP'])}" for level in LEVELS)
        for name, one in scores.items()
    ]
    return f"Mean average precision with 95 % intervals. {'; '.join(parts)}."
