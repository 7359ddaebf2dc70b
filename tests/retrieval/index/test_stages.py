"""An index answers as sorting all scores would, and stays whole whatever is done to it."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from halves import halves

from dolg_tf.data.records import tfrecord
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.index import answers, directory, photos, stages
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import (
    AddConfig,
    BuildConfig,
    RebuildConfig,
    RemoveConfig,
)
from dolg_tf.stage.config import InputError

META = {
    "image_root": "photos",
    "model_hash": "old",
    "scales": [0.5, 1.0],
    "crop": False,
    "max_side": 0,
    "whitening": None,
    "bad": [],
}
ROWS = halves(np.random.default_rng(0), 60, 9)
IDS = [f"{'äbc'[i % 3]}/{i % 17}-{i}" for i in range(60)]  # not in order
QUERIES = halves(np.random.default_rng(1), 7, 9)


def _write(path, numbers, **meta):
    """Writes a descriptor set of some of the photos, in the order of the numbers."""
    ids = tuple(IDS[number] for number in numbers)
    descriptors.write(path, DescriptorSet(ids, ROWS[list(numbers)], META | meta))
    return str(path)


def _build(path, numbers, **options):
    kept = _write(path.with_name(f"{path.name}.set"), numbers)
    return stages.build(BuildConfig(descriptors=kept, output=str(path), **options))


def _query_set(path, rows=QUERIES, **meta):
    ids = tuple(f"q{row}" for row in range(len(rows)))
    descriptors.write(path, DescriptorSet(ids, rows, META | meta))
    return str(path)


def _oracle(ids, rows, query, k):
    """Sorts (-score, id) pairs."""
    pairs = sorted((-float(row @ query), id_) for id_, row in zip(ids, rows, strict=True))
    return [(id_, -score) for score, id_ in pairs[:k]]


def _answers(found, queries, k):
    scores, ranks = found.search(queries, k)
    return [
        [(found.ids[row], score) for row, score in zip(*line, strict=True)]
        for line in zip(ranks, scores.tolist(), strict=True)
    ]


def _bytes(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def _lines(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture
def built(tmp_path):
    return _build(tmp_path / "index", range(60)).path


# --- build and query -----------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 9, 59, 60, 1000])
def test_equal_scores_are_ranked_by_id(built, k):
    expected = [_oracle(IDS, ROWS, query, k) for query in QUERIES]
    assert _answers(Index.open(built), QUERIES, k) == expected


def test_half_precision_and_several_shards(tmp_path, built):
    """What is stored in halves is searched in float32."""
    found = DescriptorSet(tuple(IDS), ROWS, META | {"dtype": "float16"})
    descriptors.write(tmp_path / "set", found, shard_rows=11)
    other = stages.build(BuildConfig(descriptors=str(tmp_path / "set"), output=str(tmp_path / "o")))
    assert _bytes(other.path) == _bytes(built)


def test_the_csv(tmp_path, built):
    queries = QUERIES + np.float32(1 / 3)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    settings = {"index": str(built), "descriptors": _query_set(tmp_path / "queries", queries)}
    output = tmp_path / "found.csv"
    answers.query(QueryConfig(output=str(output), k=4, **settings))
    header, *lines = _lines(output)
    assert header == ["query", "rank", "id", "score"]
    found = _answers(Index.open(built), queries, 4)
    expected = [
        [f"q{row}", str(rank), *pair]
        for row, pairs in enumerate(found)
        for rank, pair in enumerate(pairs, 1)
    ]
    assert [[*line[:3], float(np.float32(line[3]))] for line in lines] == expected
    with pytest.raises(InputError, match="exists; give --overwrite"):
        answers.query(QueryConfig(output=str(output), **settings))
    answers.query(QueryConfig(output=str(output), k=1000, overwrite=True, **settings))
    assert len(_lines(output)) == 1 + 7 * 60


def test_no_queries(tmp_path, built):
    settings = {"index": str(built), "descriptors": _query_set(tmp_path / "queries", QUERIES[:0])}
    answers.query(QueryConfig(output=str(tmp_path / "found.csv"), **settings))
    assert _lines(tmp_path / "found.csv") == [["query", "rank", "id", "score"]]


def test_build_refuses(tmp_path, built):
    with pytest.raises(InputError, match="needs a descriptor set with the ids"):
        _build(tmp_path / "empty", [])
    np.save(tmp_path / "rows.npy", ROWS)
    with pytest.raises(InputError, match="needs a descriptor set with the ids"):
        stages.build(
            BuildConfig(descriptors=str(tmp_path / "rows.npy"), output=str(tmp_path / "empty"))
        )
    assert not (tmp_path / "empty").exists()
    with pytest.raises(InputError, match="exists; give --overwrite"):
        _build(built, range(3))
    assert len(Index.open(built)) == 60
    assert len(_build(built, range(3), overwrite=True)) == 3
    with pytest.raises(InputError, match="directory of something else"):
        _build(tmp_path, range(3), overwrite=True)


# --- add and remove ------------------------------------------------------------------


def _change(path, rng, here):
    """Adds or removes photos by chance; returns the numbers of those that are there then."""
    there = sorted(set(range(60)) - here)
    if there and (len(here) == 1 or rng.random() < 0.5):
        new = rng.permutation(there)[: rng.integers(1, len(there) + 1)].tolist()
        kept = _write(path.with_name(f"set{rng.integers(10**9)}"), new)
        stages.add(AddConfig(index=str(path), descriptors=kept))
        return here | set(new)
    gone = rng.permutation(sorted(here))[: rng.integers(1, len(here))].tolist()
    names = path.with_name("gone.txt")
    names.write_text("".join(f"{IDS[number]}\n" for number in gone), encoding="utf-8")
    stages.remove(RemoveConfig(index=str(path), ids=str(names)))
    return here - set(gone)


@pytest.mark.parametrize("seed", range(4))
def test_changes_give_what_is_built_of_the_same_photos(tmp_path, seed):
    """Byte for byte."""
    rng = np.random.default_rng(seed)
    here = set(rng.permutation(60)[:20].tolist())
    path = _build(tmp_path / "index", here).path
    for step in range(5):
        here = _change(path, rng, here)
        numbers = rng.permutation(sorted(here)).tolist()
        assert _bytes(path) == _bytes(_build(tmp_path / f"fresh{step}", numbers).path)
    expected = [_oracle([IDS[i] for i in numbers], ROWS[numbers], query, 9) for query in QUERIES]
    assert _answers(Index.open(path), QUERIES, 9) == expected


def test_an_open_index_is_not_changed(tmp_path, built):
    reader = Index.open(built)
    (tmp_path / "gone.txt").write_text("\n".join(IDS[:50]), encoding="utf-8")
    assert len(stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "gone.txt")))) == 10
    expected = [_oracle(IDS, ROWS, query, 60) for query in QUERIES]
    assert _answers(reader, QUERIES, 60) == expected


def test_add_and_remove_refuse(tmp_path, built):
    before = _bytes(built)
    with pytest.raises(InputError, match=rf"already has 2 of these photos, such as '{IDS[5]}'"):
        stages.add(AddConfig(index=str(built), descriptors=_write(tmp_path / "set", [5, 6])))
    for names, told in (
        (["x", "a", IDS[3]], r"2 of its 3 ids are not in .*index, such as 'a'"),
        (IDS, "all photos of .*delete the directory instead"),
    ):
        (tmp_path / "gone.txt").write_text("\n".join(names), encoding="utf-8")
        with pytest.raises(InputError, match=told):
            stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "gone.txt")))
    with pytest.raises(InputError, match=r"none.txt: cannot be read"):
        stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "none.txt")))
    with pytest.raises(InputError, match=r"no index; `dolg index build`"):
        stages.add(AddConfig(index=str(tmp_path / "none"), descriptors=str(tmp_path / "set")))
    assert not list(tmp_path.glob(".none*"))
    assert _bytes(built) == before


def test_a_damaged_index_is_not_changed(tmp_path, built):
    """Searching reads no checksum of the rows; what is written anew must not hide the damage."""
    data = bytearray((built / "index.faiss").read_bytes())
    data[-2] ^= 1
    (built / "index.faiss").write_bytes(data)
    before = _bytes(built)
    (tmp_path / "gone.txt").write_text(IDS[0], encoding="utf-8")
    with pytest.raises(InputError, match=r"index.faiss: damaged, its checksum is wrong"):
        stages.remove(RemoveConfig(index=str(built), ids=str(tmp_path / "gone.txt")))
    assert _bytes(built) == before


def test_each_change_takes_the_lock(tmp_path, built):
    before, new = _bytes(built), _write(tmp_path / "set", [1])
    (tmp_path / "gone.txt").write_text(IDS[0], encoding="utf-8")
    path = str(built)
    with directory.locked(built):
        for run, settings in (
            (stages.add, AddConfig(index=path, descriptors=new)),
            (stages.remove, RemoveConfig(index=path, ids=str(tmp_path / "gone.txt"))),
            (stages.rebuild, RebuildConfig(index=path, saved_model="m")),
            (stages.build, BuildConfig(descriptors=new, output=path, overwrite=True)),
        ):
            with pytest.raises(InputError, match="another process is changing this index"):
                run(settings)
    assert _bytes(built) == before


def test_photos_of_another_folder_are_added_aloud(tmp_path, caplog):
    path = _build(tmp_path / "index", range(3)).path
    other = _write(tmp_path / "set", range(3, 5), image_root="elsewhere")
    stages.add(AddConfig(index=str(path), descriptors=other))
    assert "added photos are in elsewhere, those of the index in photos" in caplog.text
    assert "twice" not in caplog.text


@pytest.mark.parametrize(
    ("old", "new"), [(["one", "two"], ["one.jpg", "one.png"]), (["one.jpg", "two"], ["one"])]
)
def test_photos_that_may_be_there_under_another_id_are_told(tmp_path, caplog, old, new):
    """An id gets its suffix once another file of that name comes."""
    for name, ids in (("old", old), ("new", new)):
        descriptors.write(tmp_path / name, DescriptorSet(tuple(ids), ROWS[: len(ids)], META))
    path = str(tmp_path / "index")
    stages.build(BuildConfig(descriptors=str(tmp_path / "old"), output=path))
    stages.add(AddConfig(index=path, descriptors=str(tmp_path / "new")))
    assert f"{len(new)} photos may be there twice now, such as 'one' and 'one.jpg'" in caplog.text


def test_turned_records_are_no_queries_for_photos_that_were_not(tmp_path, built, monkeypatch):
    """The remedy names no flag that the command lacks."""
    records = tmp_path / "records"
    tfrecord.write_shard(records, [tfrecord.encode(b"\xff\xd8\xff", "a", 1, 1, None, upright=True)])
    monkeypatch.setattr(photos, "_describer", lambda *_: None)
    with pytest.raises(InputError, match=r"orientation, but those of .*: build the records with"):
        photos.describe_queries(Index.open(built), "model", tmp_path / "record*", 0)


# --- what was made in another way ----------------------------------------------------

OTHER = {"model_hash": "new", "scales": [1.0], "whitening": {"sha256": "1"}}


def _of_cut(meta):
    return {"crop": True, "query_scale": "photo", "box_rounding": "dolg"} | meta


@pytest.mark.parametrize(
    ("key", "values", "remedy"),
    [
        ("upright", (True, False), "extract both with --upright, or both with --noupright"),
        ("query_scale", (_of_cut({}), _of_cut({"query_scale": "crop"})), "extract with the model"),
        ("box_rounding", (_of_cut({}), _of_cut({"box_rounding": "how"})), "extract with the model"),
    ],
)
def test_photos_prepared_otherwise_do_not_join_an_index(tmp_path, key, values, remedy):
    old, new = (value if isinstance(value, dict) else {key: value} for value in values)
    made = _write(tmp_path / "set", range(3), **old)
    stages.build(BuildConfig(descriptors=made, output=str(tmp_path / "index")))
    settings = AddConfig(
        index=str(tmp_path / "index"), descriptors=_write(tmp_path / "added", [7], **new)
    )
    with pytest.raises(InputError, match=f"added has {key} .*, .*index has .*: {remedy}"):
        stages.add(settings)
    queries = _query_set(tmp_path / "queries", **new)
    settings = QueryConfig(
        index=str(tmp_path / "index"), descriptors=queries, output=str(tmp_path / "f.csv")
    )
    if key == "upright":
        with pytest.raises(InputError, match=f"has upright False, .* has True: {remedy}"):
            answers.query(settings)
    else:
        answers.query(settings)


def test_sets_and_indexes_of_older_releases_say_nothing_of_orientation(tmp_path):
    """They are not turned, and their queries are shrunk by themselves."""
    index = _build(tmp_path / "index", range(3))
    assert index.meta["upright"] is False and "query_scale" not in index.meta
    old = _write(tmp_path / "old", [7], crop=True)
    meta = json.loads((tmp_path / "old/meta.json").read_text())
    assert "query_scale" not in meta and "upright" not in meta
    found = descriptors.read(old).meta
    assert (found["query_scale"], found["box_rounding"]) == ("crop", "dolg")
    stages.add(AddConfig(index=str(index.path), descriptors=_write(tmp_path / "added", [7])))


@pytest.mark.parametrize("key", [*OTHER, "crop", "max_side"])
def test_descriptors_of_another_making_are_refused(tmp_path, key):
    path = _build(tmp_path / "index", range(3)).path
    other = {key: (OTHER | {"crop": True, "max_side": 9})[key]}
    with pytest.raises(InputError, match=f"has {key} .*, .*index has .*: extract with the model"):
        added = _write(tmp_path / "added", [7], **other)
        stages.add(AddConfig(index=str(path), descriptors=added))
    queries = _query_set(tmp_path / "queries", **other)
    settings = QueryConfig(index=str(path), descriptors=queries, output=str(tmp_path / "f.csv"))
    if key in OTHER:
        with pytest.raises(InputError, match=f"has {key} "):
            answers.query(settings)
        assert not (tmp_path / "f.csv").exists()
    else:  # such as queries that are cut to their boxes
        answers.query(settings)


def test_descriptors_without_names_or_of_another_width_are_refused(tmp_path, built):
    np.save(tmp_path / "rows.npy", ROWS)
    with pytest.raises(InputError, match=r"bare .npy, which names neither photos nor model"):
        stages.add(AddConfig(index=str(built), descriptors=str(tmp_path / "rows.npy")))
    other = _query_set(tmp_path / "other", np.eye(2, 5))
    for run, settings in (
        (stages.add, AddConfig(index=str(built), descriptors=other)),
        (
            answers.query,
            QueryConfig(index=str(built), descriptors=other, output=str(tmp_path / "f")),
        ),
    ):
        with pytest.raises(InputError, match=r"has width 5, .*index has 9"):
            run(settings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"images": "i"},
        {"saved_model": "m"},
        {"descriptors": "d", "saved_model": "m"},
        {"descriptors": "d", "images": "i", "saved_model": "m"},
    ],
)
def test_queries_are_descriptors_or_photos(options):
    with pytest.raises(InputError, match="give either --descriptors, or --images and"):
        QueryConfig(index="i", output="o", **options)


# --- the threshold -------------------------------------------------------------------


def test_matches_once_calibrated(tmp_path, built, caplog):
    caplog.set_level("INFO")
    settings = {"index": str(built), "descriptors": _query_set(tmp_path / "queries")}
    first = _answers(Index.open(built), QUERIES, 3)
    best = [pairs[0][1] for pairs in first]
    calibration = {"threshold": float(np.median(best)), "precision": 0.9}
    directory.set_calibration(built, calibration, Index.open(built).meta)
    output = tmp_path / "found.csv"
    answers.query(QueryConfig(output=str(output), k=3, **settings))
    header, *lines = _lines(output)
    assert header == ["query", "rank", "id", "score", "match"]
    scores = [score for pairs in first for _, score in pairs]
    expected = ["match" if score >= np.median(best) else "no match" for score in scores]
    assert [line[4] for line in lines] == expected and len(set(expected)) == 2
    matches = sum(score >= np.median(best) for score in best)
    assert 0 < matches < 7 and f"{matches} of 7 queries have a match" in caplog.text
    assert caplog.text.count("no match; the nearest is") == 7 - matches


# --- the command ---------------------------------------------------------------------


def test_command_line(tmp_path):
    program = [sys.executable, "-m", "dolg_tf", "index"]

    def run(*argv, code=0):
        done = subprocess.run([*program, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done

    made, new = _write(tmp_path / "set", range(9)), _write(tmp_path / "new", range(9, 12))
    path, output = f"--index={tmp_path / 'index'}", f"--output={tmp_path / 'found.csv'}"
    told = run("query", path, f"--descriptors={new}", output, code=1).stderr
    assert told.startswith("python -m dolg_tf index query: error: ")
    assert "no index" in told and len(told.strip().splitlines()) == 1
    assert "--descriptors is required" in run("build", code=1).stderr
    assert "--kind" in run("build", "--help").stdout
    run("build", f"--descriptors={made}", f"--output={tmp_path / 'index'}")
    assert "12 photos, before: 9" in run("add", path, f"--descriptors={new}").stderr
    (tmp_path / "gone.txt").write_text(IDS[0], encoding="utf-8")
    assert "11 photos, before: 12" in run("remove", path, f"--ids={tmp_path / 'gone.txt'}").stderr
    told = run("query", path, f"--descriptors={new}", output, "--k=1").stderr
    best = _oracle(IDS[1:12], ROWS[1:12], ROWS[9], 1)[0]
    assert f"{IDS[9]}: {best[0]}, score {best[1]:.4f}" in told
    assert len(_lines(tmp_path / "found.csv")) == 4
