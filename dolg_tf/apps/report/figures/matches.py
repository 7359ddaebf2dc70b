"""Why a query and a photo match: a right pair, and a mistaken one."""

import dataclasses
import posixpath
from collections.abc import Iterator

from dolg_tf.apps.pictures import match, rankings
from dolg_tf.apps.report.figures.queries import name_and_ap, spread
from dolg_tf.apps.report.figures.style import LEVEL, slug
from dolg_tf.apps.report.page import Block, Note, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel

WORDS = (
    "Lines over the photos join places whose local features look alike and lie where one view of a "
    "scene would have them. In heat maps, places are bright where they agree with a place of the "
    "other photo; all pairs share one scale, and photos with nothing in common stay dark. A "
    "mistaken pair shows what the network took for the same landmark."
)


def show(run: RunFiles, one: Evaluation, model: LoadedModel) -> Iterator[Block]:
    """Shows, for the best query, a right pair, and for the worst a mistaken one."""
    chosen = spread(one, 2)
    best, worst = chosen[0], chosen[-1]
    if right := first_of_kind(one, best, "positive"):
        yield _match(one, model, "right", best, *right)
    else:
        words = f"the best query, {name_and_ap(one, best)}, finds no photo of its landmark"
        yield Note(f"a right pair: {words}.")
    # With an AP of 1 no photo of another landmark stands before one of its own.
    wrong = None
    if one.plain_scores[LEVEL]["AP"][worst] < 1:
        wrong = first_of_kind(one, worst, "negative")
    if wrong:
        yield _match(one, model, "mistaken", worst, *wrong)
    else:
        yield Note(f"a mistaken pair: each query of {one.name} finds its own photos first.")


def first_of_kind(one: Evaluation, query: int, kind: str) -> tuple[int, int, float] | None:
    """Returns (index photo, rank from 1, similarity) of the first photo of a kind in a ranking.

    None when there is none among as many as could stand before the first negative.

    Args:
      one: the evaluation.
      query: its number.
      kind: "positive" or "negative".
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
    listed = rankings.photos_of_evaluation(
        one.files.ground_truth, one.image_root, one.inputs.protocol
    )
    photos = listed[0][query], listed[1][row]
    likes = [rankings.made_like(one.inputs.protocol, subset) for subset in ("query", "index")]
    found = match.compare_local(model, photos, likes)
    found = dataclasses.replace(found, similarity=similarity)
    images = list(map(read_photo, photos, map(Preparation.of, likes)))
    names = [posixpath.basename(one.truth.query_ids[query])]
    names.append(posixpath.basename(one.truth.index_ids[row]))
    what = {
        "right": f"{names[1]}, the first photo of its landmark",
        "mistaken": f"{names[1]}, the first photo of another landmark",
    }[word]
    pair = f"{word.capitalize()} pair of {one.name}: query {name_and_ap(one, query)}"
    words = f"{pair}, and {what}, at rank {rank}"
    return Picture(
        f"match_{word}_{slug(one.name)}",
        match.draw(images, found, names),
        f"{words}, similarity {similarity:.3f}: {match.describe_match(found)}",
        f"{words}.",
        wide=True,
        photographs=True,
    )
