"""A homography between two photos by OpenCV's MAGSAC: the whole view of a flat place, fast.

Reference: Barath et al., "MAGSAC++, a Fast, Reliable and Accurate Robust Estimator", CVPR 2020.
"""

import numpy as np

from dolg_tf.retrieval.verification.affine import Ransac, Verified, is_spread, is_view
from dolg_tf.stage import installed

_SAMPLE = 4  # pairs that make a homography
_CONFIDENCE = 0.9999  # that no better sample was missed


def need() -> None:
    """Checks that OpenCV is installed.

    Raises:
      InputError: naming the command that installs it.
    """
    installed.need("opencv", "--geometry=homography", "cv2")


def verify(query: np.ndarray, index: np.ndarray, settings: Ransac) -> Verified:
    """Finds the homography from an index photo to a query that explains the most pairs.

    Mirrored pairs are refused in any case, those on a line if only plausible maps are kept.

    Args:
      query, index: (M, 2) locations of matched features, row and column alike in both.
      settings: see there.
    """
    import cv2

    nothing = Verified(np.zeros(len(query), bool), None)
    if len(query) <= _SAMPLE:
        return nothing
    usac = cv2.UsacParams()
    usac.threshold = settings.max_residual
    usac.maxIterations = settings.trials
    usac.confidence = _CONFIDENCE
    usac.randomGeneratorState = settings.seed
    usac.score = cv2.SCORE_METHOD_MAGSAC
    usac.loMethod = cv2.LOCAL_OPTIM_SIGMA
    query, index = (np.ascontiguousarray(places, np.float64) for places in (query, index))
    found, inliers = cv2.findHomography(index, query, usac)
    if found is None:
        return nothing
    inliers = inliers[:, 0].astype(bool)
    if settings.plausible and not _is_plausible(found, index[inliers]):
        return nothing
    return Verified(inliers, found)


def _is_plausible(found: np.ndarray, places: np.ndarray) -> bool:
    """Tells whether places (M, 2) are not in a line, and a map neither mirrors nor tears them."""
    middle = places.mean(0)
    x, y, w = found @ [*middle, 1]
    # The derivative of (x / w, y / w) in the middle.
    linear = (found[:2, :2] - np.outer([x, y], found[2, :2]) / w) / w
    return bool(is_spread((places - middle)[None])[0] and is_view(linear[None])[0])
