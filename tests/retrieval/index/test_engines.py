"""A copy of an index in a vector engine: kept in step, searched, refused where it does not fit."""

import csv
import importlib.util

import numpy as np
import pytest
from set_meta import META

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import answers, engines, stages
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.engines import PushConfig
from dolg_tf.stage.config import InputError

COUNT, WIDTH = 25, 8
IDS = [f"ö/{number:02d}" for number in range(COUNT)]


class Memory:
    """An engine in memory, whose search is as wrong in its scores as a database's may be."""

    def __init__(self):
        self.rows, self.sent, self.fails_after = {}, 0, None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def create(self, width):
        self.width = width

    def digests(self):
        yield from ((row.id, row.digest) for row in self.rows.values())

    def other_model(self, model):
        return next((row.model for row in self.rows.values() if row.model != model), None)

    def put(self, rows):
        if self.fails_after is not None and self.sent >= self.fails_after:
            raise InputError("the engine is gone")
        self.sent += len(rows)
        self.rows |= {row.id: row for row in rows}

    def drop(self, ids):
        for id_ in ids:
            del self.rows[id_]

    def count(self):
        return len(self.rows)

    def search(self, queries, k):
        vectors = np.stack([row.vector for row in self.rows.values()])
        named = list(self.rows.values())
        found = []
        for scores in queries @ vectors.T + np.float32(1e-5):
            best = np.argsort(-scores)[:k]
            found.append([(named[b].id, named[b].landmark, float(scores[b])) for b in best])
        return found


@pytest.fixture
def memory(monkeypatch):
    engine = Memory()
    monkeypatch.setattr(engines, "open_engine", lambda settings: engine)
    monkeypatch.setattr(engines, "_BATCH", 10)
    return engine


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Sets of all photos, of fewer of which one has changed, and of queries; and both indexes."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    rows = rng.standard_normal((COUNT, WIDTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    changed = rows.copy()
    changed[3] = rows[4]
    for name, chosen, found in (("all", range(COUNT), rows), ("fewer", range(20), changed)):
        ids = tuple(IDS[row] for row in chosen)
        descriptors.write(folder / name, DescriptorSet(ids, found[: len(ids)], META))
        stages.build(
            stages.BuildConfig(descriptors=str(folder / name), output=str(folder / f"{name}_index"))
        )
    descriptors.write(folder / "query", DescriptorSet(("q0", "q1"), rows[:2], META))
    (folder / "labels.csv").write_text("path,landmark\nö/00.jpg,tower\n", encoding="utf-8")
    return folder


def _push(sets, index="all_index", **options):
    given = {"engine": "milvus", "uri": "x.db", "index": str(sets / index)} | options
    engines.push(PushConfig(**given))


