"""Agreement of the local features of two photos, as numbers."""

import dataclasses

import numpy as np

from dolg_tf.stage.config import InputError

# Rows of the first photo compared at a time: the products of all cells of two large photos would
# take gigabytes.
_BLOCK = 1024
# Pairs below it are left out: at least one photo pays them hardly any attention.
_LEAST = 0.02
# Pairs end at least this share of a map's longer side apart, so that they do not all say the same.
_APART = 1 / 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two cells that are each other's most similar.

    Attributes:
      a, b: (row, column) in the map of the first and of the second photo.
      agreement: of the two, see `agreement`.
    """

    a: tuple[int, int]
    b: tuple[int, int]
    agreement: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What two photos' local features have in common.

    Attributes:
      a, b: float32 (h, w) of each photo: the best agreement of each cell with any of the other
        photo, at most 1; the largest number of both maps is the same.
      pairs: strongest agreement first.
    """

    a: np.ndarray
    b: np.ndarray
    pairs: tuple[Pair, ...]


def agreement(a: np.ndarray, b: np.ndarray, most: int = 12) -> Agreement:
    """Compares the local features of two photos, each cell with each.

    With f_i and g_j the local features of the cells i and j, which are attention times a unit
    vector, the agreement of the two cells is

        s_ij = <f_i, g_j> / (max_k |f_k|  max_l |g_l|):

    the cosine of their directions, times the attention of each as a share of its photo's highest.
    It is 1 for two cells of the highest attention that point the same way. The maps are max_j s_ij
    and max_i s_ij. Two cells are a pair when each has the highest cosine with the other over all
    cells of the other photo; by s_ij instead, the cell of the highest attention would be nearest to
    nearly all. Pairs of at least 0.02 are taken by s_ij, highest first. A pair is left out when
    either end is nearer than an eighth of the map's longer side to that of a pair already taken.

    Args:
      a, b: float32 (h, w, C), the output of the signature `local_features` for either photo.
      most: largest number of pairs.

    Raises:
      InputError: when the features are not finite, or belong to different networks.
    """
    for features in (a, b):
        if features.ndim != 3 or features.shape[-1] != a.shape[-1] or not features.size:
            raise InputError(
                f"local features of {a.shape} and {b.shape}: they must be (h, w, C), not empty, "
                "with the same C"
            )
        if not np.isfinite(features).all():
            raise InputError("the local features are not finite: the network has diverged")
    cells_a, cells_b = _shares_and_units(a), _shares_and_units(b)
    best_a, best_b, nearest_a, nearest_b = _best(cells_a, cells_b)
    mutual = np.flatnonzero(nearest_b[nearest_a] == np.arange(len(nearest_a)))
    scores = np.einsum("pc,pc->p", cells_a[0][mutual], cells_b[0][nearest_a[mutual]])
    order = np.argsort(-scores, kind="stable")
    found = [
        Pair(_place(i, a.shape[1]), _place(nearest_a[i], b.shape[1]), float(score))
        for i, score in zip(mutual[order], scores[order], strict=True)
        if score >= _LEAST
    ]
    pairs = _apart(found, a.shape[:2], b.shape[:2], most)
    return Agreement(best_a.reshape(a.shape[:2]), best_b.reshape(b.shape[:2]), pairs)


def _shares_and_units(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns features (N, C) over the longest one's norm, and as unit vectors; zeros stay so."""
    flat = np.asarray(features, np.float32).reshape(-1, features.shape[-1])
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    return flat / max(norms.max(), tiny), flat / np.maximum(norms, tiny)


def _best(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]):
    """Returns the best agreement of each cell of either photo, and the cell of highest cosine."""
    count_a, count_b = len(a[0]), len(b[0])
    best_a, nearest_a = np.empty(count_a, np.float32), np.empty(count_a, np.int64)
    best_b, highest_b = np.full((2, count_b), -np.inf, np.float32)
    nearest_b = np.zeros(count_b, np.int64)
    for start in range(0, count_a, _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = a[0][rows] @ b[0].T
        best_a[rows] = scores.max(axis=1)
        best_b = np.maximum(best_b, scores.max(axis=0))
        cosines = a[1][rows] @ b[1].T
        nearest_a[rows] = cosines.argmax(axis=1)
        highest = cosines.max(axis=0)
        nearest_b = np.where(highest > highest_b, start + cosines.argmax(axis=0), nearest_b)
        highest_b = np.maximum(highest_b, highest)
    return best_a, best_b, nearest_a, nearest_b


def _place(cell: int, columns: int) -> tuple[int, int]:
    row, column = divmod(int(cell), columns)
    return row, column


def _apart(found: list[Pair], size_a, size_b, most: int) -> tuple[Pair, ...]:
    """Returns the first pairs whose ends are not near those of an earlier pair, in either photo."""
    taken: list[Pair] = []
    for pair in found:
        if len(taken) == most:
            break
        near = (
            np.hypot(here[0] - there[0], here[1] - there[1]) < _APART * max(size)
            for other in taken
            for here, there, size in ((pair.a, other.a, size_a), (pair.b, other.b, size_b))
        )
        if not any(near):
            taken.append(pair)
    return tuple(taken)
