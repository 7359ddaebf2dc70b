"""In which order the photos of an answer come, and which of them share a tile."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dolg_tf.apps.demo.collection import Searchable
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.expansion import expand
from dolg_tf.retrieval.rerank.geometric import InlierCounts
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.rows import Rows

RERANKINGS = ("none", *(name for name, one in methods.RERANKERS.items() if one.quick))
LOCAL = tuple(name for name in RERANKINGS[1:] if methods.RERANKERS[name].local)
_SAME = 0.9995  # score of a photo with itself, whatever rounding makes of it


@dataclasses.dataclass(frozen=True)
class FoundPhoto:
    """A found photo.

    Attributes:
      id: of the collection.
      score: inner product of the descriptors of query and photo.
      matches: whether the score, and the inliers where the threshold asks for some, reach it;
        None: there is none, or no inliers were counted.
      same: whether it is the very photo that was searched for.
      inliers: its local features that agree with the query's on one view; None: not verified.
      alike: photos that are nearly the same picture and share its tile.
    """

    id: str
    score: float
    matches: bool | None
    same: bool = False
    inliers: int | None = None
    alike: tuple["FoundPhoto", ...] = ()


class Ranked(NamedTuple):
    """Photos in an order.

    Attributes:
      scores: inner product of the descriptors of query and photo: the threshold was fitted to such.
      rows: of the photos.
      inliers: of those that were verified; else -1.
    """

    scores: np.ndarray
    rows: np.ndarray
    inliers: np.ndarray

    def without(self, row: int | None) -> "Ranked":
        """Leaves a photo out."""
        return Ranked(*(part[self.rows != row] for part in self))


@dataclasses.dataclass(frozen=True)
class _ByRow:
    """Local features of photos as re-ranking takes them."""

    of: Callable[[int], LocalFeatures]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> LocalFeatures:
        return self.of(row)


def rank(
    now: Searchable,
    row: np.ndarray,
    reranking: str,
    k: int,
    own: int | None,
    local: Callable[[], LocalFeatures],
) -> Ranked:
    """Returns the first photos for a query.

    Args:
      now: what is searched.
      row: descriptor of the query, (1, D).
      reranking: of `RERANKINGS`, with its default numbers.
      k: photos, at least.
      own: row number of the query itself; None: it is not among the photos.
      local: gives the query's local features, if they are needed.
    """
    if now.search is not None:
        scores, ranks = (found[0] for found in now.search(row, k))
        there = ranks >= 0
        return Ranked(scores[there], ranks[there], np.full(there.sum(), -1))
    rows = Rows([now.rows])
    if reranking == "none":
        asked = _expanded(now, row, own)
        ranks = search.search(rows, asked, k).rows[0]
        return Ranked(search.inner_products(row[0], rows[ranks]), ranks, np.full(len(ranks), -1))
    settings, counts = RerankConfig(rerank=reranking), None
    if methods.RERANKERS[reranking].local:
        settings = now.geometric
        counts = InlierCounts([local()], _ByRow(now.local, len(now.ids)), now.verify)
    refined = methods.apply(settings, row, rows, counts)
    ranks = search.search(rows, refined.queries, k).rows[0]
    inliers = np.full(len(ranks), -1)
    if refined.head is not None:
        # The others come behind, by score.
        head = refined.head[0]
        behind = ranks[~np.isin(ranks, head)]
        inliers = np.full(len(head), -1) if refined.inliers is None else refined.inliers[0]
        inliers = np.concatenate([inliers, np.full(len(behind), -1)])[:k]
        ranks = np.concatenate([head, behind])[:k]
    return Ranked(search.inner_products(row[0], rows[ranks]), ranks, inliers)


def _expanded(now: Searchable, row: np.ndarray, own: int | None) -> np.ndarray:
    """Returns a query (1, D) as it is searched for: averaged with its nearest photos, or as it is.

    Args:
      now: what is searched.
      row: the query.
      own: row number of the query itself; None: it is not among the photos.
    """
    if now.expansion is None or now.rows is None:
        return row
    near = search.search(Rows([now.rows]), row, now.expansion.photos + 1)
    others = np.flatnonzero((near.rows[0] != own) & (near.scores[0] < _SAME))
    others = others[: now.expansion.photos]
    chosen = np.asarray(now.rows[near.rows[0][others]], np.float32)
    return expand(row, chosen[None], near.scores[:, others], now.expansion.alpha)


def tiles(now: Searchable, ranked: Ranked, *, whole: bool) -> list[FoundPhoto]:
    """Returns the photos in their order; those nearly the same as an earlier one join its tile."""
    scores, ranks, inliers = ranked
    tiles: list[list[int]] = []
    look = now.rows if now.raw is None else now.raw
    if now.alike is None or look is None:
        tiles = [[place] for place in range(len(ranks))]
    else:
        rows = np.asarray(look[ranks], np.float32)
        near = rows @ rows.T >= now.alike
        for place in range(len(ranks)):
            tile = next((tile for tile in tiles if near[tile[0], place]), None)
            tiles.append([place]) if tile is None else tile.append(place)

    verified = bool((inliers >= 0).any())

    def photo(place: int, alike: tuple[FoundPhoto, ...] = ()) -> FoundPhoto:
        score = float(scores[place])
        # In float64: NumPy would round the threshold to float32, and a lower score might reach it.
        matches, count = None, int(inliers[place])
        if now.threshold is not None and (verified or not now.threshold.inliers):
            enough = not now.threshold.inliers or count >= now.threshold.inliers
            matches = score >= now.threshold.score and enough
        same = whole and score >= _SAME
        agree = None if count < 0 else count
        return FoundPhoto(now.ids[ranks[place]], score, matches, same, agree, alike)

    return [photo(tile[0], tuple(map(photo, tile[1:]))) for tile in tiles]
