"""Groups that photos form by themselves: most likely photos of one place, found without labels.

Similarities are cosines of descriptors less their mean: correlations, 0 for two photos that share
nothing but what all photos share, whatever the network.
"""

import dataclasses

import numpy as np
from scipy import sparse, special
from scipy.sparse import csgraph

from dolg_tf.retrieval.exact.search import Neighbours, search
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage import progress

NONE = -1  # the group of a photo that is in none
LEAST = 2  # photos of a group
_BLOCK = 1024  # photos whose neighbours are searched at a time
_ROWS = 8192  # rows read at a time
_PAIRS = 65536  # pairs whose neighbours are compared at a time
_LEVELS = 64  # quantiles that stand for the levels of all photos
_NO_DEVIATION = 1e-3
_WIDEST = 1.25  # deviation of a photo's similarities, of the median photo's
_SHARED = 0.3  # share of their nearest photos that two linked photos have in common


class CentredRows:
    """Rows less a mean, of unit norm, computed when read; float32. Zero rows stay zero.

    Args:
      rows: (N, D), `Rows` or an array.
      mean: (D,).
    """

    ndim = 2

    def __init__(self, rows, mean: np.ndarray):
        self._rows, self._mean = rows, np.asarray(mean, np.float32)
        self.shape = rows.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key) -> np.ndarray:
        found = np.asarray(self._rows[key], np.float32) - self._mean
        norms = np.sqrt(np.einsum("...d,...d->...", found, found))[..., None]
        return found / np.where(norms > 1e-6, norms, 1)


@dataclasses.dataclass(frozen=True)
class Links:
    """Pairs of photos: int64 (P,) rows, first below second, and float32 (P,) similarities."""

    first: np.ndarray
    second: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> "Links":
        """Returns those at least as similar as `threshold`."""
        return self._only(self.scores >= threshold)

    def among(self, chosen: np.ndarray) -> "Links":
        """Returns those of two photos that are chosen, bool (N,)."""
        return self._only(chosen[self.first] & chosen[self.second])

    def _only(self, kept: np.ndarray) -> "Links":
        return Links(self.first[kept], self.second[kept], self.scores[kept])


