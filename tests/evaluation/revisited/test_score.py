import dataclasses
import importlib.util
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from naive_scores import naive_scores
from peak_memory import peak_below
from set_meta import META

from dolg_tf.evaluation.revisited import inputs as revisited_inputs
from dolg_tf.evaluation.revisited import score
from dolg_tf.evaluation.revisited import scores as scores_text
from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.exact import search
from dolg_tf.retrieval.ground_truth import LABELS, GroundTruth, Query
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError

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


def _score(task, ranks):
    """The scores of whole rankings: for each query all rows of the index, best first."""
    places = []
    for query, ranking in zip(task.queries, np.asarray(ranks), strict=True):
        place = np.argsort(ranking)
        places.append({label: place[getattr(query, label)] for label in LABELS})
    return score.score_places(places)


@pytest.fixture
def task(tmp_path):
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(TRUTH))
    return score.load_ground_truth(tmp_path / "gnd_x.pkl")


def test_levels_by_hand(task):
    scores = _score(task, RANKS).report()
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


def test_the_original_protocol_is_one_level_and_said(tmp_path):
    rng = np.random.default_rng(0)
    value = TRUTH | {"gnd": [{"ok": [0, 1, 2], "junk": [3]}, {"ok": [4]}, {"ok": [], "junk": [5]}]}
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(value))
    index, queries = _unit(rng.normal(size=(8, 4))), _unit(rng.normal(size=(3, 4)))
    scores = score.evaluate_revisited(path, queries.astype("f4"), index.astype("f4"))
    _, *others = scores.protocol["remarks"]
    assert "one level: easy and medium are both" in scores.protocol["remarks"][0]
    assert others[0] == "3 queries have no box and are whole photos"
    assert scores.easy == scores.medium and scores.easy.mAP > 0 and scores.hard.mAP is None


def test_a_level_without_positives(task):
    queries = tuple(dataclasses.replace(query, hard=query.hard[:0]) for query in task.queries)
    scores = _score(dataclasses.replace(task, queries=queries), RANKS)
    assert scores.hard.report() == {
        "mAP": None,
        "mP@1": None,
        "mP@5": None,
        "mP@10": None,
        "AP": [None, None, None],
        "mAP_interval": None,
    }
    last = scores_text.table(scores).splitlines()[-1]
    assert last.split() == ["hard", "-", "-", "-", "-"]


def test_many_queries_that_match_the_same_photos_take_little_memory():
    """All places together would take 19 MB, and as much several times on the way."""
    count, queries, rng = 4000, 600, np.random.default_rng(0)
    rows, none = np.arange(count), np.zeros(0, np.int64)
    shared = Query((0, 0, 9, 9), rows, none, none)
    task = GroundTruth("x", tuple(map(str, rows)), ("q",) * queries, (shared,) * queries)
    index = rng.normal(size=(count, 4)).astype(np.float32)
    asking = rng.normal(size=(queries, 4)).astype(np.float32)
    with peak_below(60):
        for one in score.label_places(task, asking, index, memory_gb=0.05):
            assert len(one["easy"]) == count


