import dataclasses
import importlib.util
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from dolg_tf.config import InputError
from dolg_tf.evaluation import revisited
from dolg_tf.evaluation.revisited import RevisitedConfig, evaluate
from dolg_tf.retrieval import descriptors, search
from dolg_tf.retrieval.descriptors import DescriptorSet

# Query 1 has no hard photo, query 2 no positive at all.
TRUTH = {
    "imlist": [f"i{n}" for n in range(8)],
    "qimlist": ["q0", "q1", "q2"],
    "gnd": [
        {"bbx": [0, 0, 9, 9], "easy": [0, 1], "hard": [2], "junk": [3]},
        {"bbx": [0, 0, 9, 9], "easy": [4], "hard": [], "junk": []},
        {"bbx": [0, 0, 9, 9], "easy": [], "hard": [], "junk": [5, 6]},
    ],
}
RANKS = np.array([[3, 0, 7, 2, 1, 4, 5, 6], [7, 4, 0, 1, 2, 3, 5, 6], list(range(8))])


def _trapezoids(*places):
    """AP of 0-based places, by the formula of the protocol."""
    terms = [((j / r if r else 1) + (j + 1) / (r + 1)) / 2 for j, r in enumerate(places)]
    return sum(terms) / len(terms)


@pytest.fixture
def task(tmp_path):
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(TRUTH))
    return revisited.load_ground_truth(tmp_path / "gnd_x.pkl")


def test_levels_by_hand(task):
    scores = revisited.score(task, RANKS)
    # easy: photos 3 (junk) and 2 (hard) go, so 0 and 1 stand at 0 and 2.
    assert scores["easy"]["AP"] == [_trapezoids(0, 2), _trapezoids(1), None]
    # medium: only photo 3 goes, so 0, 2 and 1 stand at 0, 2 and 3.
    assert scores["medium"]["AP"] == [_trapezoids(0, 2, 3), _trapezoids(1), None]
    # hard: photos 3, 0 and 1 go, so 2 stands at 1.
    assert scores["hard"]["AP"] == [_trapezoids(1), None, None]
    assert scores["easy"]["mAP"] == (_trapezoids(0, 2) + _trapezoids(1)) / 2
    assert scores["easy"]["mP@1"] == (1 + 0) / 2
    assert scores["easy"]["mP@5"] == (2 / 3 + 1 / 2) / 2
    low, high = scores["medium"]["mAP_interval"]
    assert low <= scores["medium"]["mAP"] <= high


