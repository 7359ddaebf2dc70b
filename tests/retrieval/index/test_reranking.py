"""The answers of an index in the order of re-ranking."""

import csv
import dataclasses
import itertools

import numpy as np
import pytest
from local_sets import LOCAL_META, draw
from set_meta import META

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import answers, directory, stages
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.stages import BuildConfig
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.rerank import methods
from dolg_tf.stage.config import InputError

COUNT, QUERIES = 40, ("q1", "q0")
IDS = [f"{'bca'[i % 3]}/{i}" for i in range(COUNT)]  # not in order


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _view(features, count, rng):
    """Returns `count` of a photo's features, in a photo taken from nearer, and some others."""
    others = draw(rng, 20, size=features.size)
    names = ("positions", "scales", "strengths", "descriptors")
    parts = {
        name: np.concatenate([getattr(features, name)[:count], getattr(others, name)])
        for name in names
    }
    parts["positions"][:count] = 1.2 * features.positions[:count] + [7, -9]
    return dataclasses.replace(features, **parts)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets of an index and of queries; photos 3 and 5 show the place of q0, most agree with 5."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(4)
    asked = {name: draw(rng, 60) for name in QUERIES}
    photos = {id_: draw(rng, 40) for id_ in IDS}
    photos[IDS[3]] = _view(asked["q0"], 15, rng)
    photos[IDS[5]] = _view(asked["q0"], 30, rng)
    rows = {"index": _unit(rng.standard_normal((COUNT, 8))), "query": None}
    rows["query"] = _unit(rows["index"][[0, 5]] + 0.4 * rng.standard_normal((2, 8)))
    for name, ids, local in (("index", IDS, photos), ("query", QUERIES, asked)):
        descriptors.write(folder / name, DescriptorSet(tuple(ids), rows[name], META))
        writing.write(folder / f"{name}.local", local.items(), LOCAL_META)
    made = {"descriptors": str(folder / "index"), "local": str(folder / "index.local")}
    stages.build(BuildConfig(**made, output=str(folder / "built")))
    return folder


def _query(sets, tmp_path, index="built", **options):
    """Returns {query: lines of the CSV}."""
    output = tmp_path / "found.csv"
    given = {"index": str(sets / index), "descriptors": str(sets / "query"), "k": COUNT}
    if "geometric" in options.get("rerank", ""):
        given["query_local"] = str(sets / "query.local")
    answers.query(QueryConfig(output=str(output), overwrite=True, **given | options))
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [line for line in lines if line["query"] == name] for name in QUERIES}


def _ids(lines):
    return [line["id"] for line in lines]


@pytest.mark.parametrize("verify", [7, 100])
def test_verified_photos_come_by_their_inliers(sets, tmp_path, verify):
    """The rest keeps its order, and scores stay those of the descriptors."""
    before = _query(sets, tmp_path)
    after = _query(sets, tmp_path, rerank="geometric", rerank_verify=verify)
    for name in QUERIES:
        assert sorted(_ids(after[name])) == sorted(IDS)
        assert {x["id"]: x["score"] for x in after[name]} == {
            x["id"]: x["score"] for x in before[name]
        }
        head = [line for line in after[name] if line["inliers"]]
        assert set(_ids(head)) == set(_ids(before[name])[:verify])
        inliers = {line["id"]: int(line["inliers"]) for line in head}
        # Python's sort is stable.
        expected = sorted(_ids(before[name])[:verify], key=lambda id_, of=inliers: -of[id_])
        assert _ids(after[name]) == expected + _ids(before[name])[verify:]
        few = _query(sets, tmp_path, rerank="geometric", rerank_verify=verify, k=3)
        assert _ids(few[name]) == (expected + _ids(before[name])[verify:])[:3]
    if verify == 100:
        assert _ids(after["q0"])[:2] == [IDS[5], IDS[3]]
        assert 30 <= int(after["q0"][0]["inliers"]) < 36


def test_a_sum_of_score_and_inliers(sets, tmp_path):
    options = {"rerank_order": "sum", "rerank_weight": 0.02, "rerank_cap": 20}
    for line in _query(sets, tmp_path, rerank="geometric", **options).values():
        sums = [float(x["score"]) + 0.02 * min(int(x["inliers"]), 20) for x in line]
        assert sums == sorted(sums, reverse=True)


def test_without_geometry_rankings_are_those_of_the_method(sets, tmp_path, monkeypatch):
    queries, index = (descriptors.read(sets / name) for name in ("query", "index"))
    order = sorted(range(COUNT), key=lambda row: IDS[row])
    rows = index.descriptors[np.array(order)]
    for options in ({"rerank": "superglobal", "rerank_m": 9}, {"rerank": "alpha_qe"}):
        found = methods.apply(methods.RerankConfig(**options), queries.descriptors[:], rows)
        after = _query(sets, tmp_path, **options)
        for query, name in enumerate(QUERIES):
            scores = found.index[:] @ found.queries[query]
            head = [] if found.head is None else found.head[query].tolist()
            rest = [row for row in np.argsort(-scores, kind="stable") if row not in head]
            assert _ids(after[name]) == [IDS[order[row]] for row in head + rest]
            assert "inliers" not in after[name][0]