@settings(deadline=None, max_examples=60)
@given(data=strategies.data())
def test_equals_the_walk_down_the_ranking(data):
    """Few whole numbers, so most scores are tied; any query may lack positives or be all junk."""
    draw, whole = data.draw, strategies.integers
    rng = np.random.default_rng(draw(whole(0, 10**6)))
    own, more, queries = draw(whole(1, 20)), draw(whole(0, 8)), draw(whole(1, 3))
    rows = rng.integers(-1, 2, (own + more, 3)).astype(np.float32)
    asking = rng.integers(-1, 2, (queries, 3)).astype(np.float32)
    labels = [rng.integers(0, 4, own) for _ in range(queries)]
    if draw(strategies.booleans()):
        labels[0][:] = draw(whole(0, 3))  # all easy, all hard, all junk, or nothing
    truth = tuple(
        Query((0, 0, 1, 1), *(np.flatnonzero(label == kind) for kind in range(3)))
        for label in labels
    )
    task = GroundTruth("x", tuple(map(str, range(own))), tuple(map(str, range(queries))), truth)
    report = score.score_descriptors(task, asking, rows).report()
    for level, (positive, junk) in score.LEVELS.items():
        expected = []
        for query, vector in zip(truth, asking, strict=True):
            ranking = np.argsort(-(rows @ vector), kind="stable")
            lists = [
                [row for label in some for row in getattr(query, label)]
                for some in (positive, junk)
            ]
            expected.append(naive_scores(ranking, *lists) if lists[0] else None)
        assert [ap is None for ap in report[level]["AP"]] == [pair is None for pair in expected]
        there = [pair for pair in expected if pair is not None]
        assert [x for x in report[level]["AP"] if x is not None] == pytest.approx(
            [ap for ap, _ in there], abs=1e-12
        )
        for place, k in enumerate(score.CUTOFFS):
            values = [precision[place] for _, precision in there]
            found = report[level][f"mP@{k}"]
            assert found == (pytest.approx(np.mean(values)) if values else None)


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
    if distractors:
        alone = (ground_truths / f"eval_{name}_seed0_distractors0.json").read_text()
        _assert_scores(report["without_distractors"], json.loads(alone))
    _assert_scores(report, expected)


def _assert_scores(report, expected):
    assert list(expected) == list(score.LEVELS)
    for level, values in expected.items():
        assert [ap is None for ap in report[level]["AP"]] == [ap is None for ap in values["AP"]]
        for key, value in values.items():
            found = [np.nan if x is None else x for x in np.atleast_1d(report[level][key])]
            value = [np.nan if x is None else x for x in np.atleast_1d(value)]
            np.testing.assert_allclose(found, value, atol=1e-12, err_msg=f"{level} {key}")


# --- the command ---------------------------------------------------------------------


def _unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def files(tmp_path, task):
    """Descriptors of the task, the index in another order and with one photo too many."""
    rng = np.random.default_rng(0)
    rows = {id_: _unit(rng.standard_normal(16)) for id_ in (*task.index_ids, *task.query_ids)}
    others = _unit(rng.standard_normal((5, 16)))

    def save(name, ids, values, **meta):
        values = np.array(values, np.float32)
        descriptors.write(tmp_path / name, DescriptorSet(tuple(ids), values, META | meta))

    save("queries", task.query_ids, [rows[i] for i in task.query_ids], crop=True)
    mixed = (*task.index_ids[::-1], "q0")
    save("index", mixed, [rows[i] for i in mixed])
    save("distractors", [f"d{n}" for n in range(5)], others)
    save("whole", task.query_ids, [rows[i] for i in task.query_ids])
    large = {"crop": True, "scales": [1.0, 2.0]}
    save("large_queries", task.query_ids, [rows[i] for i in task.query_ids], **large)
    np.save(tmp_path / "others.npy", others.astype(np.float32))
    save("turned", task.query_ids, [rows[i] for i in task.query_ids], crop=True, upright=True)
    save("large", [f"d{n}" for n in range(5)], others, scales=[1.0, 2.0])
    save("other_model", task.index_ids, np.eye(8, 16), model_hash="xyz")
    np.save(tmp_path / "index.npy", np.array([rows[i] for i in task.index_ids], np.float32))
    np.save(tmp_path / "both.npy", np.array([*(rows[i] for i in task.index_ids), *others], "f4"))
    np.save(tmp_path / "queries.npy", np.array([rows[i] for i in task.query_ids], np.float32))
    np.save(tmp_path / "narrow.npy", np.full((8, 4), 0.5, np.float32))
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
    assert [report[level] for level in score.LEVELS] == [by_row[level] for level in score.LEVELS]
    _, ranks = search.search(
        np.load(files / "index.npy"), descriptors.read(files / "queries").descriptors
    )
    assert report["medium"] == _score(task, ranks).medium.report()
    assert "1 photos of" in caplog.text and "medium" in caplog.text
    assert report["protocol"] == {
        "ground_truth": "gnd_x",
        "queries": 3,
        "index": 8,
        "distractors": 0,
        "not_searched": 1,
        "normalize": False,
        "query_crop": "box",
        "model_hash": "abc",
        "query_scales": [1.0],
        "index_scales": [1.0],
        "query_max_side": 0,
        "index_max_side": 0,
        "upright": False,
        "query_scale": "crop",
        "box_rounding": "dolg",
        "whitening": None,
        "image_variant": "unknown",
        "remarks": [],
        "rerank": {"method": "none"},
    }


