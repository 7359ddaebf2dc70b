"""Why a query and a photo match: a right pair, and a mistaken one."""

import dataclasses
import posixpath
from collections.abc import Iterator, Sequence

from dolg_tf.apps.pictures import match, rankings
from dolg_tf.apps.pictures.verified import VerifiedPair
from dolg_tf.apps.report.figures.queries import name_and_ap, spread
from dolg_tf.apps.report.figures.style import LEVEL, slug
from dolg_tf.apps.report.page import Block, Note, Picture
from dolg_tf.apps.report.run_files import Evaluation, RunFiles
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.retrieval.index.directory import check_same_space
from dolg_tf.retrieval.local import feature_set
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError, from_dict

_ASPECT = 0.02  # by which that of a shrunk photo differs, at most

WORDS = (
    "Lines over the photos join places whose local features look alike and lie where one view of a "
    "scene would have them. In heat maps, places are bright where they agree with a place of the "
    "other photo; all pairs share one scale, and photos with nothing in common stay dark. A "
    "mistaken pair shows what the network took for the same landmark."
)


def show(run: RunFiles, one: Evaluation, model: LoadedModel | None) -> Iterator[Block]:
    """Shows, for the best query, a right pair, and for the worst a mistaken one.

    Local features are those of the sets, where there are any, or else the model finds them.
    """
    chosen = spread(one, 2)
    pairs = _Pairs(run, one, model)
    best, worst = chosen[0], chosen[-1]
    if right := first_of_kind(one, best, "positive"):
        yield _match(one, pairs, "right", best, *right)
    else:
        words = f"the best query, {name_and_ap(one, best)}, finds no photo of its landmark"
        yield Note(f"a right pair: {words}.")
    # With an AP of 1 no photo of another landmark stands before one of its own.
    wrong = None
    if one.plain_scores[LEVEL]["AP"][worst] < 1:
        wrong = first_of_kind(one, worst, "negative")
    if wrong:
        yield _match(one, pairs, "mistaken", worst, *wrong)
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


class _Pairs:
    """Compares pairs of an evaluation."""

    def __init__(self, run: RunFiles, one: Evaluation, model: LoadedModel | None):
        self._one, self._model, self._sets = one, model, None
        if run.query_local:
            self._sets = [feature_set.read(path) for path in (run.query_local, run.index_local)]
            made = map(feature_set.how_made, self._sets)
            check_same_space(made, feature_set.SAME_SPACE)
        # As inliers were counted, where they ordered photos.
        own = one.own_scores["protocol"].get("verification") or {}
        names = {field.name for field in dataclasses.fields(VerifyConfig)}
        kept = {name: value for name, value in own.items() if name in names}
        self._verifier = Verifier(from_dict(VerifyConfig, kept, "report.json"))
        self._most = own.get("max_features") or match.MOST_FEATURES

    def compare(self, photos: Sequence[Photo], likes: Sequence[dict], ids: Sequence[str]):
        """Returns what a query and an index photo have in common."""
        found = match.Compared()
        if self._model is not None:
            found = match.compare_local(self._model, photos, likes, self._verifier, self._most)
        if self._sets is not None:
            features = [
                one[int(one.rows_of([id_])[0])] for one, id_ in zip(self._sets, ids, strict=True)
            ]
            pair = VerifiedPair(*features, self._verifier.verify(*features))
            found = dataclasses.replace(found, verified=pair)
        return found


def _match(
    one: Evaluation,
    pairs: _Pairs,
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
    ids = one.truth.query_ids[query], one.truth.index_ids[row]
    found = dataclasses.replace(pairs.compare(photos, likes, ids), similarity=similarity)
    images = list(map(read_photo, photos, map(Preparation.of, likes)))
    _check_shapes(found.verified, images, ids)
    names = list(map(posixpath.basename, ids))
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


def _check_shapes(pair: VerifiedPair | None, images: Sequence, ids: Sequence[str]) -> None:
    """Makes sure that local features are of the part of a photo that is shown.

    Raises:
      InputError: when a query's were found in the whole photo, or the reverse.
    """
    if pair is None:
        return
    for features, image, id_ in zip((pair.query, pair.index), images, ids, strict=True):
        wide, shown = features.size[1] / features.size[0], image.shape[1] / image.shape[0]
        if abs(wide / shown - 1) > _ASPECT + 1 / min(image.shape[:2]):
            height, width = features.size
            raise InputError(
                f"the local features of {id_} are of {width} x {height} pixels, which is another "
                "part of the photo than its descriptor is of: extract both with --local in one go"
            )
