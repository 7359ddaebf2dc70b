"""Is it the same place? What the threshold that `dolg search` estimates without labels is worth.

    DOLG_REAL_PHOTOS=folder python benchmarks/quality/own_photos_threshold.py --output=runs/mine

Photos, descriptors and OUTPUT are those of `own_photos.py`. The search is adapted to the photos of
other splits than query, all or some of each landmark (one draw), and the queries are asked. For the
estimate, and for the same from photos that the whitening was learned from, prints in percent: the
estimated precision of pairs, that of all pairs of a query and a photo that pass, by the labels; the
share of queries whose best photo passes, and of these the share that is right.
"""

import logging

import numpy as np
from own_photos import draw, read_arguments, read_photos

from dolg_tf.evaluation.group_pairs import estimate_threshold
from dolg_tf.pipelines.own_photos import threshold
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.whitening import choose

COUNTS = (4, 6, 10, 20)


def white(adapted: choose.Adapted, rows: np.ndarray) -> np.ndarray:
    rows = (rows - adapted.mean) @ adapted.projection
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def print_row(name: str, searched: np.ndarray, asked: np.ndarray, same: np.ndarray) -> None:
    """Prints a row for descriptors of searched photos and queries; same is bool (Q, N)."""
    adapted = choose.adapt(searched)
    if not adapted.grouping.passes:
        print(f"| {name} | {len(searched)} | not adapted |")
        return
    photos = DescriptorSet(tuple(map(str, range(len(searched)))), searched)
    found = {
        "asked": threshold.estimate(photos, adapted),
        "learned": estimate_threshold(white(adapted, searched), adapted.grouping.labels),
    }
    scores = white(adapted, asked) @ white(adapted, searched).T
    best = same[np.arange(len(same)), scores.argmax(axis=1)]
    for kind, one in found.items():
        pairs, passed = scores >= one["threshold"], scores.max(axis=1) >= one["threshold"]
        low, high = one["precision_interval"]
        print(
            f"| {name} | {len(searched)} | {kind} | {100 * one['precision']:.0f} "
            f"({100 * low:.0f} to {100 * high:.0f}) | {100 * same[pairs].mean():.0f} "
            f"| {100 * passed.mean():.0f} | {100 * best[passed].mean():.0f} |",
            flush=True,
        )


def main() -> None:
    logging.disable(logging.WARNING)
    rows, places, split = read_photos(*read_arguments(__doc__))
    queries, others = np.flatnonzero(split == "query"), np.flatnonzero(split != "query")
    print("| searched | photos | threshold from | estimated | pairs | queries passing | right |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    number = len(np.unique(places))
    chosen = {"all": others}
    for count in COUNTS:
        rng = np.random.default_rng(0)
        chosen[f"{count} of each"] = others[draw(places[others], [count] * number, rng)]
    for name, some in chosen.items():
        same = places[queries][:, None] == places[some]
        print_row(name, rows[some], rows[queries], same)


if __name__ == "__main__":
    main()
