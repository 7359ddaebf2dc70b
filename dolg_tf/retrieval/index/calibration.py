"""What `dolg calibrate` stores with an index, as it is found again."""

import math

# What is stored of the weight of inliers, and its types.
_FITTED = {"rerank": str, "order": str, "weight": float, "cap": int, "verify": int}
_FITTED |= {"settings": dict}


def is_sound(calibration: object) -> bool:
    """Tells whether a calibration has what a search takes from it."""
    if not isinstance(calibration, dict):
        return False
    threshold = calibration.get("threshold")
    if type(threshold) is not float or not math.isfinite(threshold):
        return False
    return "geometric" not in calibration or _is_fitted(calibration["geometric"])


def _is_fitted(weight: object) -> bool:
    """Tells whether the "geometric" of a calibration has what re-ranking takes from it."""
    if not isinstance(weight, dict):
        return False
    fewest = weight.get("min_inliers", 0)
    known = all(type(weight.get(key)) is kind for key, kind in _FITTED.items())
    return known and type(fewest) is int and fewest >= 0
