"""The tuples of an epoch: random pairs, a random pool, and the hardest negatives in it."""

import numpy as np

from dolg_tf.stage.config import InputError
from dolg_tf.training.tuples.photos import Draws, TuplePhotos

_BLOCK = 256  # queries that are compared with the pool at a time


def draw_epoch(
    photos: TuplePhotos, seed: int, epoch: int, pairs: int, pool: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs and the pool of an epoch, by seed and epoch alone.

    Returns:
      int64 (n, 2), queries and positives, and int64 (m,), different photos, all by number.
    """
    random = Draws(seed, epoch)
    drawn = photos.draw_pairs(random, pairs)
    return drawn, random.order(len(photos.paths))[:pool]


def hardest_negatives(
    queries: np.ndarray,
    query_clusters: np.ndarray,
    pool: np.ndarray,
    pool_clusters: np.ndarray,
    count: int,
) -> np.ndarray:
    """Returns the photos of the pool that are most similar to each query but show something else.

    Args:
      queries, pool: float32 descriptors (n, D) and (m, D).
      query_clusters, pool_clusters: int (n,) and (m,), the landmark of each.
      count: of negatives per query, each of another cluster, and none of the query's.

    Returns:
      int64 (n, count), rows of the pool, the most similar first; of equals the earlier row.

    Raises:
      InputError: if the pool shows too few landmarks.

    Reference: `create_epoch_tuples` of cnnimageretrieval-pytorch.
    """
    kinds = len(np.unique(pool_clusters))
    if kinds <= count:
        raise InputError(
            f"the pool shows {kinds} landmarks; {count} negatives of other landmarks than a "
            "query's need more: give a larger --pool, or fewer --negatives"
        )
    found = np.empty((len(queries), count), np.int64)
    for start in range(0, len(queries), _BLOCK):
        products = queries[start : start + _BLOCK] @ pool.T
        for row, product in enumerate(products, start):
            found[row] = _first_of_clusters(product, pool_clusters, query_clusters[row], count)
    return found


def _first_of_clusters(product, clusters, own, count: int) -> np.ndarray:
    order = np.argsort(-product, kind="stable")
    order = order[clusters[order] != own]
    _, first = np.unique(clusters[order], return_index=True)
    return order[np.sort(first)[:count]]
