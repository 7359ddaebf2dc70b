"""Is it the same place? An estimate without labels, from the groups that photos form themselves.

Two photos of one group count as the same place, photos of two groups as different ones, unless the
groups are related: a large place often makes several. The groups were found by similarity, so pairs
that look different are missing among the same, and the recall flatters. It is an estimate; pairs
with labels (`dolg calibrate`) beat it.
"""

import logging
from collections.abc import Iterator

import numpy as np

from dolg_tf.evaluation import calibrate
from dolg_tf.evaluation.labelled_pairs import Block
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_PHOTOS = 2000  # that are paired at most
_OF_A_GROUP = 200
_BLOCK = 256  # photos paired with all others at a time
_RELATED = 0.35  # similarity of two groups' means, less the mean of all, that may be one place
_FEW_PAIRS, _FEW_GROUPS = 100, 10


def _some_groups(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns rows of groups in random order, `_PHOTOS` at most, `_OF_A_GROUP` of each at most."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(np.flatnonzero(labels >= 0))
    rows = rows[np.argsort(labels[rows], kind="stable")]
    _, starts, sizes = np.unique(labels[rows], return_index=True, return_counts=True)
    sizes = np.minimum(sizes, _OF_A_GROUP)
    order = rng.permutation(len(sizes))
    order = order[np.cumsum(sizes[order]) <= _PHOTOS]
    return np.sort(np.concatenate([rows[starts[i] : starts[i] + sizes[i]] for i in order]))


def _related(rows: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns bool (G, G): whether two groups may be one place."""
    means = np.zeros((numbers.max() + 1, rows.shape[1]))
    np.add.at(means, numbers, rows)
    means = means / np.bincount(numbers)[:, None]
    means -= means.mean(axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means @ means.T >= _RELATED


def estimate_threshold(
    rows,
    labels: np.ndarray,
    precision: float = 0.95,
    seed: int = 0,
    asked: np.ndarray | None = None,
) -> dict:
    """Estimates the similarity from which two photos show the same place.

    Args:
      rows: (N, D) unit descriptors, as they are searched.
      labels: int (N,), group of each photo; negative: in none.
      precision: wanted share of the passing pairs that show the same place.
      seed: of the choice among very many photos, and of the intervals.
      asked: bool (N,), photos that stand for queries: pairs are of one of these and one of the
        others. None: of any two.

    Returns:
      As `calibrate.fit`, "groups", and "warning": "", or that it rests on few pairs.

    Raises:
      InputError: when there are no two unrelated groups, or no threshold has this precision.
    """
    labels = np.asarray(labels)
    if labels.max(initial=-1) < 1:
        raise InputError("a threshold needs two groups of photos; calibrate it on labelled pairs")
    chosen = _some_groups(labels, seed)
    some = np.asarray(rows[chosen], np.float32)
    _, numbers = np.unique(labels[chosen], return_inverse=True)
    related = _related(some, numbers)
    is_asked = None if asked is None else asked[chosen]

    def pairs() -> Iterator[Block]:
        for start in range(0, len(some), _BLOCK):
            first = numbers[start : start + _BLOCK]
            same = first[:, None] == numbers
            if asked is None:
                paired = np.arange(len(some)) > np.arange(start, start + len(first))[:, None]
            else:
                paired = is_asked[start : start + _BLOCK, None] & ~is_asked
            query, other = np.nonzero(paired & (same | ~related[first][:, numbers]))
            scores = (some[start : start + len(first)] @ some.T)[query, other]
            yield Block(start + query, scores, same[query, other])

    found = calibrate.fit(pairs, precision, seed) | {"groups": int(numbers.max()) + 1}
    few = found["pairs"]["same"] < _FEW_PAIRS or found["groups"] < _FEW_GROUPS
    pairs_words = f"{found['pairs']['same']} pairs of {found['groups']} groups"
    found["warning"] = f"the threshold rests on {pairs_words}, which is little" if few else ""
    if few:
        log.warning(
            "%s: %.3f; calibrate it on labelled pairs", found["warning"], found["threshold"]
        )
    return found
