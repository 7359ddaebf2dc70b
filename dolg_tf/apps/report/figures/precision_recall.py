"""Precision at each recall, as numbers and a diagram."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dolg_tf.apps.report.figures.style import LEVEL_STYLE, new_plot, percent, slug
from dolg_tf.apps.report.page import Block, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.evaluation.revisited.score import LEVELS, level_ranks
from dolg_tf.stage.config import InputError

POINTS = 101
"""Levels of recall: 0, 0.01 .. 1."""


def show(run: RunFiles, one: Evaluation) -> Iterator[Block]:
    """Shows precision against recall."""
    curves, scores = mean_precision(one.places), one.plain_scores
    if not curves:
        raise InputError(f"no query of {one.name} has a positive photo")
    if not any(np.ptp(curve) for curve in curves.values()):
        parts = [f"{level} {percent(curve[0])}" for level, curve in curves.items()]
        yield f"{one.name.capitalize()}: precision is the same at each recall: {', '.join(parts)}."
        return
    caption = (
        f"Interpolated precision, mean over the queries of {one.name}; search without "
        "distractors and re-ranking."
    )
    figure, alt = precision_recall(curves, scores), describe_precision_recall(curves)
    yield Picture(f"precision_recall_{slug(one.name)}", figure, alt, caption)


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
