"""mAP against the number of distractors."""

from collections.abc import Iterator, Mapping

import numpy as np

from dolg_tf.apps.report.figures.style import LEVEL_STYLE, new_plot, percent, slug
from dolg_tf.apps.report.page import Block, Note, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.evaluation.revisited.score import LEVELS, score_descriptors
from dolg_tf.retrieval.ground_truth import GroundTruth
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage import progress

_SMALLEST = 1000  # the smallest part is one in so many


def show(run: RunFiles, one: Evaluation) -> Iterator[Block]:
    """Shows mAP against the number of distractors."""
    if not len(one.inputs.distractors):
        reason = "no distractors, so there is no curve over their number"
        yield Note(f"{reason}; give --distractor_descriptors.")
        return
    found = scores_by_distractors(
        one.truth, one.inputs.queries, one.inputs.index, one.inputs.distractors
    )
    if not any(len(set(found[level])) > 1 for level in LEVELS):
        yield f"{one.name.capitalize()}: {describe_constant(found)}"
        return
    caption = (
        f"mAP of {one.name} among growing parts of the distractors, drawn at random, each part "
        "within the next; without re-ranking."
    )
    figure, alt = distractor_curve(found), describe_distractors(found)
    yield Picture(f"distractors_{slug(one.name)}", figure, alt, caption)


class _Chosen:
    """Some rows of a set, read on demand; it stands in for an array."""

    ndim = 2

    def __init__(self, rows, chosen: np.ndarray):
        self._rows, self._chosen = rows, chosen
        self.shape = (len(chosen), rows.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        return self._rows[self._chosen[key]]


def nested_sizes(count: int) -> list[int]:
    """Returns 0, a thousandth, a hundredth, a tenth and all of `count`, each once."""
    parts = [count // (_SMALLEST // 10**power) for power in range(3)]
    return sorted({0, *parts, count})


def scores_by_distractors(
    ground_truth: GroundTruth,
    queries: np.ndarray,
    index: Rows | np.ndarray,
    distractors: Rows | np.ndarray,
    seed: int = 0,
) -> dict[str, list]:
    """Scores among growing parts of the distractors, each part within the next.

    Exact search, without re-ranking.

    Args:
      ground_truth: the task.
      queries: float32 (Q, D), rows as `ground_truth.query_ids`.
      index: (N, D), rows as `ground_truth.index_ids`.
      distractors: (M, D), photos that match no query.
      seed: of the order in which distractors join.

    Returns:
      {"sizes": distractors in the index, level: their mAP or None}.
    """
    order = np.random.default_rng(seed).permutation(len(distractors))
    sizes = nested_sizes(len(distractors))
    found = {"sizes": sizes, **{level: [] for level in LEVELS}}
    for size in progress.track(sizes, len(sizes), "score among distractors", "parts"):
        # Ascending, so that a disk is read in one direction.
        searched = Rows([index, _Chosen(distractors, np.sort(order[:size]))])
        scores = score_descriptors(ground_truth, queries, searched)
        for level in LEVELS:
            found[level].append(scores[level].mAP)
    return found


def distractor_curve(found: Mapping[str, list]):
    """Draws the mAP of each level against the number of distractors.

    Args:
      found: see `scores_by_distractors`.

    Returns:
      A matplotlib Figure.
    """
    figure, axes = new_plot("distractors", "mAP (%)")
    places = np.arange(len(found["sizes"]))  # a factor of ten each, and 0 before them
    for level in LEVELS:
        values = [np.nan if value is None else 100 * value for value in found[level]]
        if not np.isnan(values).all():
            axes.plot(places, values, label=level, **LEVEL_STYLE[level])
    axes.set_xticks(places, [f"{size:,}" for size in found["sizes"]])
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=9)
    return figure


def describe_constant(found: Mapping[str, list]) -> str:
    """Returns in words that distractors change nothing."""
    parts = [
        f"{level} {percent(found[level][0])}" for level in LEVELS if found[level][0] is not None
    ]
    return f"mAP stays the same among up to {found['sizes'][-1]:,} distractors: {', '.join(parts)}."


def describe_distractors(found: Mapping[str, list]) -> str:
    """Returns in words what `distractor_curve` draws."""
    last = found["sizes"][-1]
    parts = [
        f"{level} from {percent(found[level][0])} to {percent(found[level][-1])}"
        for level in LEVELS
        if found[level][0] is not None
    ]
    return f"Curves of mAP from no to {last:,} distractors: {'; '.join(parts)}."
