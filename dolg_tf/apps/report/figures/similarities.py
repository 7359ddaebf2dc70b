"""Similarities of photos of the same place and of other places: exact counts and a diagram."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from dolg_tf.apps.report.figures.style import COLOURS, new_plot, percent, slug
from dolg_tf.apps.report.page import Block, Note, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles, read_threshold
from dolg_tf.evaluation.labelled_pairs import Pairs, task_pairs
from dolg_tf.retrieval import descriptors
from dolg_tf.stage.config import InputError

_BINS = 80


def show(run: RunFiles, one: Evaluation) -> Iterator[Block]:
    """Shows the similarities of pairs, and the calibrated threshold."""
    sets = map(descriptors.read, (one.files.query_descriptors, one.files.index_descriptors))
    pairs = task_pairs(one.files.ground_truth, *sets)
    found = count_similarities(pairs, read_threshold(run, one))
    figure = similarity_histogram(found)
    alt = describe_similarities(found)
    caption = (
        f"All pairs of a query and an index photo of {one.name}, each kind as shares of its "
        "own; junk photos are left out."
    )
    if found.reached:
        caption += f" {alt.split('; ')[1].capitalize()}"
    yield Picture(f"similarities_{slug(one.name)}", figure, alt, caption)
    if not run.index:
        yield Note("the calibrated threshold: no index; give --index.")


@dataclasses.dataclass(frozen=True)
class Similarities:
    """Similarities of all pairs of a query and an index photo, junk left out.

    Attributes:
      edges: float64 (bins + 1,), of the bins; the last bin has its upper edge.
      positive, negative: int64 (bins,), pairs of the same place and of others.
      medians: of the positives and of the negatives, the latter to half the width of a bin.
      reached: (positives, negatives) that reach the threshold; None without one.
      threshold: of a calibrated index; None: none.
    """

    edges: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    medians: tuple[float, float]
    reached: tuple[int, int] | None = None
    threshold: float | None = None


def count_similarities(
    pairs: Pairs, threshold: float | None = None, bins: int = _BINS
) -> Similarities:
    """Counts the similarities of all pairs, block by block.

    Args:
      pairs: such as `dolg_tf.evaluation.labelled_pairs.task_pairs` of a ground truth.
      threshold: similarity from which two photos count as the same place; None: unknown.
      bins: of even width, between the lowest and the highest similarity.

    Raises:
      InputError: when one kind of pairs is missing.
    """
    low, high, found = np.inf, -np.inf, []
    for _, scores, same in pairs():
        if len(scores):
            low, high = min(low, float(scores.min())), max(high, float(scores.max()))
        found.append(scores[same].astype(np.float64))
    positives = np.concatenate([[], *found])
    edges = np.linspace(low, high, bins + 1) if low < high else np.linspace(low, low + 1e-6, 2)
    counts, reached = np.zeros((2, len(edges) - 1), np.int64), np.zeros(2, np.int64)
    for _, scores, same in pairs():
        # In float64: NumPy would round edges and threshold to float32.
        scores = scores.astype(np.float64)
        for row, chosen in ((0, same), (1, ~same)):
            counts[row] += np.histogram(scores[chosen], edges)[0]
            if threshold is not None:
                reached[row] += np.count_nonzero(scores[chosen] >= threshold)
    if not counts.any(axis=1).all():
        raise InputError(
            f"{counts[0].sum()} pairs show the same place, {counts[1].sum()} do not; a "
            "distribution needs both kinds"
        )
    middle = int(np.searchsorted(np.cumsum(counts[1]), counts[1].sum() / 2))
    medians = float(np.median(positives)), float(edges[middle : middle + 2].mean())
    both = None if threshold is None else (int(reached[0]), int(reached[1]))
    return Similarities(edges, counts[0], counts[1], medians, both, threshold)


def similarity_histogram(found: Similarities):
    """Draws the distributions of both kinds of pairs, each as shares of its own kind.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("similarity (inner product)", "share of the pairs (%)")
    kinds = (
        ("same place", found.positive, COLOURS[0], "solid"),
        ("other places", found.negative, COLOURS[1], (0, (5, 2))),
    )
    for name, counts, colour, line in kinds:
        share = 100 * counts / counts.sum()
        label = f"{name} ({counts.sum():,})"
        axes.stairs(share, found.edges, fill=True, color=colour, alpha=0.22)
        axes.stairs(share, found.edges, color=colour, linestyle=line, linewidth=1.5, label=label)
    if found.threshold is not None:
        label = f"threshold {found.threshold:.3f}"
        axes.axvline(found.threshold, color="#222222", linewidth=1.5, linestyle="-.", label=label)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def describe_similarities(found: Similarities) -> str:
    """Returns in words what `similarity_histogram` draws."""
    positives, negatives = int(found.positive.sum()), int(found.negative.sum())
    text = (
        f"Histograms of the similarity of {positives:,} pairs of one place (median "
        f"{found.medians[0]:.3f}) and of {negatives:,} pairs of different places (median "
        f"{found.medians[1]:.3f})"
    )
    if found.reached is None:
        return text + "."
    return text + (
        f"; the threshold {found.threshold:.3f} is reached by "
        f"{percent(found.reached[0] / positives)} of the former and "
        f"{percent(found.reached[1] / negatives, 3)} of the latter."
    )
