"""Query expansion and database augmentation: averages of a descriptor and its neighbours.

References:
  Average query expansion: Chum et al., "Total Recall", ICCV 2007.
  Alpha query expansion: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human
  Annotation", TPAMI 2019.
  Database augmentation: Turcot and Lowe, ICCV workshops 2009; Arandjelović and Zisserman, "Three
  things everyone should know to improve object retrieval", CVPR 2012.
"""

import logging
import os
import tempfile

import numpy as np

from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

_BLOCK = 1024  # rows searched for at a time: 23 MB of neighbours at k 10 and D 512


def _weighted_mean(own: np.ndarray, neighbours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns unit((B, D) + sum over k of weights (B, k) * neighbours (B, k, D)), float32."""
    total = own + np.einsum("bk,bkd->bd", weights, neighbours)
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    if not (norms > 1e-6).all():
        row = int(np.flatnonzero(~(norms[:, 0] > 1e-6))[0])
        raise InputError(
            f"descriptor {row} and its neighbours cancel out; use fewer neighbours (--rerank_k) "
            "or a larger --rerank_alpha"
        )
    return (total / norms).astype(np.float32)


def _weights(scores: np.ndarray, alpha: float) -> np.ndarray:
    """Returns max(score, 0) ** alpha; all 1 where alpha is 0."""
    return np.maximum(scores, 0) ** alpha


def expand(
    queries: np.ndarray, neighbours: np.ndarray, scores: np.ndarray, alpha: float
) -> np.ndarray:
    """Returns unit(q + sum of max(score, 0) ** alpha * x over the neighbours x of each query q).

    Args:
      queries: float32 (Q, D), unit rows.
      neighbours: float32 (Q, K, D), unit rows.
      scores: float32 (Q, K), of the neighbours; 0: it does not count, unless alpha is 0.
      alpha: 0 or more.

    Raises:
      InputError: when a query and its neighbours cancel out.
    """
    return _weighted_mean(queries, neighbours, _weights(scores, alpha))


def alpha_qe(queries: np.ndarray, index, k: int, alpha: float) -> np.ndarray:
    """Returns each query averaged with its k best photos: alpha query expansion.

    unit(q + sum of max(q.x, 0) ** alpha * x over the k best x). With alpha 0, average query
    expansion, every photo weighs as much as the query, whatever its score.

    Args:
      queries: float32 (Q, D), unit rows.
      index: (N, D), unit rows.
      k: number of photos; all, if the index has fewer.
      alpha: 0 or more.

    Returns:
      float32 (Q, D), unit rows.

    Raises:
      InputError: when a query and its photos cancel out.
    """
    expanded = np.empty(queries.shape, np.float32)
    for start, block in blocks(queries, _BLOCK):
        scores, rows = search(index, block, k)
        expanded[start : start + len(block)] = expand(block, index[rows], scores, alpha)
    return expanded


def _temporary_rows(shape: tuple[int, int]) -> np.ndarray:
    """Returns a writable float32 array in an unnamed file, which is deleted with the array.

    The space is reserved at once: a full disk is an error here, not a crash later.
    """
    with tempfile.TemporaryFile(prefix="dolg-rows-") as file:
        size = shape[0] * shape[1] * 4
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise InputError(
                f"no room for {size / 2**30:.1f} GiB of augmented descriptors in "
                f"{tempfile.gettempdir()} ({error}); set TMPDIR to a folder on a larger disk"
            ) from error
        return np.memmap(file, np.float32, "r+", shape=shape)


def alpha_dba(index, k: int, alpha: float) -> Rows:
    """Returns each photo of the index averaged with its k best others: database augmentation.

    unit(x + sum of max(x.y, 0) ** alpha * y over the k best y other than x), where "other" means
    another row: a duplicate counts. It compares each photo with each: for a million photos 10^12
    inner products, which take hours; progress says how many.

    Args:
      index: (N, D), unit rows.
      k: number of photos; all others, if the index has fewer.
      alpha: 0 or more.

    Returns:
      (N, D) unit rows, float32, in a temporary file (in TMPDIR) that is deleted with them.

    Raises:
      InputError: when the disk is full, or a photo and its neighbours cancel out.
    """
    count = len(index)
    log.info("alpha_dba: %d x %d inner products of %d numbers", count, count, index.shape[1])
    augmented = _temporary_rows(index.shape)
    steps = progress.track(
        blocks(index, _BLOCK), -(-count // _BLOCK), "alpha_dba", f"blocks of {_BLOCK} photos"
    )
    for start, block in steps:
        scores, rows = search(index, block, k + 1)
        own = rows == np.arange(start, start + len(block))[:, None]
        # After k + 1 duplicates in lower rows, a photo is not among its own best.
        own[~own.any(axis=1), -1] = True
        weights = np.where(own, 0, _weights(scores, alpha))
        augmented[start : start + len(block)] = _weighted_mean(block, index[rows], weights)
    return Rows([augmented])