def test_distractors_may_follow_or_come_apart(files):
    together = evaluate(_config(files, index_descriptors="both.npy"))
    apart = evaluate(_config(files, distractor_descriptors="distractors"))
    assert together["protocol"]["distractors"] == apart["protocol"]["distractors"] == 5
    alone = evaluate(_config(files))
    for level in score.LEVELS:
        assert together[level] == apart[level] != alone[level]
        assert together["without_distractors"][level] == alone[level]
    assert together["medium"]["mAP"] < alone["medium"]["mAP"]
    assert "without_distractors" not in alone


def test_distractors_stay_on_disk(files, task):
    np.save(files / "half.npy", np.load(files / "both.npy").astype(np.float16))
    names = [str(files / name) for name in ("queries", "half.npy", "distractors")]
    inputs = revisited_inputs.read_inputs(task, files / "gnd_x.pkl", *names)
    assert [type(array) for array in inputs.distractors.arrays] == [np.memmap] * 2
    np.testing.assert_allclose(inputs.distractors[:5], inputs.distractors[5:], atol=1e-3)
    assert inputs.protocol["distractors"] == 10


@pytest.mark.parametrize("method", ["alpha_qe", "alpha_dba", "superglobal", "k_reciprocal"])
def test_reranking_is_scored_as_it_ranks(files, task, method, caplog):
    """Searches with and without distractors re-rank apart: their neighbours differ."""
    caplog.set_level("INFO")
    flags = {"rerank": method, "rerank_k": 3}
    if method in ("superglobal", "k_reciprocal"):
        flags |= {"rerank_m": 7, "rerank_beta": 0.1}
    else:
        flags["rerank_alpha"] = 0.0
    report = evaluate(
        dataclasses.replace(_config(files, distractor_descriptors="distractors"), **flags)
    )
    queries = np.asarray(descriptors.read(files / "queries").descriptors)
    rows = np.load(files / "both.npy")
    for scores, index in [(report, rows), (report["without_distractors"], rows[:8])]:
        found = methods.apply(methods.RerankConfig(**flags), queries, index)
        ranks = []
        for query, scored in enumerate(np.asarray(found.queries) @ np.asarray(found.index).T):
            head = [] if found.head is None else found.head[query].tolist()
            order = np.argsort(-scored, kind="stable")
            ranks.append([*head, *(row for row in order if row not in head)])
        expected = _score(task, ranks).report()
        assert {level: scores[level] for level in score.LEVELS} == expected
    assert report["protocol"]["rerank"]["method"] == method
    assert report["protocol"]["rerank"]["k"] == 3
    assert f"; re-ranked: {method}, " in caplog.text and "k 3" in caplog.text
    plain = evaluate(_config(files, distractor_descriptors="distractors"))
    assert any(plain[level] != report[level] for level in score.LEVELS)


# --- the function --------------------------------------------------------------------


