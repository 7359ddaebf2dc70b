"""The sections of the report: what is shown of a run, and what cannot be shown and why."""

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from dolg_tf.apps.pictures import rankings
from dolg_tf.apps.pictures.ranked_list import ranked_list
from dolg_tf.apps.report.figures import distractors, embedding_map, similarities
from dolg_tf.apps.report.figures import precision_recall as pr
from dolg_tf.apps.report.figures import training_curves as training
from dolg_tf.apps.report.figures.style import percent
from dolg_tf.apps.report.page import Block, Heading, Note, Picture, Section, Table
from dolg_tf.apps.report.run_files import DESCRIPTORS, Evaluation, RunFiles, read_threshold
from dolg_tf.apps.report.tables import how_scored, interval, recipe
from dolg_tf.evaluation.labelled_pairs import task_pairs
from dolg_tf.evaluation.revisited.score import LEVELS
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.exact import search
from dolg_tf.stage.config import InputError

LEVEL = "medium"  # of what is shown at one level
_SHOWN, _TOP = 4, 10  # queries of a ranked list, and photos of each


def slug(text: str) -> str:
    """Returns text for the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "task"


def of_each(
    run: RunFiles,
    evaluations: Sequence[Evaluation],
    lacking: Callable[[Evaluation], str],
    show: Callable[[Evaluation], Iterator[Block]],
    headings: bool = False,
) -> list[Block]:
    """Returns what is shown of each evaluation, or a note of what is lacking for it.

    Args:
      run: the files.
      evaluations: of the run.
      lacking: what is lacking for one, "" when nothing is.
      show: makes the blocks of one.
      headings: whether each of several has a heading; else small pictures stand side by side.
    """
    blocks = []
    for one in evaluations:
        own = []
        try:
            reason = lacking(one)
            for block in [Note(reason)] if reason else show(one):
                own.append(block)
        except InputError as error:  # such as a photo that is gone: the rest is still worth showing
            own.append(Note(str(error)))
        own = [block for block in own if block not in blocks]  # a note that holds of all comes once
        if own and headings and len(evaluations) > 1:
            own.insert(0, Heading(one.name.capitalize()))
        blocks += own
    return blocks


def _needs_descriptors(run: RunFiles) -> Callable[[Evaluation], str]:
    return lambda one: run.lacking(**{name: getattr(one.files, name) for name in DESCRIPTORS})


def needs_photos(run: RunFiles) -> Callable[[Evaluation], str]:
    """Returns what says which descriptors or photos of an evaluation are lacking; "": none."""
    needs = _needs_descriptors(run)
    return lambda one: needs(one) or run.lacking(image_root=one.image_root)


# --- training ------------------------------------------------------------------------


def training_section(run: RunFiles) -> Section:
    """Shows how the training went."""
    if not run.metrics:
        where = f"{run.run} has no train/metrics.jsonl or metrics.jsonl" if run.run else "no run"
        return Section("Training", [Note(f"{where}; give the run directory of a training: --run.")])
    metrics = training.read_metrics(run.metrics)
    blocks = []
    for name, splits in metrics.items():
        alt = training.describe_curve(name, splits)
        figure = training.training_curve(name, splits)
        blocks.append(Picture(f"training_{slug(name)}", figure, alt))
    blocks = blocks or [Note(f"{run.metrics} holds no metric yet.")]
    if run.config:
        blocks.append(Table(("option", "value"), recipe(run.config), "The recipe", numbers=False))
    return Section("Training", blocks)


# --- scores --------------------------------------------------------------------------


def scores_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows scores with their intervals, and how they were taken."""
    scored = {
        (name if name.startswith(one.name) else f"{name}, {one.name}"): scores
        for one in evaluations
        for name, scores in _with_and_without(one.scores).items()
    }
    if not scored:
        reason = run.lacking(scores="").removesuffix(".")
        return Section("Scores", [Note(f"{reason}, or what they are computed from.")])
    header = ["", *(f"{level} mAP %" for level in LEVELS), "medium mP@1 %", "medium mP@10 %"]
    rows = [
        [name, *(interval(scores[level]) for level in LEVELS)]
        + [percent(scores[LEVEL][key]).removesuffix(" %") for key in ("mP@1", "mP@10")]
        for name, scores in scored.items()
    ]
    blocks = [
        "Mean average precision (mAP) is 100 % when every photo of the query's landmark is ranked "
        "before every other one; in brackets the 95 % bootstrap interval over queries. mP@10 is "
        "the share of right photos among the first ten.",
        Table(header, rows),
    ]
    if any(scores[level]["mAP"] is not None for scores in scored.values() for level in LEVELS):
        alt = pr.describe_scores(scored)
        blocks.append(Picture("scores", pr.score_intervals(scored), alt))
    blocks.append("The protocol, under which scores may be compared with others:")
    for one in evaluations:
        if one.own_scores:
            protocol = how_scored(one.own_scores["protocol"])
            caption = f"Protocol of {one.name}"
            blocks.append(Table(("how it was scored", ""), protocol, caption, numbers=False))
        if reason := run.lacking(scores=one.scores.get(one.files.own, "")):
            blocks.append(Note(f"the scores of {one.name}: {reason}"))
    return Section("Scores", blocks)


def _with_and_without(scores: Mapping[str, dict]) -> dict[str, dict]:
    """Returns scores with distractors and without them as two."""
    found = {}
    for name, one in scores.items():
        count, without = one["protocol"].get("distractors"), one.get("without_distractors")
        found[f"{name} among {count:,} distractors" if without else name] = one
        if without:
            found[f"{name} without distractors"] = without
    return found


# --- queries -------------------------------------------------------------------------


