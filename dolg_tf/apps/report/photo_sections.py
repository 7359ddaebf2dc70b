"""The sections of the report for which the network looks at photos: its maps, and matches."""

import posixpath
from collections.abc import Callable, Iterator, Sequence

from dolg_tf.apps.pictures import maps as descriptor_maps
from dolg_tf.apps.pictures import match, rankings
from dolg_tf.apps.pictures.agreement import agreement
from dolg_tf.apps.pictures.ranked_list import maps_overlay
from dolg_tf.apps.report.figures.style import percent
from dolg_tf.apps.report.page import Block, Note, Picture, Section
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.apps.report.sections import LEVEL, needs_photos, of_each, slug
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.extract.decoding import read_photo
from dolg_tf.retrieval.extract.model import LoadedModel
from dolg_tf.stage.config import InputError

Load = Callable[[], LoadedModel]
"""Loads the network at its first call, and gives it again at later ones."""


def _section(
    title: str,
    words: str,
    run: RunFiles,
    evaluations: Sequence[Evaluation],
    show: Callable[[Evaluation], Iterator[Block]],
) -> Section:
    """Returns a section of pictures; the words stand before them, if there are any."""
    needs = needs_photos(run)

    def lacking(one: Evaluation) -> str:
        return needs(one) or run.lacking(saved_model=run.saved_model)

    blocks = of_each(run, evaluations, lacking, show, headings=True)
    if any(isinstance(block, Picture) for block in blocks):
        blocks.insert(0, words)
    return Section(title, blocks)


def _load_for(one: Evaluation, load: Load) -> LoadedModel:
    """Loads the network that described the photos of an evaluation.

    Raises:
      InputError: when it is another.
    """
    model, own = load(), one.inputs.protocol["model_hash"]
    if own and model.about.model_hash != own:
        raise InputError(f"--saved_model={model.path} is of another model than the descriptors")
    return model


def _spread(one: Evaluation, count: int) -> list[int]:
    """Returns queries from the best to the worst.

    Raises:
      InputError: when none has a positive photo.
    """
    chosen = rankings.spread_queries(one.plain_scores[LEVEL]["AP"], count)
    if not chosen:
        raise InputError(f"no query of {one.name} has a positive photo at level {LEVEL}")
    return chosen


def _name_and_ap(one: Evaluation, query: int) -> str:
    name = posixpath.basename(one.truth.query_ids[query])
    return f"{name}, AP {percent(one.plain_scores[LEVEL]['AP'][query])}"


# --- maps ----------------------------------------------------------------------------


def saw_section(run: RunFiles, evaluations: Sequence[Evaluation], load: Load) -> Section:
    """Shows what descriptors saw: three maps over the best, a middle and the worst query."""

    def show(one: Evaluation) -> Iterator[Block]:
        model, chosen = _load_for(one, load), _spread(one, 3)
        photos, _ = rankings.task_photos(one.files.ground_truth, one.image_root, one.crop)
        for number, query in enumerate(chosen, 1):
            photo = read_photo(photos[query], one.inputs.protocol["query_max_side"] or 0)
            maps = model.maps(photo)
            words = f"Query {_name_and_ap(one, query)}"
            labelled = {label: maps[key] for key, label in descriptor_maps.MAPS.items()}
            yield Picture(
                f"saw_{slug(one.name)}_{number}",
                maps_overlay(photo, labelled),
                descriptor_maps.describe_maps(words, maps),
                f"{words}, {one.name}.",
                wide=True,
                photographs=True,
            )

    words = (
        "Attention weighs each local feature. The orthogonal part of a local feature is what "
        "the global one does not explain; its norm says how much the fusion adds there. The "
        "share explained is that of the feature's energy."
    )
    return _section("What a descriptor saw", words, run, evaluations, show)


# --- matches -------------------------------------------------------------------------


def match_section(run: RunFiles, evaluations: Sequence[Evaluation], load: Load) -> Section:
    """Shows where a query and a photo agree: for the best query a right one, for the worst not."""

    def show(one: Evaluation) -> Iterator[Block]:
        model, chosen = _load_for(one, load), _spread(one, 2)
        best, worst = chosen[0], chosen[-1]
        if right := first_of_kind(one, best, "positive"):
            yield _match(one, model, "right", best, *right)
        else:
            words = f"the best query, {_name_and_ap(one, best)}, finds none of its landmark"
            yield Note(f"a right pair: {words}.")
        # With an AP of 1 no photo of another landmark stands before one of its own.
        wrong = None
        if one.plain_scores[LEVEL]["AP"][worst] < 1:
            wrong = first_of_kind(one, worst, "negative")
        if wrong:
            yield _match(one, model, "mistaken", worst, *wrong)
        else:
            yield Note(f"a mistaken pair: each query of {one.name} finds its own photos first.")

    words = (
        "Bright are places whose local features agree with a place of the other photo. The scale "
        "is that of every pair: photos of nothing in common stay dark. A mistaken pair shows what "
        "the network took for the same."
    )
    return _section("Why do these match?", words, run, evaluations, show)


def first_of_kind(one: Evaluation, query: int, kind: str) -> tuple[int, int, float] | None:
    """Returns (index photo, rank from 1, similarity) of the first photo of a kind in a ranking.

    None when there is none among as many as could stand before the first negative.

    Args:
      one: the evaluation.
      query: its number.
      kind: positive or negative.
    """
    kinds = rankings.known_kinds(one.truth.queries[query], LEVEL)
    count = min(len(kinds) + 1, len(one.inputs.index))
    found = search.search(one.inputs.index, one.inputs.queries[[query]], count)
    for rank, (score, row) in enumerate(zip(*(part[0] for part in found), strict=True), 1):
        if kinds.get(int(row), "negative") == kind:
            return int(row), rank, float(score)
    return None


def _match(
    one: Evaluation,
    model: LoadedModel,
    word: str,
    query: int,
    row: int,
    rank: int,
    similarity: float,
) -> Picture:
    """Returns the picture of a pair, with both photos as they were described."""
    listed = rankings.task_photos(one.files.ground_truth, one.image_root, one.crop)
    photos = [
        read_photo(photo, one.inputs.protocol[f"{subset}_max_side"] or 0)
        for photo, subset in ((listed[0][query], "query"), (listed[1][row], "index"))
    ]
    found = agreement(*map(model.local_features, photos))
    names = [posixpath.basename(one.truth.query_ids[query])]
    names.append(posixpath.basename(one.truth.index_ids[row]))
    what = {
        "right": f"{names[1]}, the first photo of its landmark",
        "mistaken": f"{names[1]}, the first photo of another landmark",
    }[word]
    pair = f"{word.capitalize()} pair of {one.name}: query {_name_and_ap(one, query)}"
    words = f"{pair}, and {what}, at rank {rank}"
    return Picture(
        f"match_{word}_{slug(one.name)}",
        match.draw(photos, found, similarity, names),
        f"{words}, similarity {similarity:.3f}: {match.describe_match(found)}",
        f"{words}.",
        wide=True,
        photographs=True,
    )