def test_paths_sets_and_arrays_give_the_same_scores(files, task):
    truth, names = files / "gnd_x.pkl", ("queries", "index", "distractors")
    scores = score.evaluate_revisited(truth, *(files / name for name in names))
    assert scores.report() == evaluate(_config(files, distractor_descriptors="distractors"))
    sets = [descriptors.read(files / name) for name in names]
    assert score.evaluate_revisited(task, *sets).report() == scores.report()
    rows = np.asarray(sets[0].select(task.query_ids)), np.load(files / "both.npy")
    for queries, index in (rows, (rows[0], Rows([rows[1][:3], rows[1][3:]]))):
        found = score.evaluate_revisited(task, queries, index)
        for level in score.LEVELS:
            assert found[level] == scores[level]
            assert found.without_distractors[level] == scores.without_distractors[level]
        assert found.protocol["model_hash"] is None and found.protocol["distractors"] == 5


def test_names_of_the_scores(files):
    scores = score.evaluate_revisited(*(files / n for n in ("gnd_x.pkl", "queries", "index")))
    assert scores.without_distractors is None
    report = scores.report()
    assert list(report) == ["easy", "medium", "hard", "protocol"]
    assert report["medium"] == {
        "mAP": scores.medium.mAP,
        **{f"mP@{k}": scores.medium.mP[k] for k in (1, 5, 10)},
        "AP": scores.medium.AP,
        "mAP_interval": scores["medium"].mAP_interval,
    }
    assert str(scores).splitlines()[1].split()[:2] == ["easy", f"{100 * scores.easy.mAP:.2f}"]
    with pytest.raises(KeyError, match="'mAP' is not one of easy, medium, hard"):
        scores["mAP"]


def test_rerank_is_what_the_command_takes(files, task):
    settings = methods.RerankConfig(rerank="alpha_qe", rerank_k=3, rerank_alpha=0.0)
    rows = np.load(files / "queries.npy"), np.load(files / "index.npy")
    found = score.evaluate_revisited(task, *rows, rerank=settings)
    assert found.protocol["rerank"] == {"method": "alpha_qe", "k": 3, "alpha": 0.0}
    assert found.medium == score.score_descriptors(task, *rows, settings).medium
    assert found.medium != score.score_descriptors(task, *rows).medium


def test_arrays_that_do_not_fit_are_refused(files, task):
    queries, index = np.load(files / "queries.npy"), np.load(files / "index.npy")
    wrong = index.copy()
    wrong[2, 3] = np.nan
    for rows, told in [
        ((queries, wrong), "the index: row 2 is not finite"),
        ((queries, np.full((8, 4), 0.5, "f4")), "the index has width 4, the queries has 16"),
        ((queries, index[:5]), "the index has 5 rows for 8 photos"),
        ((queries[:2], index), "the queries has 2 rows for 3 queries"),
        ((queries, index.astype(int)), "int64"),
        ((queries, index, index[:, 0]), "the distractors: float32"),
    ]:
        with pytest.raises(InputError, match=told):
            score.evaluate_revisited(task, *rows)


# --- the protocol --------------------------------------------------------------------


def test_an_uncropped_run_says_so_everywhere(files, caplog):
    caplog.set_level("INFO")
    report = evaluate(_config(files, query_descriptors="whole"))
    assert report["protocol"]["query_crop"] == "none"
    assert report["protocol"]["remarks"][0].startswith("queries NOT cut to their boxes")
    assert "gnd_x: 3 queries, 8 photos; queries NOT cut to their boxes\nnote: queries NOT" in (
        caplog.text
    )
    report = evaluate(_config(files, query_descriptors="queries.npy"))
    assert report["protocol"]["query_crop"] is None
    assert "is not known: an .npy" in report["protocol"]["remarks"][0]


def test_the_variant_of_the_photos_is_read_beside_the_ground_truth(files):
    about = {"format_version": 1, "variant": "blurred"}
    (files / "prepared.json").write_text(json.dumps(about))
    protocol = evaluate(_config(files))["protocol"]
    assert protocol["image_variant"] == "blurred" and "faces are blurred" in protocol["remarks"][0]
    (files / "prepared.json").write_text(json.dumps(about | {"variant": None}))
    assert evaluate(_config(files))["protocol"]["image_variant"] == "unknown"
    (files / "prepared.json").write_text("{")
    with pytest.raises(InputError, match=r"prepared\.json: not JSON"):
        evaluate(_config(files))


