"""An approximate index says what it finds, ranks ties by id, and survives changes."""

import json
import math
import pathlib
import shutil
import sys

import faiss
import numpy as np
import pytest
import sealed

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import answers, ivfpq, photos, stages
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import AddConfig, BuildConfig, RemoveConfig
from dolg_tf.stage import files
from dolg_tf.stage.config import InputError

META = {
    "image_root": "photos",
    "model_hash": "old",
    "scales": [1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "bad": [],
}
SIZE = 16


def _unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# 300 different photos; then one of them 60 times more, which no score can tell apart.
RNG = np.random.default_rng(0)
ROWS = _unit(RNG.standard_normal((300, SIZE)))
ROWS = np.concatenate([ROWS, np.repeat(ROWS[7:8], 60, axis=0)])
IDS = [f"{(131 * row) % 360:03d}" for row in range(360)]  # not in order
QUERIES = np.concatenate([ROWS[5:10], _unit(RNG.standard_normal((4, SIZE)))])


def _write(path, numbers=range(360), rows=ROWS, **meta):
    ids = tuple(IDS[number] for number in numbers)
    descriptors.write(path, DescriptorSet(ids, rows[list(numbers)], META | meta))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return _write(tmp_path_factory.mktemp("made") / "set")


def _build(made, path, **options):
    settings = {"kind": "ivfpq", "nlist": 6, "m": 4, "nprobe": 3} | options
    return stages.build(BuildConfig(descriptors=made, output=str(path), **settings))


@pytest.fixture(scope="module")
def first(made, tmp_path_factory):
    return _build(made, tmp_path_factory.mktemp("first") / "index").path


@pytest.fixture
def built(first, tmp_path):
    """An index of all photos: faiss takes its time to build one."""
    return Index.open(shutil.copytree(first, tmp_path / "index"))


def _oracle(read, ids, rows, query, cells):
    """Returns the score and the code of each photo in the cells nearest to the query."""
    centres = read.quantizer.reconstruct_n(0, read.nlist)
    near = np.argsort(-centres @ query)[:cells]
    codes = read.sa_encode(np.ascontiguousarray(rows))
    # What a row is stored as: its cell, then the nearest codewords of what is left.
    scores = read.sa_decode(codes).astype(np.float64) @ query
    return {
        id_: (score, code.tobytes())
        for id_, score, code, row in zip(ids, scores, codes, rows, strict=True)
        if np.argmax(centres @ row) in near
    }


def _check(found, numbers, k, cells):
    """Compares answers with what faiss' codes stand for; equal codes must have equal scores."""
    read = faiss.read_index(str(found.path / "index.faiss"))
    ids, rows = [IDS[number] for number in numbers], ROWS[numbers]
    for query, scores, ranks in zip(QUERIES, *found.search(QUERIES, k), strict=True):
        pairs = [(-s, found.ids[r]) for s, r in zip(scores.tolist(), ranks, strict=True) if r >= 0]
        oracle = _oracle(read, ids, rows, query, cells)
        assert pairs == sorted(pairs) and len(pairs) == min(k, len(oracle))
        for score, id_ in pairs:
            assert -score == pytest.approx(oracle[id_][0], abs=1e-5)
        # What is left out scores no more than the last, and of equal codes the first ids are in.
        left_out = sorted(set(oracle) - {id_ for _, id_ in pairs})
        assert all(oracle[id_][0] < 1e-5 - pairs[-1][0] for id_ in left_out)
        last = pairs[-1][1]
        same = [id_ for id_ in left_out if oracle[id_][1] == oracle[last][1]]
        assert not same or last < same[0]


# --- build and query -----------------------------------------------------------------


@pytest.mark.parametrize(("k", "nprobe"), [(1, 6), (10, 6), (61, 3), (70, 3), (359, 6), (999, 1)])
def test_answers_are_those_of_the_codes_with_ties_by_id(built, k, nprobe):
    assert built.approximate.nprobe == 3
    built.approximate.nprobe = nprobe
    _check(built, list(range(360)), k, nprobe)


def test_answers_do_not_depend_on_what_faiss_is_asked_at_a_time(built, monkeypatch):
    expected = built.search(QUERIES, 20)
    monkeypatch.setattr(ivfpq, "_ANSWERS", 100)
    for part, whole in zip(built.search(QUERIES, 20), expected, strict=True):
        np.testing.assert_array_equal(part, whole)
    assert [len(part) for part in built.search(QUERIES[:0], 20)] == [0, 0]


def test_cells_that_hold_too_few(made, built, tmp_path):
    """What is not found is not in the CSV either."""
    scores, ranks = built.search(ROWS, 359)
    missing = ranks < 0
    assert missing[:, -1].all() and (scores[missing] == -np.inf).all()
    settings = {"index": str(built.path), "descriptors": made}
    answers.query(QueryConfig(output=str(tmp_path / "f.csv"), k=359, **settings))
    lines = (tmp_path / "f.csv").read_text().splitlines()
    assert len(lines) - 1 == np.count_nonzero(~missing)


def test_building_twice_gives_the_same_file(made, first, tmp_path):
    again = _build(made, tmp_path / "index").path
    for name in ("index.faiss", "ids.txt", "meta.json"):
        assert (again / name).read_bytes() == (first / name).read_bytes()


def _recall(found, rows, queries, k):
    """Counts, for each query, how many of the k nearest others are among the k found."""
    hits = 0
    read = faiss.read_index(str(found.path / "index.faiss"))
    read.nprobe = found.meta["ivfpq"]["nprobe"]
    for number in queries:
        query = rows[number]
        exact = sorted(
            (-math.fsum(map(float, np.float64(row) * query)), i) for i, row in enumerate(rows)
        )
        exact = [i for _, i in exact if i != number][:k]
        scores, labels = read.search(query[None], len(rows))
        pairs = [(-s, i) for s, i in zip(scores[0], labels[0], strict=True) if i >= 0]
        hits += len(set(exact) & set([i for _, i in sorted(pairs) if i != number][:k]))
    return hits / (len(queries) * k)


@pytest.mark.parametrize("queries", [20, 1000])
def test_recall_is_printed_and_stored(tmp_path, monkeypatch, caplog, queries):
    caplog.set_level("INFO")
    monkeypatch.setattr(ivfpq, "_RECALL_QUERIES", queries)
    made = _write(tmp_path / "set", range(300))
    found = _build(made, tmp_path / "index")
    rows = ROWS[sorted(range(300), key=IDS.__getitem__)]
    own = np.random.default_rng(1).choice(300, min(queries, 300), replace=False)
    expected = {str(k): _recall(found, rows, own, k) for k in (1, 10, 100)}
    assert found.meta["ivfpq"]["recall"] == pytest.approx(expected, abs=1e-12)
    assert found.meta["ivfpq"]["recall_rows"] == 300
    assert 0.1 < expected["10"] < 1
    for k, share in expected.items():
        assert f"{100 * share:.1f} % of the {k} nearest" in caplog.text


# --- add and remove ------------------------------------------------------------------


def test_added_and_removed_photos(tmp_path, monkeypatch):
    """Also of the 61 that score the same: the lists of faiss are in no order after that."""
    monkeypatch.setattr(ivfpq, "_BLOCK", 50)
    first = _write(tmp_path / "first", range(280))
    found = _build(first, tmp_path / "index")
    path, here = str(found.path), set(range(280))
    rng = np.random.default_rng(3)
    steps = [(range(280, 330), 70), ([], 1), (range(330, 360), 100)]
    for step, (new, count) in enumerate(steps):
        if new:
            stages.add(AddConfig(index=path, descriptors=_write(tmp_path / f"s{step}", new)))
            here |= set(new)
        gone = rng.permutation(sorted(here))[:count].tolist()
        (tmp_path / "gone.txt").write_text("\n".join(IDS[number] for number in gone))
        stages.remove(RemoveConfig(index=path, ids=str(tmp_path / "gone.txt")))
        here -= set(gone)
        changed = Index.open(path)
        assert changed.ids == tuple(sorted(IDS[number] for number in here))
        assert changed.approximate.ntotal == len(here)
        _check(changed, sorted(here), 40, 3)


def test_a_photo_that_left_and_came_back(built, tmp_path):
    expected = built.search(QUERIES, 50)
    gone = [3, 7, 200, 310]
    (tmp_path / "gone.txt").write_text("\n".join(IDS[number] for number in gone))
    stages.remove(RemoveConfig(index=str(built.path), ids=str(tmp_path / "gone.txt")))
    back = _write(tmp_path / "back", gone)
    again = stages.add(AddConfig(index=str(built.path), descriptors=back)).search(QUERIES, 50)
    for ours, before in zip(again, expected, strict=True):
        np.testing.assert_array_equal(ours, before)


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((10**6, 512, 0, 0), (2000, 64)),
        ((1600, 512, 0, 0), (25, 64)),  # 64 photos a cell rather than 80 cells
        ((300, 509, 0, 0), (4, 1)),
        ((300, 100, 0, 0), (4, 10)),
        ((300, 4, 9, 2), (9, 2)),
    ],
)
def test_sizes(given, expected):
    assert ivfpq.sizes(*given) == expected


