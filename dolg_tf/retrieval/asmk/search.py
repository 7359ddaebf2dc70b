"""The similarity of a query to all images, from the lists of its words alone."""

from collections.abc import Iterator

import numpy as np

from dolg_tf.retrieval.asmk.kernel import Kernel
from dolg_tf.retrieval.asmk.lists import REMEDY, Inverted
from dolg_tf.stage.config import InputError

_ENTRIES = 1 << 21  # that are compared at once: 64 MB of codes of 128 bits and what is made of them


class Search:
    """Compares queries with the images of an inverted file.

    Args:
      inverted: the images.
      kernel: theirs, with exponent and threshold.
    """

    def __init__(self, inverted: Inverted, kernel: Kernel):
        self._inverted, self._kernel = inverted, kernel
        self._sigma = kernel.select(kernel.similarity_of_distances()) if kernel.binary else None
        self._weights = idf_weights(inverted) if inverted.meta["idf"] else None

    def scores(self, words: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Returns the similarities of a query to all images, float64 (N,).

        S(X, Y) = sum over common words of w_c sigma(u_c) / (norm of X * norm of Y), the norm being
        the root of the summed weights of an image's words. All weights are 1 without IDF, and a
        query's words count also where no image has them.

        Args:
          words: int (W,), ascending.
          codes: (W, width), as the kernel encodes.

        Raises:
          InputError: when a list is damaged.
        """
        inverted, rules = self._inverted, self._kernel.rules
        count, norms = len(inverted), inverted.norms
        if not len(words):
            return np.full(count, rules.empty)
        total = np.zeros(count)
        for some in _parts(inverted.offsets, words):
            rows, values = self._compare(words[some], codes[some])
            if len(rows) and not 0 <= rows.min() <= rows.max() < count:
                raise InputError(f"{inverted.path}: an image that is not there; {REMEDY}")
            total += np.bincount(rows, values, count)
        weights = np.ones(len(words)) if self._weights is None else self._weights[words]
        if not (rules.raw_regions and inverted.meta["regions"]):
            both = norms * np.sqrt(weights.sum())
            total = np.divide(total, both, out=np.zeros(count), where=both > 0)
        return np.where(norms > 0, total, rules.empty)

    def _compare(self, words: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images that have these words, and what each adds to its score."""
        inverted = self._inverted
        spans = [slice(*inverted.offsets[word : word + 2]) for word in words]
        lengths = np.diff([[span.start, span.stop] for span in spans], axis=1)[:, 0]
        rows = np.concatenate([inverted.rows[span] for span in spans])
        if self._sigma is not None:
            stored = np.concatenate([inverted.codes[span] for span in spans])
            values = self._sigma[_distances(stored, np.repeat(codes, lengths, axis=0))]
        else:
            pairs = zip(spans, codes, strict=True)
            values = np.concatenate([inverted.codes[span] @ code for span, code in pairs])
            values = self._kernel.select(values.astype(np.float64))
        if self._weights is not None:
            values *= np.repeat(self._weights[words], lengths)
        return rows, values


def _parts(offsets: np.ndarray, words: np.ndarray) -> Iterator[slice]:
    """Yields slices of the words whose lists together have about `_ENTRIES` entries."""
    ends = np.cumsum(offsets[words + 1] - offsets[words])
    start = 0
    while start < len(words):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _ENTRIES, side="right")))
        yield slice(start, stop)
        start = stop


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the Hamming distances of rows of bits, uint8 (E, W): int (E,)."""
    size = next(size for size in (8, 4, 2, 1) if one.shape[1] % size == 0)
    one, other = (rows.view(f"u{size}") for rows in (one, other))
    found = np.bitwise_count(one[:, 0] ^ other[:, 0]).astype(np.int32)
    for column in range(1, one.shape[1]):
        found += np.bitwise_count(one[:, column] ^ other[:, column])
    return found


def idf_weights(inverted: Inverted) -> np.ndarray:
    """Returns the weight of each word, see `weights_of_counts`."""
    return weights_of_counts(np.diff(inverted.offsets), inverted.meta["counted"])


def weights_of_counts(counts: np.ndarray, images: int) -> np.ndarray:
    """Returns (ln(N / n_c))^2 for each word, 1 for those that no image has: float64 (K,).

    Args:
      counts: n_c, images that have it.
      images: N.
    """
    return np.where(counts > 0, np.log(images / np.maximum(counts, 1)) ** 2, 1.0)
