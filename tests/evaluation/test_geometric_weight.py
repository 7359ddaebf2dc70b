"""The fitted weight of inliers, against whole rankings sorted anew for each weight."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest
from local_sets import LOCAL_META, draw
from set_meta import META

from dolg_tf.apps.report.run_files import read_threshold
from dolg_tf.evaluation import geometric_weight, metrics
from dolg_tf.evaluation.calibrate import CalibrateConfig, calibrate
from dolg_tf.evaluation.geometric_weight import WEIGHTS, fit
from dolg_tf.pipelines.checks import check_index
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.ground_truth import GroundTruth, Query
from dolg_tf.retrieval.index import answers, stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.local import feature_set, writing
from dolg_tf.retrieval.rerank.methods import RerankConfig, as_fitted
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError, to_dict


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_the_curve_is_that_of_whole_rankings():
    rng = np.random.default_rng(0)
    queries, index = _unit(rng.standard_normal((9, 4))), _unit(rng.standard_normal((40, 4)))
    inliers, tasks = rng.integers(0, 150, (9, 40)), []
    for query in range(9):
        easy, hard, junk = np.split(rng.permutation(40)[:14], [4, 8])
        inliers[query, easy] += 60
        tasks.append(Query(None, *map(np.sort, (easy, hard, junk))))
    names = tuple(map(str, range(40)))
    task = GroundTruth("x", names, names[:9], tuple(tasks))
    counts = types.SimpleNamespace(
        of=lambda rows: [inliers[query][some] for query, some in enumerate(rows)],
        settings=VerifyConfig(),
    )
    settings = RerankConfig(rerank="geometric", rerank_verify=12, rerank_order="sum", rerank_cap=80)
    found = fit(task, queries, index, settings, counts)
    table = []
    for query, labels in enumerate(tasks):
        scores, row = (index @ queries[query]).astype(np.float64), []
        left = sorted(set(range(40)) - set(labels.junk), key=lambda i: -scores[i])
        for weight in WEIGHTS:
            sums = scores.copy()
            sums[left[:12]] += weight * np.minimum(inliers[query, left[:12]], 80)
            ranking = sorted(left, key=lambda i: -sums[i])
            good = sorted(ranking.index(i) for i in (*labels.easy, *labels.hard))
            row.append(metrics.revisited_average_precision(np.array(good)))
        table.append(row)
    means = np.mean(table, 0)
    assert [weight for weight, _ in found["curve"]] == list(WEIGHTS)
    assert [mean for _, mean in found["curve"]] == pytest.approx(means.tolist())
    assert found["mAP"] == pytest.approx(means.max()) and means.max() > means[0]
    assert found["weight"] == WEIGHTS[int(means.round(9).argmax())]
    assert found["mAP_without"] == pytest.approx(means[0])
    assert found["mAP_other_half"] <= found["mAP"]
    low, high = found["as_good"]
    assert low <= found["weight"] <= high
    assert (found["cap"], found["verify"], found["queries"]) == (80, 12, 9)


@pytest.fixture
def photos(tmp_path):
    """Sixteen queries and forty index photos of eight places; inliers tell more than scores."""
    rng, ids = np.random.default_rng(0), [f"p{n:02}" for n in range(56)]
    places = np.arange(56) % 8
    rows = _unit(rng.standard_normal((8, 16))[places] + 1.5 * rng.standard_normal((56, 16)))
    seen, local = [draw(rng, 25) for _ in range(8)], {}
    for id_, place in zip(ids, places, strict=True):
        local[id_] = draw(rng, 40)
        local[id_].positions[:25] = seen[place].positions
        local[id_].descriptors[:25] = seen[place].descriptors
    for name, some in (("q", slice(16)), ("i", slice(16, None))):
        found = DescriptorSet(tuple(ids[some]), rows[some], META)
        descriptors.write(tmp_path / name, found)
        writing.write(
            tmp_path / f"{name}.local", [(id_, local[id_]) for id_ in ids[some]], LOCAL_META
        )
    lines = [f"{id_},{place}\n" for id_, place in zip(ids, places, strict=True)]
    (tmp_path / "labels.csv").write_text("id,landmark\n" + "".join(lines))
    return tmp_path


def _config(folder, **changes):
    names = {"index_descriptors": "i", "query_descriptors": "q", "labels_csv": "labels.csv"}
    names |= {"query_local": "q.local", "index_local": "i.local", "output": "out.json"}
    paths = {key: str(folder / name) for key, name in names.items()}
    return CalibrateConfig(**{"precision": 0.2, **paths, **changes})


def test_an_index_answers_by_the_fitted_weight(photos, caplog):
    caplog.set_level("INFO")
    build = {"descriptors": str(photos / "i"), "local": str(photos / "i.local")}
    stages.build(stages.BuildConfig(**build, output=str(photos / "index")))
    # The local features of the index are at hand.
    config = _config(photos, index=str(photos / "index"), index_local="")
    found = calibrate(config, VerifyConfig(match="mutual"))["geometric"]
    assert found == json.loads((photos / "out.json").read_text())["geometric"]
    assert found["mAP_other_half"] > found["mAP_without"] + 0.3 and found["weight"] > 0
    assert "geometric verification, 16 queries: mAP" in caplog.text
    kept = Index.open(photos / "index").meta["calibration"]
    assert kept["geometric"] == found and kept["threshold"]
    asked = {"index": str(photos / "index"), "descriptors": str(photos / "q"), "k": 5}
    asked |= {"query_local": str(photos / "q.local"), "output": str(photos / "found.csv")}
    answers.query(answers.QueryConfig(**asked, rerank="geometric"))
    by_fit = (photos / "found.csv").read_text()
    by_hand = {"rerank_order": "sum", "rerank_weight": found["weight"]}
    answers.query(
        answers.QueryConfig(**asked, rerank="geometric", **by_hand, rerank_cap=100, overwrite=True)
    )
    assert by_fit == (photos / "found.csv").read_text()
    answers.query(
        answers.QueryConfig(**asked, rerank="geometric", rerank_order="delg", overwrite=True)
    )
    assert by_fit != (photos / "found.csv").read_text()


@pytest.mark.parametrize("one_set", [False, True])
def test_a_threshold_with_inliers_is_that_of_pairs_counted_one_by_one(photos, one_set):
    changes = {"precision": 0.9, "min_inliers": 6, "rerank": "geometric", "rerank_verify": 9}
    if one_set:
        changes |= {"query_descriptors": "", "query_local": ""}
    found = calibrate(_config(photos, **changes))
    names = ("i", "i") if one_set else ("q", "i")
    queries, index = (descriptors.read(photos / name) for name in names)
    features = [feature_set.read(photos / f"{name}.local") for name in names]
    verifier = Verifier(VerifyConfig().resolved())
    scores = np.asarray(queries.descriptors[:]) @ np.asarray(index.descriptors[:]).T
    passing, same = [], 0
    for a, name in enumerate(queries.ids):
        ranked = [row for row in np.argsort(-scores[a]) if index.ids[row] != name]
        for b, other in enumerate(index.ids):
            if one_set and b <= a:
                continue
            alike = int(name[1:]) % 8 == int(other[1:]) % 8
            same += alike
            pair = (
                one[one.rows_of([id_])[0]] for one, id_ in zip(features, (name, other), strict=True)
            )
            if b in ranked[:9] and verifier.verify(*pair).count >= 6:
                passing.append((scores[a, b], alike))
    assert found["pairs"]["same"] == same and found["geometric"]["min_inliers"] == 6
    good = [score for score, alike in passing if alike]
    shares = {
        score: np.mean([alike for other, alike in passing if other >= score]) for score in good
    }
    lowest = min(score for score in good if shares[score] >= 0.9)
    assert found["threshold"] == pytest.approx(lowest, abs=2e-6)
    assert found["recall"] == np.mean(np.array(good) >= lowest) * len(good) / same
    assert found["precision"] == shares[lowest]


def test_a_match_has_the_inliers_too(photos, caplog):
    build = {"descriptors": str(photos / "i"), "local": str(photos / "i.local")}
    build |= {"output": str(photos / "index")}
    stages.build(stages.BuildConfig(**build))
    config = _config(photos, index=str(photos / "index"), min_inliers=20, precision=0.9)
    found, alone = calibrate(config), calibrate(_config(photos, precision=0.9))
    threshold = found["threshold"]
    assert alone["threshold"] > threshold and alone["recall"] < found["recall"]
    assert Index.open(photos / "index").min_inliers == 20
    asked = {"index": str(photos / "index"), "descriptors": str(photos / "q"), "k": 40}
    asked |= {"output": str(photos / "found.csv"), "overwrite": True}
    local = {"rerank": "geometric", "query_local": str(photos / "q.local")}

    def lines(**options):
        caplog.clear()
        answers.query(answers.QueryConfig(**asked, **options))
        return list(csv.DictReader((photos / "found.csv").read_text().splitlines()))

    said = set()
    for line in lines(**local):
        passes = float(line["score"]) >= threshold and int(line["inliers"]) >= 20
        assert line["match"] == ("match" if passes else "no match")
        said.add((line["match"], float(line["score"]) >= threshold))
    assert len(said) == 3 and not caplog.text  # a score that is high enough does not suffice
    others = {"match": "nearest"}, {"rerank_order": "delg"}, {"rerank_verify": 3}
    for options in ({}, *(local | other for other in others)):
        assert "match" not in lines(**options)[0]
        assert "they need 20 inliers too, counted by --rerank=geometric" in caplog.text
    assert "and 20 inliers" in check_index(photos / "index")[2]
    told = types.SimpleNamespace(inputs=types.SimpleNamespace(protocol={"model_hash": None}))
    with pytest.raises(InputError, match=r"calibrated with --min_inliers=20: .*verified photos"):
        read_threshold(types.SimpleNamespace(index=str(photos / "index")), told)
    stages.build(stages.BuildConfig(**build, overwrite=True))
    assert "was calibrated, the new index is not" in caplog.text


def test_what_was_fitted_otherwise_is_not_used(caplog):
    fitted = {"rerank": "geometric", "order": "sum", "weight": 0.01, "cap": 50, "verify": 30}
    plain = RerankConfig(rerank="geometric")
    fitted["settings"] = to_dict(VerifyConfig(match="mutual", max_residual="9"))
    own = VerifyConfig(match="mutual", max_residual="9")
    chosen, verification = as_fitted(plain, VerifyConfig(), fitted)
    assert chosen.numbers() == {"verify": 30, "weight": 0.01, "cap": 50}
    assert (chosen.order, verification) == ("sum", own)
    given = RerankConfig(rerank="geometric", rerank_verify=7)
    assert as_fitted(given, own, fitted)[0].numbers()["verify"] == 7 and not caplog.text
    others = RerankConfig(rerank="superglobal,geometric"), VerifyConfig()
    for settings, given in (others, (plain, VerifyConfig(match="ratio"))):
        caplog.clear()
        assert as_fitted(settings, given, fitted) == (settings, given.resolved(delg=True))
        assert "was fitted with --rerank=geometric" in caplog.text
    delg = VerifyConfig(match="nearest", max_residual="20")
    for settings in (RerankConfig(rerank="geometric", rerank_order="delg"), RerankConfig()):
        assert as_fitted(settings, VerifyConfig(), fitted) == (settings, delg)
    assert as_fitted(plain, VerifyConfig(), None) == (plain, delg)
    summed = RerankConfig(rerank="geometric", rerank_order="sum")
    mutual = VerifyConfig(match="mutual", max_residual="30")
    assert as_fitted(summed, VerifyConfig(), fitted) == (summed, mutual)
    # Nor what was fitted after a method with other numbers.
    refined = RerankConfig(rerank="superglobal,geometric")
    fitted |= {"rerank": refined.rerank, "before": refined.before}
    assert as_fitted(refined, VerifyConfig(), fitted)[0].order == "sum"
    other = dataclasses.replace(refined, rerank_k=50)
    assert as_fitted(other, VerifyConfig(), fitted) == (other, delg)


def test_one_set_and_many_queries(photos, monkeypatch, caplog):
    monkeypatch.setattr(geometric_weight, "_QUERIES", 10)
    caplog.set_level("INFO")
    whole = _config(photos, query_descriptors="", query_local="")
    found = calibrate(whole)["geometric"]
    assert found["queries"] == 10 and "on 10 of 40 queries" in caplog.text
    # No photo finds itself: its own row is not even verified.
    assert found["mAP_without"] < 0.9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_local": ""}, "give --query_local"),
        ({"index_local": ""}, "give --index_local, or an --index"),
        ({"rerank": "superglobal"}, "has no weight to fit; add geometric"),
        ({"rerank": "geometric", "rerank_order": "delg"}, "delg takes no weight"),
        ({"labels_csv": "", "pairs": "pairs.csv"}, "instead of --pairs"),
        ({"min_inliers": -1}, "--min_inliers=-1 must be at least 0"),
        ({"min_inliers": 9, "query_local": "", "index_local": ""}, "needs local features"),
        ({"min_inliers": 41}, "no pair of the same place has --min_inliers"),
    ],
)
def test_what_cannot_be_fitted_is_refused(photos, changes, words):
    with pytest.raises(InputError, match=words):
        calibrate(_config(photos, **changes))


def test_few_queries_and_settings_without_local_features_are_refused(photos):
    lines = (photos / "labels.csv").read_text().splitlines()
    (photos / "few.csv").write_text("\n".join([lines[0], *lines[1:4], *lines[17:]]))
    with pytest.raises(InputError, match="3 queries have a photo of the same place"):
        calibrate(_config(photos, labels_csv=str(photos / "few.csv")))
    stages.build(stages.BuildConfig(descriptors=str(photos / "i"), output=str(photos / "bare")))
    with pytest.raises(InputError, match=r"bare has no local features, which a match with --min"):
        calibrate(_config(photos, index=str(photos / "bare"), min_inliers=9))
    plain = _config(photos, query_local="", index_local="")
    with pytest.raises(InputError, match="need local features"):
        calibrate(plain, VerifyConfig(match="mutual"))
