"""What verifying a pair of photos costs, beside the bare matrix product of their descriptors.

    python benchmarks/speed/verification.py

Photos are made up: 1,000 features of 128 numbers; a true pair shares 300 of them, half in places
that fit one map; a false pair shares 300 looks in random places, the slowest case, since every
trial is made. Times are of the CPU, medians, all in turn; with OPENBLAS_NUM_THREADS=1 the floor has
one thread, as verification always has. scikit-image, whose RANSAC DELG calls, is timed if it is
installed.
"""

import argparse
import importlib.util

import numpy as np
from timing import Timer

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig

FEATURES, WIDTH, SHARED, SIDE = 1000, 128, 300, 1024


def photo(rng, places: np.ndarray, rows: np.ndarray) -> LocalFeatures:
    """Returns the features of a photo; those that are missing are random."""
    more = FEATURES - len(rows)
    places = np.concatenate([places, rng.uniform(0, SIDE, (more, 2))]).astype(np.float32)
    rows = np.concatenate([rows, rng.standard_normal((more, WIDTH))]).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    ones = np.ones(FEATURES, np.float32)
    return LocalFeatures(places, ones, ones, rows, (SIDE, SIDE))


def pairs() -> dict[str, tuple[LocalFeatures, LocalFeatures]]:
    """Returns a true and a false pair."""
    rng, found = np.random.default_rng(0), {}
    rows = rng.standard_normal((SHARED, WIDTH))
    for name in ("true", "false"):
        seen = rng.uniform(0, SIDE, (SHARED, 2))
        where = rng.uniform(0, SIDE, (SHARED, 2))
        if name == "true":
            where[: SHARED // 2] = 0.8 * seen[: SHARED // 2] + [30, 60]
        noise = 0.2 * rng.standard_normal(rows.shape)
        found[name] = photo(rng, seen, rows), photo(rng, where, rows + noise)
    return found


def skimage_affine(query: LocalFeatures, index: LocalFeatures) -> None:
    """Verifies a pair as DELG does: a k-d tree, and scikit-image's RANSAC."""
    from scipy.spatial import cKDTree
    from skimage.measure import ransac
    from skimage.transform import AffineTransform

    _, nearest = cKDTree(index.descriptors).query(query.descriptors, distance_upper_bound=1.0)
    kept = np.flatnonzero(nearest < len(index))
    sides = index.positions[nearest[kept]], query.positions[kept]
    ransac(sides, AffineTransform, 3, 20, max_trials=1000, rng=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    ways = {
        "DELG's order: nearest, affine, 20 px": VerifyConfig().resolved(delg=True),
        "mutual, affine, 30 px": VerifyConfig(),
    }
    if importlib.util.find_spec("cv2"):
        ways["mutual, homography by OpenCV, 30 px"] = VerifyConfig(geometry="homography")
    print("| pair | way | inliers | CPU, ms | over the matrix product |")
    print("| --- | --- | --- | --- | --- |")
    for pair, (query, index) in pairs().items():
        timer, floor = Timer(), "bare matrix product"
        timer.add(floor, lambda q, i: q @ i.T, query.descriptors, index.descriptors)
        for name, settings in ways.items():
            timer.add(name, Verifier(settings).verify, query, index)
        if importlib.util.find_spec("skimage"):
            timer.add("k-d tree and scikit-image, as DELG", skimage_affine, query, index)
        timer.run(arguments.repeats, pause=0.1)
        cpu = {name: 1000 * np.median(spent, axis=0)[1] for name, spent in timer.seconds.items()}
        for name, spent in cpu.items():
            inliers = Verifier(ways[name]).verify(query, index).count if name in ways else ""
            print(f"| {pair} | {name} | {inliers} | {spent:.1f} | {spent / cpu[floor]:.1f} |")


if __name__ == "__main__":
    main()
