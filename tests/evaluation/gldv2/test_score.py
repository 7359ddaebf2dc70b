import json
import subprocess
import sys

import numpy as np
import pytest

from dolg_tf.evaluation.gldv2 import score
from dolg_tf.evaluation.gldv2.kaggle_csv import Recognised, Solution
from dolg_tf.evaluation.gldv2.score import Gldv2Config
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage.config import InputError

# The published cases of the dataset's own scorer.
RECOGNITION = {
    "0123456789abcdef": ("0", "12"),
    "0223456789abcdef": ("100", "200", "300"),
    "0323456789abcdef": ("1",),
    "0423456789abcdef": (),
    "0523456789abcdef": (),
}
RECOGNISED = {
    "0223456789abcdef": Recognised("0", 0.01),
    "0323456789abcdef": Recognised("1", 10.0),
    "0423456789abcdef": Recognised("150", 15.0),
}
RETRIEVAL = {
    "0123456789abcdef": ("fedcba9876543210", "fedcba9876543220"),
    "0223456789abcdef": ("fedcba9876543210",),
    "0323456789abcdef": ("fedcba9876543230", "fedcba9876543240", "fedcba9876543250"),
    "0423456789abcdef": ("fedcba9876543230",),
}
RETRIEVED = {
    "0223456789abcdef": ("fedcba9876543200", "fedcba9876543210"),
    "0323456789abcdef": ("fedcba9876543240",),
    "0423456789abcdef": ("fedcba9876543230", "fedcba9876543240"),
}


def test_published_recognition():
    found = score.score_recognition(RECOGNITION, RECOGNISED)
    assert found["GAP"] == pytest.approx(0.166667, abs=1e-6)
    assert found["GAP_of_landmark_queries"] == pytest.approx(0.333333, abs=1e-6)
    assert found["top1"] == pytest.approx(0.333333, abs=1e-6)
    counts = [found[name] for name in ("queries", "without_prediction", "with_landmark")]
    assert counts == [5, 2, 3]
    low, high = found["GAP_interval"]
    assert low == 0 and 0.166667 < high <= 1
    assert found["top1_interval"][0] == 0 and found["top1_interval"][1] == 1


def test_published_retrieval():
    found = score.score_retrieval(RETRIEVAL, RETRIEVED)
    assert found["mAP@100"] == pytest.approx(0.458333, abs=1e-6)
    assert (found["mean_position"], found["median_position"]) == (26.25, 1.5)
    assert found["mP@1"] == 0.5
    assert found["AP"] == pytest.approx([0, 1 / 2, 1 / 3, 1])
    assert (found["queries"], found["without_prediction"]) == (4, 1)
    low, high = found["mAP@100_interval"]
    assert low < 0.458333 < high


def test_published_retrieval_at_other_depths():
    metrics = score.metrics
    ap, at_two, positions = [], [], []
    for query, relevant in RETRIEVAL.items():
        predicted = RETRIEVED.get(query, ())
        hits = metrics.find_hits(predicted, relevant, depth=1)
        ap.append(metrics.gldv2_average_precision(hits, len(relevant), depth=1))
        positions.append(metrics.first_position(hits, depth=1))
        at_two.append(metrics.gldv2_precision_at(metrics.find_hits(predicted, relevant), 2))
    assert np.mean(ap) == 0.5
    assert np.mean(at_two) == 0.375
    assert (np.mean(positions), np.median(positions)) == (1.5, 1.5)


def test_parts_and_both():
    queries = list(RETRIEVAL)
    solution = Solution(
        {queries[0]: RETRIEVAL[queries[0]], queries[1]: RETRIEVAL[queries[1]]},
        {queries[2]: RETRIEVAL[queries[2]], queries[3]: RETRIEVAL[queries[3]]},
        frozenset(["0523456789abcdef"]),
    )
    found = score.score(solution, "retrieval", RETRIEVED)
    assert found["public"]["mAP@100"] == pytest.approx(1 / 4)
    assert found["private"]["mAP@100"] == pytest.approx(2 / 3)
    assert found["both"] == score.score_retrieval(RETRIEVAL, RETRIEVED)
    assert found["ignored"] == 1


def test_nothing_to_score():
    empty = score.score(Solution({}, {"a": ("x",)}, frozenset()), "retrieval", {})
    assert empty["public"]["mAP@100"] is None and empty["public"]["median_position"] is None
    assert empty["private"]["mAP@100"] == 0 and empty["private"]["mean_position"] == 101
    assert score.score_retrieval({"a": ()}, {"a": ("x",)})["without_positives"] == 1
    none = score.score(
        Solution({"a": ()}, {}, frozenset()), "recognition", {"a": Recognised("1", 2.0)}
    )
    assert none["both"]["GAP"] is None and none["both"]["GAP_interval"] is None
    assert none["both"]["top1"] is None and none["private"]["queries"] == 0
    assert "-" in score.table(none) and "-" in score.table(empty)


def test_ties_are_ranked_by_query():
    truth = {"a": ("1",), "b": ("1",), "c": ("1",)}
    predicted = {
        query: Recognised(name, 0.5) for query, name in [("c", "1"), ("b", "2"), ("a", "1")]
    }
    assert score.score_recognition(truth, predicted)["GAP"] == pytest.approx((1 + 2 / 3) / 3)