def queries_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows the average precision of each query, and what the best and the worst find."""

    def lacking(one: Evaluation) -> str:
        return "" if one.own_scores else run.lacking(scores="")

    def show(one: Evaluation) -> Iterator[Block]:
        ap, name = one.own_scores[LEVEL]["AP"], slug(one.name)
        if all(value is None for value in ap):
            raise InputError(f"no query of {one.name} has a positive photo at level {LEVEL}")
        caption = f"Average precision of each query, {one.name}, level {LEVEL}."
        method = (one.own_scores["protocol"].get("rerank") or {}).get("method", "none")
        if method != "none":
            caption += f" Re-ranked by {method}; what follows is not."
        yield Picture(f"queries_{name}", pr.ap_bars(ap), pr.describe_ap(ap), caption)
        if reason := needs_photos(run)(one):
            yield Note(f"the best and worst queries: {reason}")
        else:
            yield from _best_and_worst(one)

    return Section("Queries", of_each(run, evaluations, lacking, show, headings=True))


def best_and_worst(ap: Sequence[float | None], count: int) -> tuple[list[int], list[int]]:
    """Returns the queries of highest AP, best first, and of lowest, worst first; none in both."""
    order = sorted((q for q, value in enumerate(ap) if value is not None), key=lambda q: -ap[q])
    best = order[: min(count, -(-len(order) // 2))]
    return best, order[len(best) :][::-1][:count]


def _best_and_worst(one: Evaluation) -> Iterator[Block]:
    ap = one.plain_scores[LEVEL]["AP"]
    photos = rankings.task_photos(one.files.ground_truth, one.image_root, one.crop)
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
            "do not count a grey one; under each, its rank and similarity."
        )
        name = f"{word}_{slug(one.name)}"
        yield Picture(name, ranked_list(rows), alt, caption, wide=True, photographs=True)


# --- curves --------------------------------------------------------------------------


def precision_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows precision against recall."""

    def show(one: Evaluation) -> Iterator[Block]:
        curves, scores = pr.mean_precision(one.places), one.plain_scores
        if not curves:
            raise InputError(f"no query of {one.name} has a positive photo")
        caption = (
            f"Interpolated precision, mean over the queries of {one.name}; search without "
            "distractors and re-ranking."
        )
        figure, alt = pr.precision_recall(curves, scores), pr.describe_precision_recall(curves)
        yield Picture(f"precision_recall_{slug(one.name)}", figure, alt, caption)

    blocks = of_each(run, evaluations, _needs_descriptors(run), show)
    return Section("Precision and recall", blocks)


def similarity_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows the similarities of pairs, and the calibrated threshold among them."""

    def show(one: Evaluation) -> Iterator[Block]:
        sets = map(descriptors.read, (one.files.query_descriptors, one.files.index_descriptors))
        pairs = task_pairs(one.files.ground_truth, *sets)
        found = similarities.count_similarities(pairs, read_threshold(run, one))
        figure = similarities.similarity_histogram(found)
        alt = similarities.describe_similarities(found)
        caption = (
            f"All pairs of a query and an index photo of {one.name}, each kind as shares of its "
            "own; photos that do not count are left out."
        )
        if found.reached:
            caption += f" {alt.split('; ')[1].capitalize()}"
        yield Picture(f"similarities_{slug(one.name)}", figure, alt, caption)

    blocks = of_each(run, evaluations, _needs_descriptors(run), show)
    if not run.index:
        blocks.append(Note("the calibrated threshold: no index; give --index."))
    return Section("Similarities", blocks)


def distractor_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows the scores among more and more distractors."""

    def lacking(one: Evaluation) -> str:
        if reason := _needs_descriptors(run)(one):
            return reason
        if len(one.inputs.distractors):
            return ""
        return "no distractors, so there is no curve over their number; give " + (
            "--distractor_descriptors."
        )

    def show(one: Evaluation) -> Iterator[Block]:
        found = distractors.scores_by_distractors(
            one.truth, one.inputs.queries, one.inputs.index, one.inputs.distractors
        )
        caption = (
            f"mAP of {one.name} among growing parts of the distractors, drawn at random, each part "
            "within the next; without re-ranking."
        )
        figure, alt = distractors.distractor_curve(found), distractors.describe_distractors(found)
        yield Picture(f"distractors_{slug(one.name)}", figure, alt, caption)

    return Section("Distractors", of_each(run, evaluations, lacking, show))


# --- descriptors ---------------------------------------------------------------------


def map_section(run: RunFiles, evaluations: Sequence[Evaluation]) -> Section:
    """Shows photos on a map of their descriptors."""

    def show(one: Evaluation) -> Iterator[Block]:
        found = embedding_map.map_photos(one.truth, one.inputs.queries, one.inputs.index)
        caption = (
            f"Photos of {one.name}: PCA, then t-SNE. Each landmark has a colour and a mark; "
            "queries are larger, with a black rim; grey points show no query's landmark. Only "
            "what lies near what means something."
        )
        figure, alt = embedding_map.embedding_map(found), embedding_map.describe_map(found)
        yield Picture(f"map_{slug(one.name)}", figure, alt, caption)

    return Section(
        "Map of the descriptors", of_each(run, evaluations, _needs_descriptors(run), show)
    )


# --- all -----------------------------------------------------------------------------


def summary(evaluations: Sequence[Evaluation]) -> str:
    """Returns the main numbers in a sentence; "" when nothing was scored."""
    parts = [
        f"{percent(one.own_scores[LEVEL]['mAP'])} on {one.name}"
        for one in evaluations
        if one.own_scores
    ]
    return f"mAP at level {LEVEL}: {', '.join(parts)}." if parts else ""
