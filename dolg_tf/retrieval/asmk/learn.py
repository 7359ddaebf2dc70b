"""A codebook learned by k-means, one round after the other, so that a killed run continues.

Rounds of one iteration each, begun from the last centroids, are bit for bit what faiss does in one
call, as long as it is given no more rows than it takes: 256 per word.
"""

import logging
import pathlib

import numpy as np

from dolg_tf.retrieval.asmk import words
from dolg_tf.retrieval.asmk.words import Codebook
from dolg_tf.retrieval.local.feature_set import LocalFeatureSet
from dolg_tf.retrieval.with_faiss import import_faiss
from dolg_tf.stage import progress
from dolg_tf.stage.config import InputError

log = logging.getLogger(__name__)

ROUNDS = 10  # iterations, as in the asmk package
PER_WORD = 256  # rows that faiss takes
_FEW = 39  # rows per word below which faiss warns


def sample(found: LocalFeatureSet, most: int) -> np.ndarray:
    """Returns at most so many descriptors, float32 (N, D), drawn evenly and in their order."""
    total = int(found.counts.sum())
    rows = np.arange(total)
    if total > most:
        drawn = np.random.default_rng(0).choice(total, most, replace=False, shuffle=False)
        rows = np.sort(drawn)
    ends = np.cumsum(found.counts)
    cuts = np.searchsorted(rows, [0, *ends])
    chosen = np.empty((len(rows), found.meta["dimensions"]), np.float32)
    for row in progress.track(range(len(found)), len(found), "read"):
        part = slice(cuts[row], cuts[row + 1])
        if part.stop > part.start:
            first = ends[row] - found.counts[row]
            chosen[part] = found[row].descriptors[rows[part] - first]
    return chosen


def check_enough(features: int, words: int) -> None:
    """Makes sure that there are as many features as words.

    Raises:
      InputError: when there are fewer.
    """
    if features < words:
        raise InputError(f"{features} local features are too few for --words={words}; give fewer")


def k_means(
    rows: np.ndarray, count: int, unfinished: pathlib.Path, about: dict, rounds: int = ROUNDS
) -> Codebook:
    """Learns visual words.

    Args:
      rows: float32 (N, D), N at most `PER_WORD` times K.
      count: K.
      unfinished: an .npz of the words of a killed run, which continues there; the caller removes
        it when the codebook is in place.
      about: what the rows are of, `Codebook.space`.
      rounds: iterations.

    Raises:
      InputError: when there are fewer rows than words, or a run of other rows was begun.
    """
    faiss = import_faiss("a codebook")
    check_enough(len(rows), count)
    if len(rows) < _FEW * count:
        told = (len(rows), count, _FEW)
        log.warning("%d local features for %d words: below %d a word, words are poor", *told)
    done, centroids = 0, None
    if unfinished.exists():
        begun = words.read_codebook(unfinished)
        done, made = begun.space.pop("done", 0), begun.space
        if made != about or begun.centroids.shape != (count, rows.shape[1]):
            raise InputError(
                f"{unfinished} was begun with other features or --words; delete it, or choose "
                "another --output"
            )
        log.info("%s: %d of %d rounds are done already", unfinished, done, rounds)
        centroids = begun.centroids
    for number in progress.track(range(done, rounds), rounds - done, "k-means", "rounds"):
        centroids, error = _round(faiss, rows, count, centroids)
        words.write_codebook(unfinished, Codebook(centroids, about | {"done": number + 1}))
        log.info("round %d of %d: mean squared distance %.5g", number + 1, rounds, error)
    return Codebook(centroids, about)


def _round(faiss, rows: np.ndarray, count: int, centroids: np.ndarray | None):
    """Returns the centroids after one iteration, and the mean squared distance to those before."""
    clustering = faiss.Clustering(rows.shape[1], count)
    clustering.niter, clustering.min_points_per_centroid = 1, 1
    if centroids is not None:
        faiss.copy_array_to_vector(centroids.ravel(), clustering.centroids)
    clustering.train(rows, faiss.IndexFlatL2(rows.shape[1]))
    found = faiss.vector_to_array(clustering.centroids).reshape(count, -1)
    return found, clustering.iteration_stats.at(0).obj / len(rows)