def test_sizes_that_cannot_be(made, tmp_path):
    with pytest.raises(InputError, match="--m=5 must divide the descriptor's length, 16"):
        _build(made, tmp_path / "index", m=5)
    with pytest.raises(InputError, match=r"360 descriptors are too few .*--nlist=361.* needs 361"):
        _build(made, tmp_path / "index", nlist=361)
    few = _write(tmp_path / "few", range(255))
    with pytest.raises(InputError, match=r"255 descriptors are too few .*needs 256; .*flat"):
        _build(few, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_rebuild_chooses_what_was_left_open_anew(made, tmp_path, monkeypatch):
    """Another network has descriptors of another width, and fewer photos may be left."""
    built = _build(made, tmp_path / "index", nlist=0, m=0, nprobe=5)
    about = built.meta["ivfpq"]
    assert (about["cells"], about["bytes"], about["nprobe"]) == (5, 2, 5)
    wide = _unit(np.random.default_rng(4).standard_normal((270, 60)))
    ids = tuple(IDS[:270])
    descriptors.write(
        tmp_path / "index.rebuild", DescriptorSet(ids, wide, META | {"model_hash": "new"})
    )
    described = lambda *_: (descriptors.read(tmp_path / "index.rebuild"), None)  # noqa: E731
    monkeypatch.setattr(photos, "describe_anew", described)
    settings = stages.RebuildConfig(index=str(tmp_path / "index"), saved_model="new")
    about = stages.rebuild(settings).meta["ivfpq"]
    assert (about["cells"], about["bytes"], about["nprobe"]) == (4, 6, 5)


# --- damage --------------------------------------------------------------------------


def _other_kind(folder):
    flat = faiss.IndexFlatIP(SIZE)
    flat.add(ROWS)
    faiss.write_index(flat, str(folder / "index.faiss"))
    _resign(folder)


def _other_size(folder):
    found = faiss.read_index(str(folder / "index.faiss"))
    found.remove_ids(np.array([5]))
    faiss.write_index(found, str(folder / "index.faiss"))
    _resign(folder)


def _resign(folder):
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"]["index.faiss"] = files.sha256(folder / "index.faiss")
    sealed.change(folder / "meta.json", sha256=meta["sha256"])


def _cut(folder, resign):
    file = folder / "index.faiss"
    file.write_bytes(file.read_bytes()[:-1])
    if resign:
        _resign(folder)


def _flip(folder):
    data = bytearray((folder / "index.faiss").read_bytes())
    data[-9] ^= 1
    (folder / "index.faiss").write_bytes(data)


def _no_cells(folder):
    made = json.loads((folder / "meta.json").read_text())["ivfpq"]
    sealed.change(folder / "meta.json", ivfpq=made | {"nprobe": 0})


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda folder: _cut(folder, False), "index.faiss: damaged, its checksum"),
        (_flip, "index.faiss: damaged, its checksum"),
        (lambda folder: _cut(folder, True), "faiss cannot read it"),
        (_other_kind, "not an IVF-PQ index of 360 x 16"),
        (_other_size, "not an IVF-PQ index of 360 x 16"),
        (_no_cells, "meta.json: damaged"),
    ],
)
def test_damage_is_refused(built, harm, told):
    harm(built.path)
    with pytest.raises(InputError, match=told):
        Index.open(built.path)


def test_a_full_disk(built):
    with pytest.raises(InputError, match=r"/dev/full: faiss cannot write it .*make room"):
        ivfpq.write(built.approximate, pathlib.Path("/dev/full"))


def test_without_faiss(made, first, tmp_path, monkeypatch):
    """Only an approximate index needs it."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    told = r"\(--kind=flat needs no package\): faiss is missing; pip install .*\[faiss\]"
    with pytest.raises(InputError, match=told):
        Index.open(first)
    with pytest.raises(InputError, match=told):
        _build(made, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert len(_build(made, tmp_path / "flat", kind="flat").search(QUERIES, 3)[0]) == len(QUERIES)


def test_queries_that_do_not_fit(built):
    with pytest.raises(InputError, match=r"must be .* with the same D"):
        built.search(QUERIES[:, :5], 3)
    with pytest.raises(InputError, match="k is 0"):
        built.search(QUERIES, 0)
