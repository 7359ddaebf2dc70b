"""Scores after geometric verification, against a ranking of each level by hand."""

import dataclasses
import pickle

import numpy as np
import pytest
from local_sets import LOCAL_META, draw
from set_meta import META

from dolg_tf.evaluation import metrics
from dolg_tf.evaluation.revisited import score
from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval import scores as other_search
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError

TRUTH = {
    "imlist": [f"i{n}" for n in range(9)],
    "qimlist": ["q0", "q1"],
    "gnd": [
        {"bbx": [0, 0, 9, 9], "easy": [0, 1], "hard": [2], "junk": [3, 4]},
        {"bbx": [0, 0, 9, 9], "easy": [5], "hard": [6, 7], "junk": []},
    ],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sets of two queries, nine index photos and three distractors; some show a query's place."""
    folder, rng = tmp_path_factory.mktemp("geometric"), np.random.default_rng(0)
    (folder / "gnd_x.pkl").write_bytes(pickle.dumps(TRUTH))
    photos = {f"q{n}": draw(rng, 40) for n in range(2)}
    # How many features each photo shares with a query; of distractor d1, too.
    shared = {"i0": 6, "i2": 25, "i3": 30, "i4": 12, "i6": 9, "i7": 30, "d1": 20}
    for name in [*TRUTH["imlist"], "d0", "d1", "d2"]:
        photo, query = draw(rng, 30), photos["q0" if name in ("i0", "i2", "i3", "i4") else "q1"]
        some = rng.permutation(40)[: shared.get(name, 0)]
        for part in ("positions", "descriptors"):
            getattr(photo, part)[: len(some)] = getattr(query, part)[some]
        photo.positions[:] += rng.standard_normal((30, 2))
        photos[name] = photo
    rows = {name: rng.standard_normal(8) for name in photos}
    names = {"q": photos.keys() & {"q0", "q1"}, "i": TRUTH["imlist"][::-1], "d": ["d2", "d0", "d1"]}
    for kind, ids in names.items():
        ids = sorted(ids) if kind == "q" else ids
        values = np.array([rows[id_] / np.linalg.norm(rows[id_]) for id_ in ids], np.float32)
        meta = META | {"crop": kind == "q"}
        descriptors.write(folder / kind, DescriptorSet(tuple(ids), values, meta))
        local = LOCAL_META | {"crop": kind == "q"}
        found = [(id_, photos[id_]) for id_ in ids[::-1]]
        writing.write(folder / f"{kind}.local", found, local | {"dtype": "float32"})
    return folder, photos, rows


def _config(folder, **changes):
    names = {"query_descriptors": "q", "index_descriptors": "i", "ground_truth": "gnd_x.pkl"}
    names |= {"query_local": "q.local", "index_local": "i.local", "output": "out.json"}
    given = {"rerank": "geometric", "rerank_verify": 4} | changes
    given |= {key: str(folder / name) for key, name in names.items() if key not in changes}
    return RevisitedConfig(**given)


def _by_hand(world, level, distractors, order):
    """The AP of each query, from rankings that leave out the junk of the level first."""
    folder, photos, rows = world
    task, verifier = (
        load_ground_truth(folder / "gnd_x.pkl"),
        Verifier(VerifyConfig().resolved(delg=order == "delg")),
    )
    ids = [*task.index_ids, *(["d2", "d0", "d1"] if distractors else [])]
    positive, ignored = score.LEVELS[level]
    found = []
    for name, query in zip(task.query_ids, task.queries, strict=True):
        junk = {row for label in ignored for row in getattr(query, label)}
        scores = [
            float(rows[name] @ rows[i] / np.linalg.norm(rows[name]) / np.linalg.norm(rows[i]))
            for i in ids
        ]
        left = sorted(set(range(len(ids))) - junk, key=lambda row: -scores[row])
        seen = dict.fromkeys(left, 0)
        seen |= {row: verifier.verify(photos[name], photos[ids[row]]).count for row in left[:4]}
        if order == "delg":
            left.sort(key=lambda row: (-seen[row], -scores[row]))
        else:
            left.sort(key=lambda row: -(scores[row] + 0.1 * min(seen[row], 10)))
        good = [left.index(row) for label in positive for row in getattr(query, label)]
        found.append(metrics.revisited_average_precision(np.sort(good)) if good else None)
    return found


@pytest.mark.parametrize("order", ["delg", "sum"])
def test_each_level_is_verified_without_its_junk(world, order, caplog):
    caplog.set_level("INFO")
    folder, numbers = world[0], {}
    if order == "sum":
        numbers = {"rerank_order": "sum", "rerank_weight": 0.1, "rerank_cap": 10}
    more = {"distractor_descriptors": str(folder / "d")}
    more["distractor_local"] = str(folder / "d.local")
    report = evaluate(_config(folder, **numbers, **more))
    for scores, distractors in ((report, True), (report["without_distractors"], False)):
        for level in score.LEVELS:
            expected = _by_hand(world, level, distractors, order)
            assert scores[level]["AP"] == pytest.approx(expected), (level, distractors)
    assert report["medium"]["AP"] != report["without_distractors"]["medium"]["AP"]
    plain = {"query_local": "", "index_local": ""}
    config = _config(folder, **plain, rerank="none", rerank_verify=-1)
    assert evaluate(config)["medium"]["AP"] != report["without_distractors"]["medium"]["AP"]
    assert report["protocol"]["rerank"]["order"] == order
    assert report["protocol"]["verification"]["max_residual"] == ("20" if order == "delg" else "30")
    assert report["protocol"]["verification"]["model_hash"] == "abc"
    assert not report["protocol"]["remarks"]
    assert f"; re-ranked: geometric, order {order}, verify 4" in caplog.text


def test_scores_of_a_search_elsewhere_are_verified_as_descriptors_are(world, tmp_path):
    folder, _, rows = world
    unit = {name: (row / np.linalg.norm(row)).astype(np.float32) for name, row in rows.items()}
    ids = [*TRUTH["imlist"], "d2", "d0", "d1"]
    products = [[unit[query] @ unit[id_] for id_ in ids] for query in TRUTH["qimlist"]]
    (tmp_path / "scores").mkdir()
    meta = {"method": "products", "crop": True, "model_hash": "abc"}
    matrix = np.array(products, np.float32)
    other_search.write(tmp_path / "scores", TRUTH["qimlist"], ids, matrix, meta)
    names = [*TRUTH["imlist"], "d0", "d1", "d2"]
    local = [(name, world[1][name]) for name in names]  # one set, as an index of both has
    writing.write(tmp_path / "all.local", local, LOCAL_META | {"dtype": "float32"})
    common = {"ground_truth": str(folder / "gnd_x.pkl"), "output": str(tmp_path / "r.json")}
    common |= {"rerank": "geometric", "rerank_verify": 4, "query_local": str(folder / "q.local")}
    more = {"scores": str(tmp_path / "scores"), "index_local": str(tmp_path / "all.local")}
    found = evaluate(RevisitedConfig(**common, **more))
    more = {
        "distractor_descriptors": str(folder / "d"),
        "distractor_local": str(folder / "d.local"),
    }
    expected = evaluate(_config(folder, **more))
    for level in score.LEVELS:
        assert found[level] == expected[level]
        assert found["without_distractors"][level] == expected["without_distractors"][level]
    assert found["protocol"]["distractors"] == 3


def test_settings_reach_the_verification(world):
    folder = world[0]
    report = evaluate(_config(folder), VerifyConfig(match="mutual", max_residual="1%"))
    assert report["protocol"]["verification"]["match"] == "mutual"
    strict = evaluate(_config(folder), VerifyConfig(max_residual="0.001"))
    plain = {"query_local": "", "index_local": ""}
    config = _config(folder, **plain, rerank="none", rerank_verify=-1)
    assert strict["hard"] == evaluate(config)["hard"] != report["hard"]


def test_other_models_and_whole_queries_are_said(world):
    folder, photos, _ = world
    ids, meta = ["q0", "q1"], {"model_hash": "xyz", "max_features": 7}
    for kind, names in (("q", ids), ("i", TRUTH["imlist"])):
        found = [(id_, photos[id_]) for id_ in names]
        writing.write(folder / f"{kind}2.local", found, LOCAL_META | meta)
        meta["max_features"] = 8
    names = {"query_local": f"{folder}/q2.local", "index_local": f"{folder}/i2.local"}
    remarks = evaluate(_config(folder, **names))["protocol"]["remarks"]
    assert [remark.split()[0] for remark in remarks] == ["local"] * 3
    assert "different models" in remarks[0] and "not of their boxes" in remarks[1]
    assert "other max_features" in remarks[2]
    names["index_local"] = str(folder / "i.local")
    with pytest.raises(InputError, match=r"has model_hash 'abc'.*extract all with one model"):
        evaluate(_config(folder, **names))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"index_local": ""}, "needs --index_local, a local feature set"),
        ({"rerank": "none", "rerank_verify": -1}, "--query_local is for geometric verification"),
        ({"distractor_descriptors": "d"}, "needs --distractor_local"),
        ({"query_local": "i.local"}, r"lacks .*'q0'"),
        ({"index_local": "i"}, "not a local feature set"),
    ],
)
def test_sets_that_do_not_fit_are_refused(world, changes, words):
    folder = world[0]
    paths = {key: str(folder / x) if x and "rerank" not in key else x for key, x in changes.items()}
    with pytest.raises(InputError, match=words):
        evaluate(_config(folder, **paths))


def test_settings_without_verification_and_nameless_distractors_are_refused(world):
    folder = world[0]
    plain = {"query_local": "", "index_local": ""}
    with pytest.raises(InputError, match="--match is for geometric verification"):
        config = _config(folder, **plain, rerank="none", rerank_verify=-1)
        evaluate(config, VerifyConfig(match="mutual"))
    found = [np.asarray(descriptors.read(folder / kind).descriptors) for kind in "id"]
    np.save(folder / "both.npy", np.concatenate([found[0][::-1], found[1]]))
    config = dataclasses.replace(_config(folder), index_descriptors=str(folder / "both.npy"))
    with pytest.raises(InputError, match=r"distractors in an \.npy have no names"):
        evaluate(config)