def test_a_level_without_positives(task):
    queries = tuple(dataclasses.replace(query, hard=query.hard[:0]) for query in task.queries)
    scores = revisited.score(dataclasses.replace(task, queries=queries), RANKS)
    assert scores["hard"] == {
        "mAP": None,
        "mP@1": None,
        "mP@5": None,
        "mP@10": None,
        "AP": [None, None, None],
        "mAP_interval": None,
    }
    last = revisited.table(scores).splitlines()[-1]
    assert last.split() == ["hard", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("name", "distractors"),
    [("roxford5k", 0), ("roxford5k", 20000), ("rparis6k", 0)],
)
def test_equals_the_benchmark_s_own_code(ground_truths, name, distractors, tmp_path):
    spec = importlib.util.spec_from_file_location("features", ground_truths / "features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with (ground_truths / f"gnd_{name}.pkl").open("rb") as file:
        queries, rows = module.features(pickle.load(file), 0, distractors)
    np.save(tmp_path / "queries.npy", queries)
    np.save(tmp_path / "index.npy", rows)
    report = evaluate(
        RevisitedConfig(
            ground_truth=str(ground_truths / f"gnd_{name}.pkl"),
            query_descriptors=str(tmp_path / "queries.npy"),
            index_descriptors=str(tmp_path / "index.npy"),
            output=str(tmp_path / "report.json"),
        )
    )
    golden = f"eval_{name}_seed0_distractors{distractors}.json"
    expected = json.loads((ground_truths / golden).read_text())
    assert report["protocol"]["distractors"] == distractors
    for level, values in expected.items():
        assert [ap is None for ap in report[level]["AP"]] == [ap is None for ap in values["AP"]]
        for key, value in values.items():
            found = [np.nan if x is None else x for x in np.atleast_1d(report[level][key])]
            value = [np.nan if x is None else x for x in np.atleast_1d(value)]
            np.testing.assert_allclose(found, value, atol=1e-12, err_msg=f"{level} {key}")


# --- the command ---------------------------------------------------------------------

META = {
    "image_root": "photos",
    "model_hash": "abc",
    "scales": [1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "bad": [],
}


@pytest.fixture
def files(tmp_path, task):
    """Descriptors of the task, the index in another order and with one photo too many."""
    rng = np.random.default_rng(0)
    rows = {id_: rng.standard_normal(16) for id_ in (*task.index_ids, *task.query_ids)}
    others = rng.standard_normal((5, 16))

    def save(name, ids, values, **meta):
        values = np.array(values, np.float32)
        descriptors.write(tmp_path / name, DescriptorSet(tuple(ids), values, META | meta))

    save("queries", task.query_ids, [rows[i] for i in task.query_ids], crop=True)
    mixed = (*task.index_ids[::-1], "q0")
    save("index", mixed, [rows[i] for i in mixed])
    save("distractors", [f"d{n}" for n in range(5)], others)
    save("other_model", task.index_ids, np.eye(8, 16), model_hash="xyz")
    np.save(tmp_path / "index.npy", np.array([rows[i] for i in task.index_ids], np.float32))
    np.save(tmp_path / "both.npy", np.array([*(rows[i] for i in task.index_ids), *others], "f4"))
    np.save(tmp_path / "narrow.npy", np.zeros((8, 4), np.float32))
    return tmp_path


def _config(folder, **changes):
    names = {"query_descriptors": "queries", "index_descriptors": "index"} | changes
    names |= {"ground_truth": "gnd_x.pkl", "output": "out/report.json"}
    return RevisitedConfig(**{key: str(folder / name) for key, name in names.items()})


def test_sets_are_joined_by_id(files, task, caplog):
    caplog.set_level("INFO")
    report = evaluate(_config(files))
    assert report == json.loads((files / "out/report.json").read_text())
    by_row = evaluate(_config(files, index_descriptors="index.npy"))
    assert [report[level] for level in revisited.LEVELS] == [
        by_row[level] for level in revisited.LEVELS
    ]
    _, ranks = search.search(
        np.load(files / "index.npy"), descriptors.read(files / "queries").descriptors
    )
    assert report["medium"] == revisited.score(task, ranks)["medium"]
    assert "1 photos of" in caplog.text and "medium" in caplog.text
    assert report["protocol"] == {
        "ground_truth": "gnd_x",
        "queries": 3,
        "index": 8,
        "distractors": 0,
        "query_crop": "box",
        "model_hash": "abc",
        "query_scales": [1.0],
        "index_scales": [1.0],
        "query_max_side": 0,
        "index_max_side": 0,
        "whitening": None,
    }


def test_distractors_may_follow_or_come_apart(files):
    together = evaluate(_config(files, index_descriptors="both.npy"))
    apart = evaluate(_config(files, distractor_descriptors="distractors"))
    assert together["protocol"]["distractors"] == apart["protocol"]["distractors"] == 5
    assert together["medium"] == apart["medium"]
    assert together["medium"]["mAP"] < evaluate(_config(files))["medium"]["mAP"]


def test_what_does_not_fit_is_refused(files):
    for changes, told in [
        ({"index_descriptors": "other_model"}, r"differ in model_hash \(.*abc.*xyz"),
        ({"index_descriptors": "queries"}, "lacks 8 of 8 photos"),
        ({"query_descriptors": "index.npy"}, "8 rows for 3 queries"),
        ({"index_descriptors": "narrow.npy"}, "one D"),
        ({"distractor_descriptors": "narrow.npy"}, "different lengths"),
        ({"query_descriptors": "nowhere"}, "no such descriptor set"),
    ]:
        with pytest.raises(InputError, match=told):
            evaluate(_config(files, **changes))
    assert not (files / "out").exists()


def test_command_line(files):
    command = [sys.executable, "-m", "dolg_tf.evaluation.revisited"]
    command += [f"--ground_truth={files}/gnd_x.pkl", f"--query_descriptors={files}/queries"]
    command += [f"--output={files}/report.json"]
    done = subprocess.run(
        [*command, f"--index_descriptors={files}/index"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "95 % of mAP" in done.stderr
    wrong = subprocess.run(
        [*command, f"--index_descriptors={files}/none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert wrong.returncode == 1 and "no such descriptor set" in wrong.stderr
