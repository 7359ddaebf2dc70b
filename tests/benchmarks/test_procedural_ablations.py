"""The table of `benchmarks/quality/procedural_ablations.py`."""

import pickle

import numpy as np
from procedural_ablations import FULL, SPLITS, landmarks_of, table


def _scores(*precisions: float) -> dict:
    scores = {"AP": list(precisions), "mAP": float(np.mean(precisions)), "mP@1": 0.5}
    return dict.fromkeys(SPLITS, scores)


def test_differences_are_paired_by_seed_and_query():
    found = {
        FULL: {0: _scores(0.6, 0.8), 1: _scores(0.5, 0.7)},
        "concatenation": {0: _scores(0.5, 0.7), 1: _scores(0.4, 0.6)},
    }
    *_, full, other = table(found, {split: np.array([0, 1]) for split in SPLITS})
    assert full.startswith("| full model | 65.0 ± 5.0 | 50.0 |  | 65.0")
    # Every query of every seed loses 10, so no resample loses anything else.
    assert other.startswith("| concatenation | 55.0 ± 5.0 | 50.0 | -10.0 (-10.0 to -10.0) | 55.0")
    assert other.endswith("| 78.40 / 89.37 |")


def test_one_seed_has_no_error():
    one = {0: _scores(0.6, 0.8)}
    *_, full, other = table({FULL: one, "odd": one}, {split: np.array([0, 1]) for split in SPLITS})
    assert full.startswith("| full model | 70.0 | 50.0 |  |")
    assert other.startswith("| odd | 70.0 | 50.0 | +0.0 (+0.0 to +0.0) |")


def test_queries_of_one_landmark_are_told_by_what_they_look_for(tmp_path):
    def query(easy):
        return {"bbx": [0, 0, 9, 9], "easy": easy, "hard": [], "junk": []}

    truth = {"imlist": list("abc"), "qimlist": list("def"), "gnd": None}
    truth["gnd"] = [query([0, 1]), query([2]), query([0, 1])]
    path = tmp_path / "gnd_seen.pkl"
    path.write_bytes(pickle.dumps(truth))
    first, second, third = landmarks_of(path)
    assert first == third != second
