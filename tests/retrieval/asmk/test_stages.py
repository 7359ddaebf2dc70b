"""Codebook, index and scores from sets of local features."""

import dataclasses
import pickle

import asmk_images
import local_sets
import numpy as np
import pytest

from dolg_tf.evaluation.revisited.score import RevisitedConfig, evaluate
from dolg_tf.retrieval import scores
from dolg_tf.retrieval.asmk import learn, stages, words
from dolg_tf.retrieval.asmk.lists import Inverted
from dolg_tf.retrieval.local import feature_set, writing
from dolg_tf.retrieval.with_faiss import import_faiss
from dolg_tf.stage import tables
from dolg_tf.stage.config import InputError

PHOTOS, DIMENSIONS = 8, 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sets of photos and of queries, the parts of photos 2 and 5; a codebook and an index."""
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    photos = [local_sets.draw(rng, 60, DIMENSIONS) for _ in range(PHOTOS)]
    meta = local_sets.LOCAL_META | {"dtype": "float32"}
    named = [(f"p{row}", photo) for row, photo in enumerate(photos)]
    writing.write(folder / "photos", named, meta)
    parts = [_chosen(photos[row], np.arange(60) < 40) for row in (2, 5)]
    none = local_sets.draw(rng, 0, DIMENSIONS)
    writing.write(folder / "queries", [("q2", parts[0]), ("none", none), ("q5", parts[1])], meta)
    _codebook(folder)
    _build(folder, "index")
    return folder, photos


def _chosen(features, rows):
    parts = ("positions", "scales", "strengths", "descriptors")
    return dataclasses.replace(features, **{part: getattr(features, part)[rows] for part in parts})


def _codebook(folder, name="codebook.npz", **settings):
    given = {"local": f"{folder}/photos", "output": f"{folder}/{name}", "words": 20} | settings
    stages.codebook(stages.CodebookConfig(**given))
    return words.read_codebook(folder / name)


def _build(folder, name, **settings):
    given = {"local": f"{folder}/photos", "codebook": f"{folder}/codebook.npz"} | settings
    return stages.build(stages.BuildConfig(output=f"{folder}/{name}", **given))


def _query(folder, name, **settings):
    given = {"index": f"{folder}/index", "local": f"{folder}/queries"} | settings
    stages.query(stages.QueryConfig(output=f"{folder}/{name}", **given))
    return scores.read(folder / name)


def test_parts_of_photos_find_them(world):
    folder, photos = world
    found = _query(folder, "scores", k=3)
    assert found.queries == ("q2", "none", "q5")
    assert found.ids == tuple(f"p{row}" for row in range(PHOTOS))
    assert found.scores.argmax(axis=1)[[0, 2]].tolist() == [2, 5] and not found.scores[1].any()
    lines = list(tables.read_table(folder / "scores/found.csv", ["query"], ["rank"], ["id"]))
    answers = [values for _, values in lines]
    assert answers[0] == ["q2", "1", "p2"] and answers[6] == ["q5", "1", "p5"]
    assert answers[3:6] == [["none", str(n), f"p{n - 1}"] for n in (1, 2, 3)]  # ties: in order
    # The same from arrays.
    queries = [photos[2].descriptors[:40], photos[2].descriptors[:0], photos[5].descriptors[:40]]
    expected = asmk_images.scores_of(Inverted.open(folder / "index"), queries, 5)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)


def test_its_scores_are_evaluated_like_descriptors(world, tmp_path):
    folder, _ = world
    _query(folder, "evaluated", k=3)
    positives = {"q2": [2], "q5": [5]}
    truth = {
        "imlist": [f"p{row}" for row in range(PHOTOS)],
        "qimlist": [*positives],
        "gnd": [
            {"bbx": [0, 0, 9, 9], "easy": easy, "hard": [], "junk": []}
            for easy in positives.values()
        ],
    }
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(truth))
    given = {"ground_truth": f"{tmp_path}/gnd_x.pkl", "scores": f"{folder}/evaluated"}
    report = evaluate(RevisitedConfig(**given, output=f"{tmp_path}/report.json"))
    assert report["easy"]["mAP"] == report["medium"]["mP@1"] == 1
    found = [
        row for _, row in tables.read_table(folder / "evaluated" / "found.csv", ["query"], ["id"])
    ]
    assert found[0] == ["q2", "p2"] and len(found) == 3 * 3


def test_features_of_how_keep_their_length(world, tmp_path):
    _, photos = world
    meta = local_sets.LOCAL_META | {"dtype": "float32", "kind": "how"}
    named = [("none", local_sets.draw(np.random.default_rng(0), 0, DIMENSIONS)), ("p", photos[0])]
    writing.write(tmp_path / "photos", named, meta)
    with pytest.raises(InputError, match=r"HOW's features of 'p' all have length 1, .*serving"):
        _codebook(tmp_path)
    longer = dataclasses.replace(photos[0], descriptors=2 * photos[0].descriptors)
    writing.write(tmp_path / "longer", [("p", longer)], meta)
    assert len(_codebook(tmp_path, local=f"{tmp_path}/longer")) == 20


def test_settings_reach_index_and_search(world):
    folder, photos = world
    index = _build(folder, "real", binary=False, idf=True, assignments=2, variant="how")
    found = _query(folder, "real_scores", index=f"{folder}/real", alpha=2.0, assignments=3)
    queries = [photos[2].descriptors[:40], photos[2].descriptors[:0], photos[5].descriptors[:40]]
    expected = asmk_images.scores_of(index, queries, 3, alpha=2.0)
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert found.meta["index"]["idf"] and found.meta["assignments"] == 3


def test_a_killed_k_means_continues_as_one_call_of_faiss(world, monkeypatch):
    folder, photos = world
    round_, done = learn._round, []

    def killed(*args):
        done.append(args)
        if len(done) == 4:
            raise KeyboardInterrupt
        return round_(*args)

    monkeypatch.setattr(learn, "_round", killed)
    with pytest.raises(KeyboardInterrupt):
        _codebook(folder, "killed.npz")
    assert not (folder / "killed.npz").exists()
    with pytest.raises(InputError, match="was begun with other features or --words"):
        _codebook(folder, "killed.npz", words=10)
    found = _codebook(folder, "killed.npz")
    assert len(done) == 4 + 7 and not (folder / "killed.unfinished.npz").exists()
    faiss = import_faiss("a codebook")
    clustering = faiss.Clustering(DIMENSIONS, 20)
    clustering.niter, clustering.min_points_per_centroid = 10, 1
    rows = np.concatenate([photo.descriptors for photo in photos])
    clustering.train(rows, faiss.IndexFlatL2(DIMENSIONS))
    expected = faiss.vector_to_array(clustering.centroids).reshape(20, DIMENSIONS)
    np.testing.assert_array_equal(found.centroids, expected)
    assert found.space["model_hash"] == "abc"


def test_a_sample_is_of_all_photos_and_in_order(world):
    folder, photos = world
    found = feature_set.read(folder / "photos")
    rows = np.concatenate([photo.descriptors for photo in photos])
    np.testing.assert_array_equal(learn.sample(found, 1000), rows)
    some = learn.sample(found, 100)
    places = [np.flatnonzero((rows == one).all(axis=1))[0] for one in some]
    assert len(set(places)) == 100 and places == sorted(places)
    assert len({place // 60 for place in places}) == PHOTOS


def test_regions_by_boxes_and_by_crops(world):
    folder, photos = world
    box = (30.5, 40.0, 200.0, 310.0)
    y, x = photos[1].positions.T
    inside = (y >= box[0]) & (x >= box[1]) & (y <= box[2]) & (x <= box[3])
    assert 10 < inside.sum() < 50
    (folder / "boxes.csv").write_text(f"id,top,left,bottom,right\np1,{','.join(map(str, box))}\n")
    boxes = _build(folder, "boxes", regions=f"{folder}/boxes.csv")
    named = [(f"p{row}", photo) for row, photo in enumerate(photos)]
    named.insert(3, ("crops/p1-0", _chosen(photos[1], inside)))
    writing.write(folder / "crops", named, local_sets.LOCAL_META | {"dtype": "float32"})
    (folder / "crops.csv").write_text("id,region\np1,crops/p1-0\n")
    regions, local = f"{folder}/crops.csv", f"{folder}/crops"
    crops = _build(folder, "by_crops", regions=regions, local=local)
    plain = Inverted.open(folder / "index")
    assert boxes.ids == crops.ids == plain.ids
    for name in ("rows", "codes", "norms"):
        np.testing.assert_array_equal(getattr(boxes, name), getattr(crops, name))
    differs = (boxes.codes != plain.codes).any(axis=1)
    assert set(boxes.rows[differs]) == {1}  # the region counts as much as the whole photo


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,region\np1,p9\n", "p9"),
        ("id,region\np9,p1\n", "'p9', which is not a photo"),
        ("id,top,left,bottom,right\np1,5,0,5,9\n", "line 2: the box .* has no pixels"),
        ("id,top,left,bottom,right\np1,5,0,x,9\n", "not four numbers"),
        ("id,top,left,bottom,right,region\np1,5,0,7,9,p2\n", "give either region, or top"),
        ("id\np1\n", "give either region, or top"),
    ],
)
def test_wrong_regions_are_told(world, text, message):
    folder, _ = world
    (folder / "wrong.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        _build(folder, "wrong", regions=f"{folder}/wrong.csv")


def test_features_of_another_model_are_refused(world):
    folder, photos = world
    other = local_sets.LOCAL_META | {"model_hash": "def"}
    writing.write(folder / "other", [("p0", photos[0])], other)
    with pytest.raises(InputError, match=r"model_hash 'abc'.*'def'"):
        _build(folder, "of_other", local=f"{folder}/other")
    with pytest.raises(InputError, match=r"model_hash 'abc'.*'def'"):
        _query(folder, "of_other", local=f"{folder}/other")
    turned = local_sets.LOCAL_META | {"upright": True}
    writing.write(folder / "turned", [("p0", photos[0])], turned)
    with pytest.raises(InputError, match=r"upright False.*True"):
        _query(folder, "of_other", local=f"{folder}/turned")


def test_words_of_another_tool(world):
    folder, _ = world
    centroids = words.read_codebook(folder / "codebook.npz").centroids
    np.savez(folder / "theirs.npz", centroids=centroids)
    theirs = _build(folder, "of_theirs", codebook=f"{folder}/theirs.npz")
    np.testing.assert_array_equal(theirs.codes, Inverted.open(folder / "index").codes)
    np.savez(folder / "narrow.npz", centroids=centroids[:, :8])
    with pytest.raises(InputError, match=r"words of 8 numbers, .* features of 16"):
        _build(folder, "of_narrow", codebook=f"{folder}/narrow.npz")


def test_what_cannot_be_is_told(world):
    folder, _ = world
    with pytest.raises(InputError, match="480 local features are too few for --words=500"):
        _codebook(folder, "large.npz", words=500)
    with pytest.raises(InputError, match="--assignments=21: the codebook has 20 words"):
        _query(folder, "many", assignments=21)
    with pytest.raises(InputError, match="--idf: DELF's variant has no such weights"):
        _build(folder, "idf", variant="delf", idf=True)
    with pytest.raises(InputError, match="exists; give --overwrite"):
        _build(folder, "index")
    with pytest.raises(InputError, match="is not an ASMK index"):
        _query(folder, "scores_of_set", index=f"{folder}/photos")
