"""Is it the same place? An estimate for photos that the search was not adapted to.

One in five photos of the groups stands for a query: the whitening is learned without it, and it is
compared with the others. Photos that a whitening was learned from are too near to each other: a
threshold from these lets one query in five pass where four in five are answered rightly
(docs/quality.md). Groups are not pure, so the precision is that of the pairs times the estimated
purity of the groups.
"""

import logging

import numpy as np

from dolg_tf.evaluation.group_pairs import estimate_threshold
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.rows import Reordered
from dolg_tf.retrieval.whitening import learn
from dolg_tf.retrieval.whitening.choose import Adapted
from dolg_tf.retrieval.whitening.groups import NONE
from dolg_tf.retrieval.whitening.stages import WhitenedRows
from dolg_tf.runtime.whitening import Whitening
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_HELD = 5  # one in so many photos of the groups stands for a query


def estimate(photos: DescriptorSet, adapted: Adapted) -> dict | None:
    """Returns the estimated threshold, as an index stores it; None: there is none.

    Args:
      photos: with descriptors as the network gives them.
      adapted: what was learned from them.
    """
    if adapted.projection is None:
        return None
    labels, purity = adapted.grouping.labels, adapted.grouping.purity
    asked, size = _asked(labels), adapted.projection.shape[1]
    try:
        rows = _whitened_without(photos, labels, asked, size)
        found = estimate_threshold(rows, labels, asked=asked)
    except InputError as error:
        log.info("no threshold for the same place: %s", error)
        return None
    del found["curve"]
    found["precision"] *= purity
    found["precision_interval"] = [end * purity for end in found["precision_interval"]]
    return found | {"estimated": True}


def _asked(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns bool (N,): one in `_HELD` photos of each group."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(labels >= 0))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels[order])
    number = np.concatenate([np.arange(size) for size in sizes])
    shift = rng.integers(_HELD, size=len(sizes))
    asked = np.zeros(len(labels), bool)
    asked[order] = (number + shift[labels[order]]) % _HELD == 0
    return asked


def _whitened_without(
    photos: DescriptorSet, labels: np.ndarray, asked: np.ndarray, size: int
) -> WhitenedRows:
    """Returns all rows as they are whitened when it is learned without those that are asked for."""
    left = np.flatnonzero(~asked)
    groups = labels[left]
    sizes = np.bincount(groups[groups >= 0], minlength=int(labels.max()) + 1)
    groups = np.where((groups >= 0) & (sizes[groups] > 1), groups, NONE)
    if not (groups >= 0).any():
        raise InputError("the groups are too small")
    rows = Reordered(photos.descriptors, left)
    mean, projection, _ = learn.within_groups(rows, groups, size)
    arrays = (array.astype(np.float32) for array in (mean, projection))
    return WhitenedRows(photos, Whitening(*arrays, sha256=""))