def test_what_superglobal_ordered_and_nothing_verified_keeps_its_place(sets, tmp_path):
    options = {"rerank_m": 20, "rerank_k": 3}
    before = _query(sets, tmp_path, rerank="superglobal", **options)
    after = _query(sets, tmp_path, rerank="superglobal,geometric", rerank_verify=5, **options)
    for name in QUERIES:
        assert _ids(after[name])[5:] == _ids(before[name])[5:]
        assert set(_ids(after[name])[:5]) == set(_ids(before[name])[:5])


def test_matches_are_told_whatever_the_order(sets, tmp_path):
    path = tmp_path / "index"
    made = {"descriptors": str(sets / "index"), "local": str(sets / "index.local")}
    stages.build(BuildConfig(**made, output=str(path)))
    directory.set_calibration(path, {"threshold": 0.5}, directory.read_meta(path))
    found = _query(sets, tmp_path, str(path), rerank="geometric")
    for line in itertools.chain(*found.values()):
        assert line["match"] == ("match" if float(line["score"]) >= 0.5 else "no match")


# --- approximate ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def approximate(tmp_path_factory):
    """An approximate index of which a search visits one cell of four."""
    pytest.importorskip("faiss")
    folder, rng = tmp_path_factory.mktemp("approximate"), np.random.default_rng(4)
    ids = [f"p{i}" for i in range(260)]
    rows = _unit(rng.standard_normal((260, 8)))
    descriptors.write(folder / "set", DescriptorSet(tuple(ids), rows, META))
    descriptors.write(folder / "query", DescriptorSet(QUERIES, rows[[7, 8]], META))
    writing.write(folder / "set.local", ((id_, draw(rng, 9)) for id_ in ids), LOCAL_META)
    writing.write(folder / "query.local", ((id_, draw(rng, 9)) for id_ in QUERIES), LOCAL_META)
    options = {"kind": "ivfpq", "nlist": 4, "m": 2, "nprobe": 1, "output": str(folder / "built")}
    made = {"descriptors": str(folder / "set"), "local": str(folder / "set.local")}
    stages.build(BuildConfig(**made, **options))
    return folder


def test_candidates_of_an_approximate_index_are_verified(approximate, tmp_path):
    """Fewer are found than could be verified, and none is made up."""
    before = _query(approximate, tmp_path, k=260)
    options = {"rerank": "geometric", "rerank_verify": 200, "k": 260}
    after = _query(approximate, tmp_path, **options)
    for name in QUERIES:
        assert 0 < len(before[name]) < 200
        assert all(line["inliers"] for line in after[name])
        some = [{x["id"]: x["score"] for x in found[name]} for found in (before, after)]
        assert some[0] == some[1]


def test_an_approximate_index_has_no_descriptors_for_other_methods(approximate, tmp_path):
    with pytest.raises(InputError, match=r"keeps no descriptors for superglobal; .*kind=flat"):
        _query(approximate, tmp_path, rerank="superglobal,geometric")


# --- what is refused -----------------------------------------------------------------


def test_an_index_without_local_features_is_not_verified(sets, tmp_path):
    made = {"descriptors": str(sets / "index"), "output": str(tmp_path / "bare")}
    stages.build(BuildConfig(**made))
    with pytest.raises(InputError, match=r"has no local features; build it with .*--local"):
        _query(sets, tmp_path, str(tmp_path / "bare"), rerank="geometric")


def test_local_features_of_other_queries_or_another_model(sets, tmp_path):
    photos = [("q0", draw(np.random.default_rng(0), 5))]
    writing.write(tmp_path / "few", photos, LOCAL_META)
    with pytest.raises(InputError, match="few lacks 1 of 2 photos, the first is 'q1'"):
        _query(sets, tmp_path, rerank="geometric", query_local=str(tmp_path / "few"))
    writing.write(tmp_path / "other", photos, LOCAL_META | {"model_hash": "other"})
    with pytest.raises(InputError, match="model_hash 'other'"):
        _query(sets, tmp_path, rerank="geometric", query_local=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rerank": "geometric", "descriptors": "d"}, "needs the local features of the queries"),
        ({"query_local": "l", "descriptors": "d"}, "query_local=l belongs to --descriptors"),
        ({"rerank": "geometrik", "descriptors": "d"}, "'geometrik' is none of none, alpha_qe"),
        ({"rerank_verify": 5, "descriptors": "d"}, "rerank_verify=5 does not belong to"),
    ],
)
def test_options_that_do_not_fit(options, told):
    with pytest.raises(InputError, match=told):
        QueryConfig(index="i", output="o", **options)