def test_distractors_extracted_otherwise_are_remarked(files):
    report = evaluate(_config(files, distractor_descriptors="large"))
    assert report["protocol"]["distractor_scales"] == [1.0, 2.0]
    assert report["protocol"]["remarks"] == [
        "distractors were extracted with other scales than the index"
    ]
    # What an .npy was extracted with is not known.
    protocol = evaluate(_config(files, distractor_descriptors="others.npy"))["protocol"]
    assert protocol["distractor_scales"] is None and protocol["remarks"] == []


def test_queries_of_other_scales_than_the_index_are_scored_and_remarked(files):
    protocol = evaluate(_config(files, query_descriptors="large_queries"))["protocol"]
    assert (protocol["query_scales"], protocol["index_scales"]) == ([1.0, 2.0], [1.0])
    assert protocol["remarks"] == ["queries were extracted with other scales than the index"]
    protocol = evaluate(_config(files, query_descriptors="turned"))["protocol"]
    assert protocol["remarks"] == ["queries were extracted with other upright than the index"]


@pytest.mark.parametrize(("distractors", "shown"), [(0, "84.81"), (1_001_001, "73.63")])
def test_published_rows_stand_beside_one_s_own(ground_truths, distractors, shown):
    task = score.load_ground_truth(ground_truths / "gnd_roxford5k.pkl")
    level = score.LevelScores(0.8481, {1: 1, 5: 1, 10: 1}, [0.8481], [0.8, 0.9])
    protocol = {"query_crop": "none", "rerank": {"method": "none"}, "remarks": []}
    scores = score.RevisitedScores(level, level, level)
    lines = scores_text.summary(task, scores, protocol, distractors).splitlines()
    rows = [line for line in lines if "DOLG" in line]
    assert len(rows) == 6 and sum(" NOT cut " in line for line in rows) == 4
    assert any(shown in line for line in lines)
    assert lines[-1].split() == ["yours", "84.81", "84.81", "NOT", "cut"]
    lines = scores_text.summary(task, scores, protocol, 5).splitlines()
    assert lines[-1] == "nothing is published with 5 distractors; R1M has 1,001,001"
    protocol["remarks"] = ["of\nok: fine"]
    named = dataclasses.replace(task, name="mine\nok: fine")
    assert "\nok" not in scores_text.summary(named, scores, protocol, distractors)


def test_what_does_not_fit_is_refused(files):
    for changes, told in [
        (
            {"index_descriptors": "other_model"},
            "other_model has model_hash 'xyz', .*queries has 'abc'",
        ),
        ({"index_descriptors": "queries"}, "lacks 8 of 8 photos"),
        ({"query_descriptors": "index.npy"}, "8 rows for 3 queries"),
        ({"index_descriptors": "narrow.npy"}, "width 4, .*queries has 16"),
        ({"distractor_descriptors": "narrow.npy"}, "width 4, .*queries has 16"),
        ({"query_descriptors": "nowhere"}, "no such descriptor set"),
        ({"distractor_descriptors": "index"}, "8 distractors of .* are photos of the index"),
    ]:
        with pytest.raises(InputError, match=told):
            evaluate(_config(files, **changes))
    assert not (files / "out").exists()
    (files / "out/report.json").mkdir(parents=True)
    with pytest.raises(InputError, match="is a directory"):
        evaluate(_config(files))
    for memory in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"--memory_gb={memory} must be above 0"):
            dataclasses.replace(_config(files), memory_gb=memory)


def test_command_line(files):
    command = [sys.executable, "-m", "dolg_tf", "evaluate", "revisited"]
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
