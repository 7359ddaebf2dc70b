"""The average precision of each query, and what the best and the worst queries find."""

import posixpath
from collections.abc import Iterator, Sequence

import numpy as np

from dolg_tf.apps.pictures import rankings
from dolg_tf.apps.pictures.ranked_list import ranked_list
from dolg_tf.apps.report.figures.style import COLOURS, LEVEL, new_plot, percent, slug
from dolg_tf.apps.report.page import Block, Note, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.exact import search
from dolg_tf.stage.config import InputError

_SHOWN, _TOP = 4, 10  # queries of a ranked list, and photos of each


def show(run: RunFiles, one: Evaluation) -> Iterator[Block]:
    """Shows what the best and the worst queries find, and the average precision of each."""
    ap = one.own_scores[LEVEL]["AP"]
    if all(value is None for value in ap):
        raise InputError(f"no query of {one.name} has a positive photo at level {LEVEL}")
    caption = f"Average precision of each query, {one.name}, level {LEVEL}."
    method = (one.own_scores["protocol"].get("rerank") or {}).get("method", "none")
    if method != "none":
        caption += f" Re-ranked by {method}; the ranked lists are not."
    lists, reason = [], one.lacking(run, "photos")
    try:
        lists = [] if reason else list(_best_and_worst(one))
    except InputError as error:  # such as a photo that is gone: the numbers are still there
        reason = str(error)
    yield from lists
    yield Picture(f"queries_{slug(one.name)}", ap_bars(ap), describe_ap(ap), caption)
    if reason:
        yield Note(f"the best and worst queries: {reason}")


def spread(one: Evaluation, count: int) -> list[int]:
    """Returns queries in even steps from the best to the worst.

    Raises:
      InputError: when none has a positive photo.
    """
    chosen = rankings.spread_queries(one.plain_scores[LEVEL]["AP"], count)
    if not chosen:
        raise InputError(f"no query of {one.name} has a positive photo at level {LEVEL}")
    return chosen


def name_and_ap(one: Evaluation, query: int) -> str:
    name = posixpath.basename(one.truth.query_ids[query])
    return f"{name}, AP {percent(one.plain_scores[LEVEL]['AP'][query])}"


def best_and_worst(ap: Sequence[float | None], count: int) -> tuple[list[int], list[int]]:
    """Returns the queries of highest AP, best first, and of lowest AP, worst first."""
    order = sorted((q for q, value in enumerate(ap) if value is not None), key=lambda q: -ap[q])
    best = order[: min(count, -(-len(order) // 2))]
    return best, order[len(best) :][::-1][:count]


def _best_and_worst(one: Evaluation) -> Iterator[Block]:
    ap = one.plain_scores[LEVEL]["AP"]
    photos = rankings.photos_of_evaluation(
        one.files.ground_truth, one.image_root, one.inputs.protocol
    )
    best, worst = best_and_worst(ap, _SHOWN)
    for word, chosen in (("best", best), ("worst", worst)):
        if not chosen:
            continue
        scores, ranks = search.search(one.inputs.index, one.inputs.queries[chosen], _TOP)
        found = [dict(zip(chosen, these, strict=True)) for these in (scores, ranks)]
        rows = rankings.ranked_rows(one.truth, *photos, found, chosen, LEVEL, _TOP, ap)
        ids = [posixpath.basename(one.truth.query_ids[query]) for query in chosen]
        right = [sum(photo.kind == "positive" for photo in row.found) for row in rows]
        parts = [
            f"{id_}, AP {percent(ap[query])}: {count} of {len(row.found)} right"
            for id_, query, count, row in zip(ids, chosen, right, rows, strict=True)
        ]
        alt = f"Ranked lists of the {len(rows)} {word} queries. {'; '.join(parts)}."
        caption = (
            f"The {word} queries of {one.name} by AP at level {LEVEL}, from above: "
            f"{', '.join(ids)}. Right photos have a green frame, wrong ones a red one, those that "
            "do not count a dashed grey one; under each photo, its rank and similarity."
        )
        name = f"{word}_{slug(one.name)}"
        yield Picture(name, ranked_list(rows), alt, caption, wide=True, rows=rows)


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
