"""Rankings in short, as re-ranking gives them."""

import dataclasses

import numpy as np

from dolg_tf.retrieval.exact.search import search
from dolg_tf.retrieval.rows import Rows


@dataclasses.dataclass(frozen=True)
class Reranked:
    """Rankings in short: `head` first, then all other rows of the index by score.

    Attributes:
      queries: float32 (Q, D).
      index: (N, D), `Rows` or an array.
      head: int64 (Q, M), the first M rows of each ranking; None: M is 0. The other rows are ranked
        by the inner product of `queries` and `index`, and equal scores by row, the lower first.
      scores: float64 (Q, M), those of `head` by the method that ordered it, falling; None with it,
        and where an order has no scores.
      inliers: int64 (Q, M), of the photos of `head` that were verified, else -1; None: none were.
    """

    queries: np.ndarray
    index: Rows | np.ndarray
    head: np.ndarray | None = None
    scores: np.ndarray | None = None
    inliers: np.ndarray | None = None

    def best(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns int64 (Q, K) rows and float64 (Q, K) scores, the best k of each ranking.

        They are fewer where the index or the head has fewer rows.
        """
        if self.head is not None:
            return self.head[:, :k], self.scores[:, :k]
        found = search(self.index, self.queries, k)
        return found.rows, found.scores.astype(np.float64)
