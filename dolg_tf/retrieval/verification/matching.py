"""Which local features of two photos look alike: nearest neighbours by one matrix product."""

import typing

import numpy as np

from dolg_tf.stage.config import InputError


class Matches(typing.NamedTuple):
    """Pairs of features.

    Attributes:
      query, index: int64 (M,), rows of either photo; `query` ascends.
    """

    query: np.ndarray
    index: np.ndarray


def match(
    query: np.ndarray, index: np.ndarray, *, max_distance: float, mutual: bool = False
) -> Matches:
    """Pairs each feature of a query with the nearest one of an index photo.

    Equally near ones count in their order, the first wins. Several features of the query may share
    one of the index photo, unless `mutual`.

    Args:
      query: (N, D) descriptors.
      index: (M, D) descriptors.
      max_distance: pairs are closer than this, in Euclidean distance; at it they are not kept.
        DELF's `match_descriptor_threshold`: 1.0 is a cosine of 0.5 between unit vectors.
      mutual: keep a pair only if the feature of the query is also the nearest to that of the index
        photo.

    Raises:
      InputError: when the descriptors differ in length.

    Reference: `MatchFeatures` of DELF's image_reranking.py, which asks a k-d tree.
    """
    if not len(query) or not len(index):
        return Matches(np.zeros(0, np.int64), np.zeros(0, np.int64))
    query, index = np.asarray(query, np.float64), np.asarray(index, np.float64)
    if query.shape[1] != index.shape[1]:
        raise InputError(
            f"local features have {query.shape[1]} numbers in the query, but {index.shape[1]} in "
            "the index photo; describe both by the same model"
        )
    # |q - i|^2 less |q|^2, which does not change the order; halved.
    apart = np.einsum("md,md->m", index, index) / 2 - query @ index.T
    nearest = apart.argmin(1)
    rows = np.arange(len(query))
    if mutual:
        apart += np.einsum("nd,nd->n", query, query)[:, None] / 2
        rows = rows[apart.argmin(0)[nearest] == rows]
    # The difference itself, since cancellation above costs half the digits.
    distances = np.linalg.norm(query[rows] - index[nearest[rows]], axis=1)
    rows = rows[distances < max_distance]
    return Matches(rows, nearest[rows])
