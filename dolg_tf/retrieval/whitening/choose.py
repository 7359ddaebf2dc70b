"""Which groups of photos to whiten by, decided by the photos themselves; or none.

Two photos of one place are linked on either of two grounds. Rank: each is among the other's three
nearest; this finds the few photos of a small place, but photos without a second one of their place
have nearest photos too. Likeness: they are among the other's eight nearest, and have most of what
sets each apart from the mean in common; this finds the many photos of a large place.
Rank alone is believed only where likeness confirms enough of it, and likeness only beyond what
chance gives among so many photos. Groups that are chains, alike from link to link but not as a
whole, fall apart, and copies of one photo are dropped. Where too little is left, nothing is
learned.
"""

import dataclasses

import numpy as np

from dolg_tf.retrieval.exact.search import Neighbours
from dolg_tf.retrieval.whitening import groups as grouping
from dolg_tf.retrieval.whitening import learn
from dolg_tf.retrieval.whitening.groups import NONE, CentredRows, Chance, Links

DIMENSIONS = 512  # of whitened descriptors, at most
_RANK, _LIKENESS = 3, 8  # nearest photos that count
_ALIKE = 0.5  # similarity that confirms a link: half of what sets a photo apart
_SAME = 0.6  # similarity that makes one: a single wrong one joins two places
_MANY = 0.8  # confirmed share of the links by rank from which `_ALIKE` makes one, too
_RELATED = 0.35  # similarity that rank needs, and a group as a whole
_STEP = 0.05  # by which a chain's links must be more alike
_COPIES = 0.95  # similarity of a group that says nothing about what varies within a place
_ODDS = 0.05  # photos that chance links by likeness, per photo
_CONFIRMED = 0.2  # share of the links by rank that likeness must confirm
_LEAST, _GROUPED = 5, 20  # groups that a whitening is learned from, and photos in them
_PURE = 0.7  # estimated share of right links; it is cautious, and at half of them a whitening harms
_SAMPLE = 2000  # photos that chance is estimated on


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Groups of photos, and why they are these.

    Attributes:
      k: nearest photos that count; 0 where nothing passes.
      threshold: least similarity of two linked photos, after the mean is taken away.
      groups: their number.
      grouped: photos in groups.
      largest: photos of the largest group.
      purity: estimated share of the links that join photos of one place.
      reason: why, in words.
      labels: int64 (N,), group of each photo, -1 for none.
    """

    k: int
    threshold: float
    groups: int
    grouped: int
    largest: int
    purity: float
    reason: str
    labels: np.ndarray = dataclasses.field(repr=False)

    @property
    def passes(self) -> bool:
        """Whether a whitening may be learned from them."""
        return self.k > 0


@dataclasses.dataclass(frozen=True)
class Adapted:
    """What was learned: `mean` (D,) and `projection` (D, K), None where nothing passes."""

    grouping: Grouping
    mean: np.ndarray | None = None
    projection: np.ndarray | None = None
    shrinkage: float = 0.0


def _none(count: int, purity: float, reason: str) -> Grouping:
    return Grouping(0, 0.0, 0, 0, 0, purity, reason, np.full(count, NONE, np.int64))


def _groups(rows: CentredRows, links: list[tuple[Links, float]]) -> np.ndarray:
    """Returns the groups that links make, without copies of one photo.

    A chain, alike from link to link but not as a whole, falls apart: its links must be more alike.

    Args:
      rows: (N, D), unit rows.
      links: with their least similarity.
    """
    labels = np.full(len(rows), NONE, np.int64)
    left = np.ones(len(rows), bool)
    for more in np.arange(0, 1, _STEP):
        some = [one.above(least + more).among(left) for one, least in links]
        found = grouping.components(len(rows), *some)
        if not (found >= 0).any():
            break
        alike = grouping.alikeness(rows, found)
        left = (found >= 0) & (alike < _RELATED)[found]
        kept = (found >= 0) & ((alike >= _RELATED) & (alike < _COPIES))[found]
        labels[kept] = found[kept] + labels.max() + 1
    return grouping.renumber(labels)


@dataclasses.dataclass(frozen=True)
class _Linked:
    """Links on both grounds, and what chance would link."""

    neighbours: Neighbours
    by_rank: Links
    by_likeness: Links
    chance: Chance
    confirmed: float  # share of the links by rank
    threshold: float

    def purity(self, by_rank: bool) -> float:
        """Returns the estimated share of the links that chance does not explain."""
        count = len(self.neighbours.rows)
        used = [(_LIKENESS, self.threshold, self.by_likeness)]
        used += [(_RANK, _RELATED, self.by_rank)] if by_rank else []
        found = sum(len(links.above(least)) for _, least, links in used)
        levels = [np.maximum(self.neighbours.scores[:, :k][:, -1], least) for k, least, _ in used]
        explained = sum(self.chance.links(count, level) for level in levels)
        return max(0.0, 1 - explained / found) if found else 0.0


def _link(rows: CentredRows, seed: int) -> _Linked:
    neighbours = grouping.nearest(rows, _LIKENESS)
    by_likeness = grouping.link(neighbours, _LIKENESS)
    sure = grouping.components(len(rows), by_likeness.above(_ALIKE))
    chance = grouping.chance(rows, sure, _SAMPLE, seed)
    by_rank = grouping.link(neighbours, _RANK)
    confirmed = len(by_rank.above(_ALIKE)) / max(len(by_rank), 1)
    # Where nearly all nearest photos are alike, places are large, and so are true groups.
    least = _ALIKE if confirmed >= _MANY else _SAME
    threshold = max(least, chance.level(len(rows), _ODDS))
    return _Linked(neighbours, by_rank, by_likeness, chance, confirmed, threshold)


def find_groups(rows, seed: int = 0) -> Grouping:
    """Finds groups of photos that most likely show one place each.

    Args:
      rows: (N, D) descriptors, `Rows` or an array.
      seed: of the photos that chance is estimated on, where there are very many.
    """
    count = len(rows)
    if count < _LEAST * grouping.LEAST:
        return _none(count, 0.0, f"{count} photos are too few to learn from")
    centred = CentredRows(rows, learn.mean(rows))
    linked = _link(centred, seed)
    by_rank = linked.confirmed >= _CONFIRMED
    links = [(linked.by_likeness, linked.threshold)]
    links += [(linked.by_rank, _RELATED)] if by_rank else []
    labels = _groups(centred, links)
    sizes, purity = np.bincount(labels[labels >= 0]), linked.purity(by_rank)
    told = f"{linked.confirmed:.0%} of the pairs among each other's {_RANK} nearest are alike"
    if len(sizes) < _LEAST:
        return _none(count, purity, f"{told}; {len(sizes)} groups are left of {_LEAST} needed")
    if sizes.sum() < _GROUPED:
        return _none(count, purity, f"{told}; {sizes.sum()} photos in groups of {_GROUPED} needed")
    if purity < _PURE:
        return _none(count, purity, f"{told}; chance explains {1 - purity:.0%} of the links")
    told += ", so rank links photos too" if by_rank else ", so likeness alone links photos"
    numbers = (len(sizes), int(sizes.sum()), int(sizes.max()))
    return Grouping(
        _RANK if by_rank else _LIKENESS, linked.threshold, *numbers, purity, told, labels
    )


def adapt(rows, dimensions: int = 0, seed: int = 0) -> Adapted:
    """Learns a whitening from groups that the photos form by themselves, where they do.

    Args:
      rows: (N, D) descriptors of the photos that are searched, without those of queries.
      dimensions: length of whitened descriptors, at most; 0: `DIMENSIONS`.
      seed: as in `find_groups`.
    """
    found = find_groups(rows, seed)
    if not found.passes:
        return Adapted(found)
    learned = learn.within_groups(rows, found.labels, dimensions or DIMENSIONS)
    return Adapted(found, *learned)