def nearest(rows, k: int) -> Neighbours:
    """Returns the k nearest other photos of each photo, exactly, best first.

    Args:
      rows: (N, D), N at least 2; read in blocks.
      k: number of photos; all others, if there are fewer.
    """
    rows, count = Rows([rows]), len(rows)  # one for all blocks: the first measures it
    k = min(k, count - 1)
    scores, found = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    steps = progress.track(
        blocks(rows, _BLOCK), -(-count // _BLOCK), "neighbours", f"blocks of {_BLOCK} photos"
    )
    for start, block in steps:
        best = search(rows, block, k + 1)
        own = best.rows == np.arange(start, start + len(block))[:, None]
        # Behind k + 1 copies of itself in lower rows, a photo is not among its own best.
        own[~own.any(axis=1), -1] = True
        part = slice(start, start + len(block))
        scores[part] = best.scores[~own].reshape(len(block), k)
        found[part] = best.rows[~own].reshape(len(block), k)
    return Neighbours(scores, found)


def link(neighbours: Neighbours, k: int) -> Links:
    """Links two photos when each is among the other's k nearest and they share enough of these.

    Args:
      neighbours: of all photos.
      k: nearest photos that count, at most as many as `neighbours` has.
    """
    rows, scores = neighbours.rows[:, :k], neighbours.scores[:, :k]
    count, k = rows.shape
    first, second = np.repeat(np.arange(count), k), rows.ravel()
    there = first < second
    mutual = np.isin(first * count + second, second * count + first) & there
    first, second, found = first[mutual], second[mutual], scores.ravel()[mutual]
    shared = np.empty(len(first), np.int64)
    for start in range(0, len(first), _PAIRS):
        part = slice(start, start + _PAIRS)
        both = rows[first[part]][:, :, None] == rows[second[part]][:, None, :]
        shared[part] = both.sum(axis=(1, 2))
    kept = shared >= _SHARED * k
    return Links(first[kept], second[kept], found[kept])


def components(count: int, *links: Links) -> np.ndarray:
    """Returns the group of each photo, int64 (N,): connected photos, numbered by first photo.

    Args:
      count: N.
      links: between photos; one without any is in no group, `NONE`.
    """
    first = np.concatenate([one.first for one in links])
    second = np.concatenate([one.second for one in links])
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, labels = csgraph.connected_components(graph, directed=False)
    return renumber(np.where(np.bincount(labels)[labels] >= LEAST, labels, NONE))


def renumber(groups: np.ndarray) -> np.ndarray:
    """Returns the groups numbered from 0 in the order of their first photos."""
    inside = groups >= 0
    _, first, numbers = np.unique(groups[inside], return_index=True, return_inverse=True)
    order = np.empty(len(first), np.int64)
    order[np.argsort(first)] = np.arange(len(first))
    found = np.full(len(groups), NONE, np.int64)
    found[inside] = order[numbers]
    return found


def alikeness(rows, groups: np.ndarray) -> np.ndarray:
    """Returns the mean similarity of two photos of each group, float64 (G,).

    Args:
      rows: (N, D), unit rows.
      groups: int (N,), see `components`.
    """
    counts = np.bincount(groups[groups >= 0])
    order = np.argsort(groups, kind="stable")[np.count_nonzero(groups < 0) :]
    squares, carried, last = np.zeros(len(counts)), 0, NONE
    for start in range(0, len(order), _ROWS):
        part = order[start : start + _ROWS]
        starts = np.flatnonzero(np.diff(groups[part], prepend=NONE))
        sums = np.add.reduceat(rows[part], starts, axis=0, dtype=np.float64)
        if groups[part[0]] == last:
            sums[0] += carried
        carried, last = sums[-1], groups[part[-1]]
        squares[groups[part[starts]]] = np.einsum("gd,gd->g", sums, sums)
    return (squares - counts) / (counts * (counts - 1))


# --- what chance would link ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chance:
    """How similar photos of different places are, seen from some photos.

    Attributes:
      medians, deviations: float64 (S,), of each photo's similarities to the others; the deviation
        is that of the upper half, which has more than a Gaussian's share of similar photos.
    """

    medians: np.ndarray
    deviations: np.ndarray

    def level(self, count: int, odds: float) -> float:
        """Returns the similarity that chance gives a share `odds` of photos among `count`."""
        tail = special.ndtri(odds / max(count, 1))
        return float(np.median(self.medians) - np.median(self.deviations) * tail)

    def links(self, count: int, levels: np.ndarray) -> float:
        """Returns how many pairs of `count` photos chance makes as similar as their levels."""
        some = np.quantile(levels, np.linspace(0, 1, _LEVELS))
        scores = (some[:, None] - self.medians) / self.deviations
        return float(special.ndtr(-scores).mean() * count * (count - 1) / 2)


def chance(rows, groups: np.ndarray, sample: int, seed: int) -> Chance:
    """Estimates how similar photos of different places are.

    One photo of each group stands for it, so that a large place does not pass for chance.

    Args:
      rows: (N, D), unit rows.
      groups: int (N,), of nearly surely one place each.
      sample: photos that are compared at most.
      seed: of their choice.
    """
    _, first = np.unique(groups, return_index=True)
    single = np.union1d(np.flatnonzero(groups < 0), first[groups[first] >= 0])
    if len(single) < 2:  # all are of one place, and nothing tells what chance would give
        return Chance(np.ones(1), np.full(1, _NO_DEVIATION))
    if len(single) > sample:
        single = np.sort(np.random.default_rng(seed).choice(single, sample, replace=False))
    chosen = rows[single]
    products = chosen @ chosen.T
    others = ~np.eye(len(single), dtype=bool)
    low, high = np.quantile(products[others].reshape(len(single), -1), [0.5, 0.84], axis=1)
    spread = np.maximum(high - low, _NO_DEVIATION)
    # A photo of a large place sees more of it than one: that is no chance.
    return Chance(low, np.minimum(spread, _WIDEST * np.median(spread)))
