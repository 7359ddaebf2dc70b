"""Precision at each recall, and the average precision of each query, as numbers and diagrams."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from dolg_tf.apps.report.figures.style import COLOURS, LEVEL_STYLE, new_plot, percent
from dolg_tf.evaluation.revisited.score import LEVELS, level_ranks

POINTS = 101
"""Levels of recall: 0, 0.01 .. 1."""


def interpolated_precision(ranks: np.ndarray) -> np.ndarray:
    """Returns the interpolated precision of one query: at recall r, the best from r on.

    Args:
      ranks: int (P,), ascending, of every positive, P at least 1, junk removed.

    Returns:
      float64 (POINTS,), for recalls in even steps from 0 to 1.

    Reference: Manning et al., Introduction to Information Retrieval, 8.4.
    """
    ranks = np.asarray(ranks, np.int64)
    precision = np.arange(1, len(ranks) + 1) / (ranks + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    # The first positive with which recall (j + 1) / P reaches i / 100, in whole numbers.
    steps = POINTS - 1
    first = -(-np.arange(POINTS) * len(ranks) // steps) - 1
    return best[np.maximum(first, 0)]


def mean_precision(places: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the mean over queries of `interpolated_precision`.

    Args:
      places: of each query, see `dolg_tf.evaluation.revisited.score.label_places`.

    Returns:
      {level: float64 (POINTS,)}, for the levels at which a query has positives.
    """
    found = {}
    for level in LEVELS:
        ranks = [level_ranks(query, level) for query in places]
        curves = [interpolated_precision(these) for these in ranks if len(these)]
        if curves:
            found[level] = np.mean(curves, axis=0)
    return found


def precision_recall(curves: Mapping[str, np.ndarray], scores: Mapping[str, Mapping]):
    """Draws precision against recall.

    Args:
      curves: see `mean_precision`.
      scores: {level: {"mAP"}}, for the legend.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("recall (%)", "precision (%)")
    recall = np.linspace(0, 100, POINTS)
    for level, curve in curves.items():
        label = f"{level}, mAP {percent(scores[level]['mAP'])}"
        style = {**LEVEL_STYLE[level], "markevery": 10, "markersize": 4}
        axes.plot(recall, 100 * curve, label=label, **style)
    axes.set(xlim=(0, 100.5), ylim=(0, 102))
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def describe_precision_recall(curves: Mapping[str, np.ndarray]) -> str:
    """Returns in words what `precision_recall` draws."""
    parts = [
        f"{level} {percent(curve[10])} at 10 % recall, {percent(curve[50])} at 50 %, "
        f"{percent(curve[90])} at 90 %"
        for level, curve in curves.items()
    ]
    return f"Curves of precision against recall: {'; '.join(parts)}."


def ap_bars(ap: Sequence[float | None]):
    """Draws the average precision of each query, from the best to the worst.

    Args:
      ap: fractions, None for a query without positives, which is left out.

    Returns:
      A matplotlib Figure.
    """
    values = 100 * np.sort([value for value in ap if value is not None])[::-1]
    figure, axes = new_plot("queries, from the best to the worst", "AP (%)")
    width = 0.8 if len(values) <= 100 else 1.0  # without gaps, where they would be thinner than ink
    axes.bar(np.arange(1, len(values) + 1), values, width, color=COLOURS[0])
    mean = float(values.mean())
    axes.axhline(mean, color=COLOURS[1], linestyle=(0, (5, 2)), linewidth=1.3)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 1.5}
    axes.annotate(
        f"mean {mean:.1f} %", (1, mean), (-2, 5), **place, ha="right", fontsize=9, bbox=box
    )
    axes.set(xlim=(0.4, len(values) + 0.6), ylim=(0, 104))
    axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def describe_ap(ap: Sequence[float | None]) -> str:
    """Returns in words what `ap_bars` draws."""
    values = np.array([value for value in ap if value is not None])
    return (
        f"Bars of the average precision of {len(values):,} queries, sorted: best "
        f"{percent(values.max())}, median {percent(float(np.median(values)))}, worst "
        f"{percent(values.min())}; {np.count_nonzero(values >= 0.9):,} reach 90 %, "
        f"{np.count_nonzero(values < 0.1):,} are below 10 %."
    )


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
    axes.set_yticks(range(len(scores)), [textwrap.fill(name, 22) for name in scores])
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