def test_a_landmark_of_an_own_list_is_compared_as_a_number():
    """A solution's 007 is read as "7"; the names of one's own list stay as they are."""
    found = score.score_recognition(
        {"a": ("7",), "b": ("tower",)}, {"a": Recognised("007", 2), "b": Recognised("t", 1)}
    )
    assert (found["GAP"], found["top1"]) == (0.5, 0.5)


# --- command -------------------------------------------------------------------------


def _write_set(path, ids, rows):
    """A descriptor set whose metadata are unknown except for the scales."""
    keys = ("image_root", "model_hash", "scales", "crop", "max_side", "whitening")
    meta = {**dict.fromkeys(keys), "scales": [0.5, 1.0], "bad": []}
    descriptors.write(path, DescriptorSet(tuple(ids), np.asarray(rows, np.float32), meta))
    return str(path)


@pytest.fixture
def files(tmp_path):
    """Two queries that are scored and two that are not, three index photos in each corner."""
    corners = np.eye(2)
    _write_set(tmp_path / "q", ["x/q0", "x/q1", "x/q2"], corners[[0, 1, 0]])
    _write_set(tmp_path / "i", [f"x/idx{n}" for n in range(4)], corners[[0, 1, 0, 1]])
    texts = {
        "retrieval": "id,images,Usage\nq0,idx0,Public\nq1,idx1 idx3,Private\nq3,None,Ignored\n",
        "recognition": "id,landmarks,Usage\nq0,5,Public\nq1,7,Private\nq3,,Ignored\n",
        "train": "id,url,landmark_id\nidx0,,5\nidx1,,6\nidx2,,5\nidx3,,6\n",
        "submission": "id,images\nq0,idx0 idx2\nq1,idx3\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def _config(folder, task, **options):
    for name in ("predictions", "query_descriptors", "index_descriptors", "train_csv"):
        if name in options:
            options[name] = str(folder / options[name])
    solution, output = str(folder / f"{task}.csv"), str(folder / "report.json")
    return Gldv2Config(task=task, solution=solution, output=output, **options)


SETS = {"query_descriptors": "q", "index_descriptors": "i"}


def test_scores_a_submission(files, caplog):
    caplog.set_level("INFO")
    report = score.evaluate(_config(files, "retrieval", predictions="submission.csv"))
    assert report == json.loads((files / "report.json").read_text())
    assert report["public"]["mAP@100"] == 1 and report["private"]["mAP@100"] == 0.5
    assert report["ignored"] == 1
    assert report["protocol"]["predictions"].endswith("submission.csv")
    assert "75.00" in caplog.text and "1 ignored queries" in caplog.text


def test_scores_descriptors(files):
    report = score.evaluate(_config(files, "retrieval", **SETS))
    assert report["both"]["AP"] == [1, 1]
    assert report["protocol"]["index_descriptors"].endswith("/i")
    assert report["protocol"]["scales"] == [0.5, 1.0]
    report = score.evaluate(_config(files, "recognition", train_csv="train.csv", **SETS))
    assert (report["public"]["GAP"], report["private"]["GAP"]) == (1, 0)
    assert report["both"]["GAP"] == 0.5
    assert report["protocol"]["top_k"] == 3
    assert report["protocol"]["train_csv"].endswith("train.csv")
    names = {path.name for path in files.iterdir()}
    assert not any("parts" in name for name in names)


def test_refuses_options(files):
    for options in ({}, {**SETS, "predictions": "s"}, {"query_descriptors": "q"}):
        with pytest.raises(InputError, match="give --predictions, or else"):
            _config(files, "retrieval", **options)
    with pytest.raises(InputError, match="takes no labels"):
        _config(files, "recognition", predictions="s", train_csv="train.csv")
    with pytest.raises(InputError, match="or else --labels_csv"):
        _config(files, "recognition", **SETS)


def test_a_query_without_descriptor(files):
    (files / "retrieval.csv").write_text("id,images,Usage\nq0,idx0,Public\nq9,idx1,Private\n")
    with pytest.raises(InputError, match="'q9'"):
        score.evaluate(_config(files, "retrieval", **SETS))
    assert not (files / "report.json").exists()
    assert not list(files.glob("*.parts"))


def test_the_output_is_no_folder(files):
    (files / "report.json" / "photos").mkdir(parents=True)
    for options in ({"predictions": "submission.csv"}, SETS):
        with pytest.raises(InputError, match="is a directory"):
            score.evaluate(_config(files, "retrieval", **options))
    assert (files / "report.json" / "photos").is_dir()


def test_command_line(files):
    command = [sys.executable, "-m", "dolg_tf", "evaluate", "gldv2", "--task=retrieval"]
    command += [f"--solution={files}/retrieval.csv", f"--output={files}/report.json"]

    def run(name):
        options = [*command, f"--predictions={files}/{name}"]
        return subprocess.run(options, capture_output=True, text=True, check=False)

    wrong = run("train.csv")
    assert wrong.returncode == 1 and "--task=retrieval reads id,images" in wrong.stderr
    assert not (files / "report.json").exists()
    done = run("submission.csv")
    assert done.returncode == 0 and "75.00" in done.stderr
