"""Scores of a search elsewhere are scored like descriptors."""

import json
import pickle

import numpy as np
import pytest
from naive_scores import naive_scores

from dolg_tf.evaluation.revisited import score
from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate, evaluate_scores
from dolg_tf.evaluation.revisited.searched import read_searched
from dolg_tf.retrieval import scores
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage.config import InputError

TRUTH = {
    "imlist": [f"i{n}" for n in range(8)],
    "qimlist": ["q0", "q1"],
    "gnd": [
        {"bbx": [0, 0, 9, 9], "easy": [0, 1], "hard": [2], "junk": [3]},
        {"bbx": [0, 0, 9, 9], "easy": [4], "hard": [5], "junk": []},
    ],
}
META = {
    "method": "asmk",
    "alpha": 3.0,
    "threshold": 0.0,
    "assignments": 5,
    "index": {"variant": "how", "words": 64, "binary": True, "idf": False},
    "crop": True,
    "query_scale": "photo",
    "image_root": "photos",
    "model_hash": "abc",
}


@pytest.fixture
def write(tmp_path):
    """Function that writes the ground truth and scores, and returns both paths."""

    def make(matrix, queries=TRUTH["qimlist"], ids=TRUTH["imlist"], **meta):
        truth = tmp_path / "gnd_x.pkl"
        truth.write_bytes(pickle.dumps(TRUTH))
        folder = tmp_path / "scores"
        folder.mkdir()
        scores.write(folder, queries, ids, np.asarray(matrix, np.float32), META | meta)
        return truth, folder

    return make


def _random(*shape):
    """Scores with many ties and zeros, as a search by words gives them."""
    return np.round(np.random.default_rng(0).random(shape).astype(np.float32) ** 3, 1)


def _naive(matrix, level):
    """mAP over whole rankings, sorted stably, by the slow formula."""
    positive, ignored = score.LEVELS[level]
    found = []
    for row, query in zip(matrix, TRUTH["gnd"], strict=True):
        ranking = np.argsort(-row, kind="stable").tolist()
        good, junk = (
            [row for label in labels for row in query[label]] for labels in (positive, ignored)
        )
        found.append(naive_scores(ranking, good, junk)[0])
    return np.mean(found)


def test_rankings_are_those_of_a_stable_sort(write):
    matrix = _random(2, 8)
    assert len(np.unique(matrix)) < matrix.size
    truth, folder = write(matrix)
    found = evaluate_scores(truth, folder)
    for level in score.LEVELS:
        assert found[level].mAP == pytest.approx(_naive(matrix, level))


def test_scores_are_kept_bit_for_bit(write):
    matrix = np.random.default_rng(1).random((2, 8), np.float32)
    truth, folder = write(matrix)
    inputs = read_searched(load_ground_truth(truth), truth, folder)
    np.testing.assert_array_equal(inputs.queries @ inputs.index[:].T, matrix)


def test_rows_are_joined_by_name_and_other_photos_are_distractors(write):
    matrix = _random(3, 11)
    names = [f"i{n}" for n in (3, 1, 0, 2, 7, 6, 5, 4)]
    ids = ["x0", *names[:4], "x1", *names[4:], "x2"]
    truth, folder = write(matrix, ["q1", "q9", "q0"], ids)
    found = evaluate_scores(truth, folder)
    assert (found.protocol["distractors"], found.protocol["queries"]) == (3, 2)
    own = [ids.index(f"i{n}") for n in range(8)]
    rows = matrix[[2, 0]]
    alone = _naive(rows[:, own], "medium")
    among = _naive(rows[:, [*own, 0, 5, 10]], "medium")
    assert found.without_distractors.medium.mAP == pytest.approx(alone)
    assert found.medium.mAP == pytest.approx(among) and among < alone


def test_the_protocol_says_how_the_scores_were_made(write, tmp_path, caplog):
    caplog.set_level("INFO")
    truth, folder = write(_random(2, 8))
    output = tmp_path / "report.json"
    report = evaluate(
        RevisitedConfig(ground_truth=str(truth), scores=str(folder), output=str(output))
    )
    assert json.loads(output.read_text()) == report
    assert report["protocol"] == {
        "ground_truth": "gnd_x",
        "queries": 2,
        "index": 8,
        "distractors": 0,
        "query_crop": "box",
        "image_variant": "unknown",
        "search": {
            "method": "asmk",
            "alpha": 3.0,
            "threshold": 0.0,
            "assignments": 5,
            "variant": "how",
            "words": 64,
            "binary": True,
            "idf": False,
        },
        "model_hash": "abc",
        "upright": None,
        "query_scale": "photo",
        "remarks": [],
        "rerank": {"method": "none"},
    }
    assert "queries cut to their boxes; searched by asmk" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": ["q0", "q9"]}, r"scores lacks 1 of 2 photos, the first is 'q1'"),
        ({"ids": [*TRUTH["imlist"][:-1], "i9"]}, r"scores lacks 1 of 8 photos, the first is 'i7'"),
        ({"matrix": np.full((2, 8), np.nan)}, "not all scores of q0 are finite"),
    ],
)
def test_what_is_missing_or_no_score_is_told(write, change, message):
    truth, folder = write(**{"matrix": _random(2, 8), **change})
    with pytest.raises(InputError, match=message):
        evaluate_scores(truth, folder)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--query_descriptors is missing; give it, or --scores in place of both"),
        ({"query_descriptors": "a"}, "--index_descriptors is missing"),
        ({"scores": "s", "index_descriptors": "a"}, "--index_descriptors beside --scores"),
        ({"scores": "s", "distractor_descriptors": "a"}, "--distractor_descriptors beside"),
        ({"scores": "s", "normalize": True}, "--normalize is for descriptors"),
        ({"scores": "s", "rerank": "alpha_qe"}, "--rerank=alpha_qe needs descriptors"),
        ({"scores": "s", "rerank": "superglobal,geometric"}, "it takes geometric alone"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        RevisitedConfig(ground_truth="g", output="o", **flags)
