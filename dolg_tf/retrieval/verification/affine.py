"""RANSAC for an affine map between two photos: all trials of a round at once, in NumPy.

Reference: Fischler and Bolles, "Random sample consensus", CACM 1981; the rules are those that DELG
takes from scikit-image's `ransac`.
"""

import dataclasses
import typing

import numpy as np

_SAMPLE = 3  # pairs that make an affine map
_ROUND = 128  # trials at once: at 1,000 pairs their residuals fit a processor's cache
# Of a triangle's smaller over its larger extent: below, its points lie in a line but for rounding.
_FLAT = 1e-9
# Samples that no camera which turns around a place can give.
_THIN = 0.05  # extents as above: the third point hardly says anything
_MOST_SCALE = 10.0  # by which a map may stretch or shrink any direction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ransac:
    """Settings of a verification.

    Attributes:
      max_residual: pairs whose mapped and seen places are closer than this are inliers, in the
        units of the locations. DELG's perform_retrieval takes 20 pixels.
      trials: at most, samples of three pairs.
      plausible: refuse samples of three points nearly in a line, and maps that mirror or that
        stretch or shrink tenfold: such maps explain matches on a line, and mirrored ones, which are
        not the same place. DELG does not refuse them.
      seed: of the samples.
    """

    max_residual: float = 20.0
    trials: int = 1000
    plausible: bool = False
    seed: int = 0


class Verified(typing.NamedTuple):
    """What pairs of features agree on.

    Attributes:
      inliers: bool (M,), the pairs that the map explains.
      map: float64 (2, 3), from a location of the index photo, with a 1 behind it, to one of the
        query; None: there is no map that explains three pairs or more.
    """

    inliers: np.ndarray
    map: np.ndarray | None


def verify(query: np.ndarray, index: np.ndarray, settings: Ransac) -> Verified:
    """Finds the affine map from an index photo to a query that explains the most pairs.

    The same pairs and seed give the same answer on every machine, but for rounding at the very
    bound of the residual.

    Args:
      query, index: (M, 2) locations of matched features, row and column alike in both.
      settings: see there. Trials end early once a better sample is as unlikely as rounding.
    """
    count = len(query)
    nothing = Verified(np.zeros(count, bool), None)
    if count <= _SAMPLE:
        return nothing
    query, index = np.asarray(query, np.float64), np.asarray(index, np.float64)
    places = np.column_stack([index, np.ones(count)])
    best, best_key = None, (_SAMPLE - 1, 0.0)
    samples = _samples(count, settings)
    needed = len(samples)
    # Reused: memory that is new to the process takes longer to come than to be filled.
    room = np.empty((2, min(_ROUND, needed), count))
    for start in range(0, len(samples), _ROUND):
        if start >= needed:
            break
        maps = _fit(query, index, samples[start : start + _ROUND], settings.plausible)
        if not len(maps):
            continue
        squared = _squared_residuals(maps, places, query, room)
        hits = (squared < settings.max_residual**2).sum(1)
        most = int(hits.max())
        if most < best_key[0]:
            continue
        ties = np.flatnonzero(hits == most)
        sums = squared[ties].sum(1)
        at = int(sums.argmin())
        if most > best_key[0] or sums[at] < best_key[1]:
            best, best_key = maps[ties[at]], (most, float(sums[at]))
            needed = _needed_trials(most / count)
    if best is None:
        return nothing
    squared = _squared_residuals(best[None], places, query, room)[0]
    return Verified(squared < settings.max_residual**2, best)


def _squared_residuals(
    maps: np.ndarray, places: np.ndarray, query: np.ndarray, room: np.ndarray
) -> np.ndarray:
    """Returns float64 (T, M) of maps (T, 2, 3), places (M, 3) and the query's locations (M, 2).

    They are in `room`, float64 (2, T or more, M), until it is used again.
    """
    total = room[:, : len(maps)]
    for axis in range(2):
        np.matmul(maps[:, axis], places.T, out=total[axis])
        total[axis] -= query[:, axis]
    np.square(total, out=total)
    total[0] += total[1]
    return total[0]


def _samples(count: int, settings: Ransac) -> np.ndarray:
    """Returns int64 (trials, 3), three different pairs of `count` each.

    Philox's raw numbers are the same in every version of NumPy; those of `Generator` are not
    promised to be.
    """
    raw = np.random.Philox(key=settings.seed).random_raw(settings.trials * _SAMPLE)
    high = (raw >> np.uint64(32)).reshape(-1, _SAMPLE)
    left = np.arange(count, count - _SAMPLE, -1, dtype=np.uint64)
    chosen = (high * left >> np.uint64(32)).astype(np.int64)
    # The second is one of those left without the first, the third one without both.
    chosen[:, 1] += chosen[:, 1] >= chosen[:, 0]
    lower, upper = np.sort(chosen[:, :2], 1).T
    chosen[:, 2] += chosen[:, 2] >= lower
    chosen[:, 2] += chosen[:, 2] >= upper
    return chosen


def _fit(query: np.ndarray, index: np.ndarray, samples: np.ndarray, plausible: bool) -> np.ndarray:
    """Returns float64 (T', 2, 3), the maps of the samples that give one.

    Three points in a line leave the map open across it: then nothing moves that way.
    """
    origins, seen = index[samples[:, 0]], query[samples[:, 0]]
    # The triangles' two edges are columns: map @ edges = seen edges.
    edges = (index[samples[:, 1:]] - origins[:, None]).transpose(0, 2, 1)
    seen_edges = (query[samples[:, 1:]] - seen[:, None]).transpose(0, 2, 1)
    largest, smallest = _extents(edges)
    kept = largest > 0
    if plausible:
        kept &= is_spread(edges)
    edges, seen_edges, origins, seen = (x[kept] for x in (edges, seen_edges, origins, seen))
    flat = smallest[kept] <= _FLAT * largest[kept]
    inverse = np.empty_like(edges)
    inverse[~flat] = np.linalg.inv(edges[~flat])
    inverse[flat] = np.linalg.pinv(edges[flat], rcond=_FLAT)
    linear = seen_edges @ inverse
    if plausible:
        sound = is_view(linear)
        linear, origins, seen = linear[sound], origins[sound], seen[sound]
    shift = seen - (linear @ origins[:, :, None])[:, :, 0]
    return np.concatenate([linear, shift[:, :, None]], 2)


def is_spread(edges: np.ndarray) -> np.ndarray:
    """Tells of (T, M, 2) vectors, or (T, 2, 2) in columns, whether they are not in a line; (T,)."""
    largest, smallest = _extents(edges)
    return smallest > _THIN * largest


def is_view(linear: np.ndarray) -> np.ndarray:
    """Tells of (T, 2, 2) maps whether they neither mirror nor scale tenfold; bool (T,)."""
    largest, smallest = _extents(linear)
    return (np.linalg.det(linear) > 0) & (largest < _MOST_SCALE) & (smallest > 1 / _MOST_SCALE)


def _extents(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the singular values of (T, M, 2) matrices, the larger and the smaller."""
    values = np.linalg.svd(matrices, compute_uv=False)
    return values[:, 0], values[:, 1]


def _needed_trials(share: float) -> float:
    """Returns after how many trials a better sample is as unlikely as rounding.

    Args:
      share: of the pairs that are inliers so far.
    """
    missed = 1 - share**_SAMPLE
    eps = np.finfo(np.float64).eps
    return 0 if missed <= eps else np.log(eps) / np.log(missed)