def _query(sets, tmp_path, index="all_index", **options):
    settings = {"engine": "milvus", "uri": "x.db", "k": 4} | options
    answers.query(
        QueryConfig(
            index=str(sets / index),
            descriptors=str(sets / "query"),
            output=str(tmp_path / "found.csv"),
            overwrite=True,
            **settings,
        )
    )
    with (tmp_path / "found.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_answers_are_those_of_the_index(sets, memory, tmp_path, caplog):
    caplog.set_level("INFO")
    _push(sets, labels_csv=str(sets / "labels.csv"))
    found = _query(sets, tmp_path, recall=True)
    assert "100.00% of the 4 best photos are those of exact search" in caplog.text
    expected = _query(sets, tmp_path, engine="", uri="")
    # The scores are the index's, not the engine's.
    assert [{**row, "landmark": ""} for row in expected] == [{**r, "landmark": ""} for r in found]
    assert {row["landmark"] for row in found if row["id"] == "ö/00"} == {"tower"}
    assert {row["landmark"] for row in found if row["id"] != "ö/00"} == {""}


def test_a_push_brings_a_copy_in_step(sets, memory, caplog):
    caplog.set_level("INFO")
    _push(sets)
    assert memory.sent == COUNT and list(memory.rows) == IDS
    _push(sets)
    assert memory.sent == COUNT
    _push(sets, "fewer_index")
    assert "dolg: 20 rows, 1 sent, 5 removed" in caplog.text
    np.testing.assert_array_equal(memory.rows["ö/03"].vector, memory.rows["ö/04"].vector)
    _push(sets, "fewer_index", labels_csv=str(sets / "labels.csv"))
    assert memory.rows["ö/00"].landmark == "tower" and memory.sent == COUNT + 2


def test_an_interrupted_push_is_not_searched_and_continues(sets, memory, tmp_path):
    memory.fails_after = 20
    with pytest.raises(InputError, match="the engine is gone"):
        _push(sets)
    with pytest.raises(
        InputError, match=r"has 20 rows, .* 25; `dolg index push` brings it in step"
    ):
        _query(sets, tmp_path)
    memory.fails_after = None
    _push(sets)
    assert memory.sent == COUNT
    assert len(_query(sets, tmp_path)) == 8


def test_a_copy_of_another_model_or_of_other_photos_is_refused(sets, memory, tmp_path):
    _push(sets)
    row = memory.rows[IDS[7]]
    memory.rows[IDS[7]] = row._replace(model="another")
    for call in (lambda: _push(sets), lambda: _query(sets, tmp_path)):
        with pytest.raises(InputError, match=r"holds descriptors of model another, .* is of"):
            call()
    memory.rows[IDS[7]] = row
    memory.rows["new"] = memory.rows.pop(IDS[0])._replace(id="new")
    with pytest.raises(InputError, match=r"has 'new', which .* does not have"):
        _query(sets, tmp_path)


def test_whitened_descriptors_are_of_another_model(sets):
    meta = Index.open(sets / "all_index").meta
    assert engines.model_of(meta) == meta["model_hash"]
    assert engines.model_of(meta | {"whitening": "ab"}) == f"{meta['model_hash']}+ab"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"engine": "milvus"}, "--engine and --uri belong together"),
        ({"engine": "milvus", "uri": "x.db", "rerank": "alpha_qe"}, "--rerank=alpha_qe with"),
        ({"recall": True}, "--recall is of the answers of --engine"),
        ({"engine": "milvus", "uri": "x.db", "collection": "a b"}, "--collection=a b must be"),
    ],
)
def test_flags_that_do_not_fit_are_told(options, told):
    with pytest.raises(InputError, match=told):
        QueryConfig(index="i", output="o.csv", descriptors="d", **options)


def test_a_push_needs_an_engine():
    with pytest.raises(InputError, match="--engine is missing; give one of milvus"):
        PushConfig(index="i")


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pymilvus", "milvus_lite"))),
    reason="Milvus Lite is not installed",
)
def test_milvus_lite(sets, tmp_path):
    uri = str(tmp_path / "lite.db")
    _push(sets, uri=uri, labels_csv=str(sets / "labels.csv"))
    found = _query(sets, tmp_path, uri=uri)
    expected = _query(sets, tmp_path, engine="", uri="")
    assert [row["id"] for row in found] == [row["id"] for row in expected]
    assert [row["score"] for row in found] == [row["score"] for row in expected]
    assert found[0]["landmark"] == "tower"
    _push(sets, "fewer_index", uri=uri)  # changed, removed, and without landmarks
    settings = PushConfig(engine="milvus", uri=uri, index="i")
    with engines.open_engine(settings) as engine:
        assert engine.count() == 20 and engine.other_model("x") is not None
        assert sorted(id_ for id_, _ in engine.digests()) == IDS[:20]
        with pytest.raises(InputError, match=r"vectors of 8; ours have .* and 9"):
            engine.create(9)
    other = PushConfig(engine="milvus", uri=uri, index="i", collection="missing")
    with engines.open_engine(other) as engine:
        assert engine.count() == 0


@pytest.mark.skipif(not importlib.util.find_spec("pymilvus"), reason="pymilvus is not installed")
def test_an_engine_that_does_not_answer_is_told(sets):
    with pytest.raises(InputError, match=r"--uri=http://localhost:1: .*is it running"):
        _push(sets, uri="http://localhost:1")
