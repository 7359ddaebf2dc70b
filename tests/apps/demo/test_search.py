"""The engine behind the page answers as the index does."""

import concurrent.futures
import csv
import dataclasses
import io
import os
import pathlib
import types

import demo_world
import local_sets
import numpy as np
import pytest
import stand_in_saved_model
from demo_world import COLOURS, encoded, scene
from PIL import Image
from waiting import wait_for

from dolg_tf.apps.demo import html as page_html
from dolg_tf.apps.demo import indexed, search
from dolg_tf.apps.demo.answers.ranking import LOCAL, RERANKINGS
from dolg_tf.apps.demo.collection import Expansion, Progress, Searchable, Threshold, places
from dolg_tf.apps.demo.indexed import IndexedPhotos
from dolg_tf.apps.demo.search import Engine, Query
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract.model import LoadedModel
from dolg_tf.retrieval.index import answers, directory, stages
from dolg_tf.retrieval.index.answers import QueryConfig
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import BuildConfig
from dolg_tf.retrieval.local import writing
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.retrieval.verification.pairs import VerifyConfig
from dolg_tf.stage.config import InputError, to_dict


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return demo_world.make(tmp_path_factory.mktemp("world"))


def _engine(model, index, image_root="", max_side=0):
    made = IndexedPhotos(model, index, image_root, max_side)
    made.load()
    return Engine(made, 10**7, 10**7)


@pytest.fixture(scope="module")
def engine(world):
    return _engine(*world, max_side=1024)


def _query(image):
    return Query("a.png", encoded(image), image.shape[1], image.shape[0])


def _ids(answer):
    return [photo.id for photo in answer.found]


def _colour(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg))).mean((0, 1))


@pytest.mark.parametrize("name", COLOURS)
def test_the_same_scene_leads(engine, name):
    answer = engine.search(_query(scene(name)), k=len(COLOURS))
    rows = {other: demo_world.descriptor(scene(other)) for other in COLOURS}
    expected = sorted(COLOURS, key=lambda other: (-float(rows[other] @ rows[name]), other))
    assert _ids(answer) == expected and expected[0] == name and answer.searched == len(COLOURS)
    for photo in answer.found:
        assert photo.score == pytest.approx(float(rows[photo.id] @ rows[name]), abs=1e-5)
        assert photo.matches is None and photo.alike == ()
        np.testing.assert_allclose(
            _colour(engine.thumbnail(photo.id, 320)), COLOURS[photo.id], 0, 4
        )


def test_a_photo_of_the_collection_is_not_its_own_answer(engine, monkeypatch):
    rows = {other: demo_world.descriptor(scene(other)) for other in COLOURS}
    others = [name for name in COLOURS if name != "red"]
    expected = sorted(others, key=lambda other: (-float(rows[other] @ rows["red"]), other))
    query = engine.stored("red")
    assert (query.name, query.width, query.height, query.id) == ("red.png", 96, 64, "red")
    assert _ids(engine.search(query, (0, 0, 50, 64), k=48)) == expected
    # The whole of it was described before.
    monkeypatch.setattr(LoadedModel, "describe", None)
    answer = engine.search(query, k=48)
    assert _ids(answer) == expected and answer.searched == len(COLOURS) - 1
    with pytest.raises(InputError, match=r"none is not on disk any more"):
        engine.stored("none")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_it_answers_as_the_command_does(tmp_path, kind):
    """Photos of a phone: large, and turned by EXIF as those of the index were."""
    world = demo_world.make(tmp_path, upright=True, max_side=100)
    made = _engine(*world, max_side=1024)
    rng, exif = np.random.default_rng(3), Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((1300, 900))
    data = encoded(np.asarray(noise), kind, exif=exif)
    (tmp_path / "photo.jpg").write_bytes(data)
    model, built = map(str, world)
    options = {"images": str(tmp_path / "photo.jpg"), "output": str(tmp_path / "found.csv")}
    answers.query(QueryConfig(index=built, saved_model=model, k=4, **options))
    with (tmp_path / "found.csv").open(newline="") as file:
        expected = [(row["id"], np.float32(row["score"])) for row in csv.DictReader(file)]
    query = made.read("photo.jpg", data)
    assert (query.width, query.height) == (900, 1300)
    for box in (None, (0, 0, 900, 1300)):
        answer = made.search(query, box, k=4)
        assert [(photo.id, np.float32(photo.score)) for photo in answer.found] == expected


# --- box and sizes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "first"),
    [
        ((0, 0, 32, 64), "green"),
        ((32, 10, 64, 60), "violet"),
        ((64, 0, 96, 64), "blue"),
        ((70.4, -50, 4000, 30), "blue"),  # what lies outside counts not
    ],
)
def test_a_box_is_searched_for(engine, box, first):
    assert _ids(engine.search(_query(scene("green", "violet", "blue")), box))[0] == first


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (96, 0, 120, 64), (-9, 0, 0, 64)])
def test_a_box_without_pixels(engine, box):
    with pytest.raises(InputError, match="contains no pixel of the photo, which has 96 x 64"):
        engine.image(_query(scene("red")), box)


def test_boxes_are_told_in_pixels_of_the_photo_and_keep_its_scale(engine):
    image = scene("green", "blue", width=5000, height=500)
    query = engine.read("wide.png", encoded(image))
    assert (query.width, query.height) == (5000, 500)
    assert _ids(engine.search(query, (2600, 0, 5000, 500)))[0] == "blue"
    assert engine.image(query).shape == (102, 1024, 3)
    # By the factor of the whole photo, as extraction shrinks queries.
    assert engine.image(query, (0, 0, 2500, 250)).shape == (51, 512, 3)
    assert Image.open(io.BytesIO(engine.picture(query))).size == (1600, 160)


@pytest.mark.parametrize(
    ("of_index", "asked", "side"),
    [(0, 0, 2048), (0, 4000, 2048), (0, 100, 100), (80, 100, 80), (80, 0, 80)],
)
def test_photos_are_shrunk_to_the_smaller_of_both_sides(tmp_path, of_index, asked, side):
    world = demo_world.make(tmp_path, max_side=of_index)
    query = _query(scene("red", width=2400, height=1200))
    made = Engine(IndexedPhotos(*world, "", asked), 1, 1)
    assert made.image(query).shape == (side // 2, side, 3)


# --- scales, re-ranking, threshold ---------------------------------------------------


def test_scales(engine, monkeypatch):
    asked = []
    describe = LoadedModel.describe
    monkeypatch.setattr(
        LoadedModel, "describe", lambda m, x, s: asked.append(s) or describe(m, x, s)
    )
    query = _query(scene("red", "violet", width=64))
    for scales in (search.OWN_SCALES, "one", "five"):
        engine.search(query, scales=scales)
    assert asked == [stand_in_saved_model.SCALES, (1.0,), (0.3535, 0.5, 0.7071, 1.0, 1.4142)]
    engine.search(query, scales="five", reranking="alpha_qe")
    assert len(asked) == 3  # what was described is kept
    with pytest.raises(InputError, match="Unknown scales 'seven'"):
        engine.search(query, scales="seven")


def _many(folder, count=60):
    """A world with more photos than colours: near enough to one another to be re-ranked."""
    model, _ = demo_world.make(folder)
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(count, 3)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    meta = Index.open(folder / "index").meta
    kept = {key: meta[key] for key in ("image_root", *directory.SAME_MAKING) if key in meta}
    ids = tuple(f"photo{number:02d}" for number in range(count))
    descriptors.write(folder / "many", DescriptorSet(ids, rows, kept | {"bad": []}))
    return model, folder / "many"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder, patch = tmp_path_factory.mktemp("many"), pytest.MonkeyPatch()
    patch.setattr(indexed, "_ALIKE", None)  # photos of three numbers have many that are alike
    model, kept = _many(folder)
    stages.build(BuildConfig(descriptors=str(kept), output=str(folder / "exact")))
    yield _engine(model, folder / "exact")
    patch.undo()


BY_DESCRIPTORS = tuple(name for name in RERANKINGS if name not in LOCAL)


@pytest.mark.parametrize("name", BY_DESCRIPTORS)
def test_rerankings_order_as_evaluation_does(many, name):
    image = scene("yellow", "violet", "red")
    row = demo_world.descriptor(image)[None]
    now = many.now().photos
    rows = np.asarray(now.rows)
    answer = many.search(_query(image), reranking=name, k=20)
    refined = methods.apply(RerankConfig(rerank=name), row, rows)
    if refined.head is not None:
        expected = refined.head[0]
    else:
        expected = np.argsort(-(refined.queries @ rows.T)[0], kind="stable")
    assert _ids(answer) == [now.ids[rank] for rank in expected[:20]]
    expected = rows[[now.ids.index(id_) for id_ in _ids(answer)]] @ row[0]
    np.testing.assert_allclose([photo.score for photo in answer.found], expected, atol=1e-5)


def test_rerankings_differ(many):
    query = _query(scene("yellow", "violet", "red"))
    orders = {tuple(_ids(many.search(query, reranking=x, k=40))) for x in BY_DESCRIPTORS}
    assert len(orders) == len(BY_DESCRIPTORS) == len(many.rerankings)
    with pytest.raises(InputError, match="Unknown re-ranking 'alpha_dba'"):
        many.search(query, reranking="alpha_dba")


def _told(engine, answer, scales=search.OWN_SCALES, reranking="none"):
    return page_html.answer(answer, engine, scales, reranking)


def test_the_threshold_says_what_matches(tmp_path):
    model, built = demo_world.make(tmp_path)
    calibration = {"threshold": 0.9, "precision": 0.95}
    directory.set_calibration(built, calibration, Index.open(built).meta)
    made = _engine(model, built)
    answer = made.search(_query(scene("red")))
    assert [photo.matches for photo in answer.found] == [
        photo.score >= 0.9 for photo in answer.found
    ]
    page = _told(made, answer)
    assert "No photo of the same place" in page and "estimate" not in page
    assert "This very photo is among those that are searched." in page and ">this photo<" in page
    assert "photo scores" not in _told(made, made.search(_query(scene("red")), k=1))
    near = made.search(_query(scene("red", "red", "red", "red", "red", "yellow")))
    page = _told(made, near)
    assert "1 photo shows the same place" in page and "this photo" not in page.lower()
    assert "Of labelled pairs with 0.900 or more, 95\u00a0% show the same place." in page
    none = made.search(_query(scene("red", "green")))
    page = _told(made, none, "one", "superglobal")
    best = max(photo.score for photo in none.found)
    assert (
        "No photo of the same place" in page
        and f"The most similar photo scores {best:.3f}." in page
    )
    assert "Ordered by SuperGlobal" in page and "described at other sizes (0.5, 1)" in page


def test_without_a_threshold_the_page_says_so(engine):
    page = _told(engine, engine.search(_query(scene("red"))))
    assert "Nothing has measured yet" in page and "same place<" not in page


# --- photos that are still being described -------------------------------------------


class Folder:
    """Photos that are described one by one, in twelve numbers, and whitened later."""

    title, how, scales, has_maps, has_local = "photos", IndexedPhotos, (1.0,), False, False

    def __init__(self, like, rows):
        self.how, self._rows = like.how, rows
        self.now = Searchable((), rows[:0])

    def searchable(self):
        return self.now

    def progress(self):
        return Progress(len(self.now.ids), len(self._rows), 2.0, "Describing your photos")

    def describe(self, image, scales):
        return np.float32([[0, 1, 0]])

    def file(self, id_):
        return pathlib.Path(f"/nowhere/{id_}.jpg")


def test_those_that_are_done_are_searched(engine):
    rows = np.float32([[0, 1, 0], [0, 0.6, 0.8], [1, 0, 0], [0.6, 0.8, 0]])
    folder = Folder(engine.collection, rows)
    made, query = Engine(folder, 10**6, 10**6), _query(scene("red"))
    with pytest.raises(InputError, match="No photo has been described yet"):
        made.search(query)
    first = made.now()
    folder.now = Searchable(("a", "b"), rows[:2])
    assert _ids(made.search(query)) == ["a", "b"] and made.now().version == first.version + 1
    assert made.now() is made.now()
    # Then what varies within a place is learnt, and the query goes through the same.
    turn = np.float32([[0, 0, 1], [0, 1, 0], [1, 0, 0]])[:, [1, 0, 2]]
    warning = "It rests on few pairs."
    threshold = Threshold(0.55, True, 0.9, 0.7, 0.97, 12, warning)
    folder.now = Searchable(
        ("a", "b", "c", "d"), rows @ turn, lambda raw: raw @ turn, threshold=threshold
    )
    answer = made.search(query)
    assert [(photo.id, round(photo.score, 4)) for photo in answer.found] == [
        *(("a", 1), ("d", 0.8), ("b", 0.6), ("c", 0))
    ]
    page = _told(made, answer)
    assert "2 other photos probably show the same place" in page and warning in page
    assert "0.550 is an estimate from your photos, without labels; of pairs" in page
    assert "about 90\u00a0% (70 to 97\u00a0%) are right" in page
    threshold = dataclasses.replace(threshold, warning="")
    folder.now = dataclasses.replace(folder.now, threshold=threshold)
    page = _told(made, made.search(query))
    assert "without labels, which rests on 12 pairs; of pairs" in page
    folder.now = dataclasses.replace(folder.now, threshold=dataclasses.replace(threshold, score=2))
    assert "Probably no photo of the same place" in _told(made, made.search(query))
    status = page_html.status(Progress(2, 4, 0.5, "Describing", [("a.heic", "no HEIC here")]))
    assert "2 of 4 photos" in status and "4s left" in status and "a.heic: no HEIC here" in status
    assert page_html.status(Progress(4, 4)) == ""


def test_a_name_that_is_no_text_breaks_nothing(engine):
    folder = Folder(engine.collection, np.eye(3, dtype=np.float32))
    folder.title, folder.file = "caf\udce9", lambda id_: pathlib.Path(f"/caf\udce9/{id_}.jpg")
    folder.now = Searchable(("a", "b"), folder._rows[:2], places=[np.array([0, 1])])
    made = Engine(folder, 10**6, 10**6)
    pages = (
        page_html.page(made),
        page_html.status(Progress(2, 3, unread=[("/caf\udce9.jpg", "its name is not UTF-8")])),
        page_html.place(made, "a", 9),
        _told(made, made.search(_query(scene("red")))),
    )
    for page in pages:
        assert b"caf?" in page.encode()


def test_a_query_is_averaged_with_its_nearest_photos(engine):
    """Its order is that of the average, without itself in it; scores compare it alone."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)) + np.float32([0.2, 1, 0])
    rows = np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    rows[7] = [0, 1, 0]  # what the folder describes every photo as
    folder = Folder(engine.collection, rows)
    ids = tuple(f"{number:02d}" for number in range(40))
    folder.now = Searchable(ids, rows, alike=None, expansion=Expansion(3, 2.0))
    found = Engine(folder, 10**6, 10**6).search(_query(scene("red")), k=40).found
    near = [row for row in np.argsort(-rows[:, 1]) if row != 7][:3]
    total = rows[7] + sum(rows[row, 1] ** 2 * rows[row] for row in near)
    assert [int(photo.id) for photo in found] == list(np.argsort(-(rows @ total)))
    scores = [photo.score for photo in found]
    np.testing.assert_allclose(scores, [rows[int(photo.id), 1] for photo in found], atol=1e-6)
    assert scores != sorted(scores, reverse=True)
    made = Engine(folder, 10**6, 10**6)
    told = "Ordered with the help of the nearest ones"
    answer = made.search(_query(scene("red")))
    assert told in _told(made, answer) and told not in _told(made, answer, "own", "superglobal")


def test_photos_that_are_nearly_the_same_share_a_tile(engine):
    rows = np.float32([[1, 0, 0], [0.6, 0.8, 0], [0.61, 0.79, 0], [0.62, 0.78, 0], [0, 0, 1]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    folder = Folder(engine.collection, rows)
    folder.now = Searchable(tuple("abcde"), rows, alike=0.99)
    made = Engine(folder, 10**6, 10**6)
    found = made.search(_query(scene("red")), k=2).found  # (0, 1, 0)
    assert [photo.id for photo in found] == ["b", "a"]
    assert [photo.id for photo in found[0].alike] == ["c", "d"] and found[1].alike == ()
    assert found[0].alike[0].score < found[0].score
    # Those that a whitening has drawn together are as far apart as before.
    folder.now = dataclasses.replace(folder.now, raw=np.eye(5, dtype=np.float32))
    assert _ids(made.search(_query(scene("red")), k=3)) == ["b", "c", "d"]


def test_places():
    rows = np.eye(8, dtype=np.float32)[[0, 0, 1, 2, 2, 2, 3]]
    rows[1] = rows[4] = [0.8, 0, 0.6, 0, 0, 0, 0, 0]
    rows[5] = [0.6, 0, 0.8, 0, 0, 0, 0, 0]
    found = places(rows, np.array([1, 1, -1, 0, 0, 0, -1]))
    # Of three, the one between both others stands for them.
    assert [place.tolist() for place in found] == [[5, 3, 4], [0, 1]]
    assert places(rows, np.full(7, -1)) == () and places(rows[:0], np.zeros(0, int)) == ()


def test_places_of_an_index(tmp_path):
    model, built = demo_world.make(tmp_path)
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(12, 32)), 5, axis=0)
    rows = np.float32(centres + 0.7 * rng.normal(size=centres.shape))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    meta = Index.open(built).meta
    kept = {key: meta[key] for key in ("image_root", *directory.SAME_MAKING) if key in meta}
    ids = tuple(f"{number // 5:02d}/{number % 5}" for number in range(60))
    descriptors.write(tmp_path / "many", DescriptorSet(ids, rows, kept | {"bad": []}))
    stages.build(BuildConfig(descriptors=str(tmp_path / "many"), output=str(tmp_path / "grouped")))
    made = _engine(model, tmp_path / "grouped")
    wait_for(lambda: not made.collection.progress().doing)
    at = made.now()
    assert len(at.photos.places) >= 10
    for place in at.photos.places:
        assert len({at.photos.ids[row][:2] for row in place}) == 1
    one = at.photos.ids[at.photos.places[0][-1]]
    assert at.place(one) is at.photos.places[0] and at.place("none") is None
    first = page_html.places(made, 1)
    assert f"{len(at.photos.places)} places" in first and "Show more places" in first


# --- an index that is approximate, visitors at once, photos of phones -----------------


def test_an_approximate_index(tmp_path):
    pytest.importorskip("faiss")
    model, kept = _many(tmp_path, 300)
    settings = BuildConfig(
        descriptors=str(kept), output=str(tmp_path / "small"), kind="ivfpq", nlist=2, m=3, nprobe=2
    )
    stages.build(settings)
    made, index = _engine(model, tmp_path / "small"), Index.open(tmp_path / "small")
    assert made.rerankings == ("none",)
    row = demo_world.descriptor(scene("red", "blue"))[None]
    scores, ranks = index.search(row, 12)
    plain = made.search(_query(scene("red", "blue")), k=12)
    assert _ids(plain) == [index.ids[rank] for rank in ranks[0]]
    np.testing.assert_allclose([photo.score for photo in plain.found], scores[0], atol=1e-4)


def test_several_visitors_at_once(engine):
    names = list(COLOURS) * 8
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: _ids(engine.search(_query(scene(name)), k=1)), names))
    assert answers == [[name] for name in names]


@pytest.mark.parametrize("upright", [True, False, None])
def test_a_photo_is_turned_as_those_of_the_index_were(tmp_path, upright):
    """The same file in the index and on the page: cosine 1."""
    about = {} if upright is None else {"upright": upright}
    model, built = demo_world.make(tmp_path, **about)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = scene("red", "blue")
    data = encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0)
    (tmp_path / "photos/red.png").write_bytes(data)
    made = _engine(model, built)
    query = made.read("phone.jpg", data)
    assert (query.width, query.height) == ((64, 96) if upright else (96, 64))
    shown = np.rot90(stored, -1) if upright else stored
    np.testing.assert_allclose(made.image(query).astype(int), shown, atol=6)
    for picture in (made.picture(query), made.thumbnail("red", 320)):
        assert Image.open(io.BytesIO(picture)).size == (query.width, query.height)
    # The upper half of what is shown.
    half = made.image(query, (0, 0, query.width, query.height // 2))
    np.testing.assert_allclose(half.astype(int), shown[: query.height // 2], atol=6)


# --- photos of the index, and its map ------------------------------------------------


def test_photos_that_are_gone_or_outside_are_not_shown(tmp_path, caplog):
    model, built = demo_world.make(tmp_path)
    folder = tmp_path / "photos"
    (folder / "red.png").unlink()
    (folder / "blue.png").write_bytes(b"no photo")
    (folder / "green.png").unlink()
    os.mkfifo(folder / "green.png")
    (folder / "yellow.png").unlink()
    (folder / "yellow.png").mkdir()
    made = _engine(model, built)
    answer = made.search(_query(scene("red")), k=48)
    gone = {photo.id for photo in answer.found if made.thumbnail(photo.id, 320) is None}
    assert gone == {"red", "blue", "green", "yellow"}
    assert _told(made, answer).count("photo not on disk") == 3  # a damaged one is
    made.collection.check_photos()
    assert "holds none" not in caplog.text
    (tmp_path / "secret.png").write_bytes(encoded(scene("red")))
    for id_ in ("../secret", "a/../../secret", str(tmp_path / "secret"), "a\0b", "none"):
        assert made.collection.file(id_) is None and made.thumbnail(id_, 320) is None
    # A suffix in any case, as extraction finds it.
    (folder / "violet.png").rename(folder / "violet.Png")
    assert _engine(model, built).collection.file("violet") == folder / "violet.Png"
    moved = folder.rename(tmp_path / "moved")
    made.collection.check_photos()
    assert f"{folder} holds none of the first photos" in caplog.text
    assert _engine(model, built, moved).collection.file("violet") == moved / "violet.Png"


def test_photos_may_be_links_but_folders_may_not_lead_elsewhere(tmp_path):
    model, built = demo_world.make(tmp_path)
    folder, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("red.png", "a/cyan.png"):
        (folder / name).rename(elsewhere / pathlib.Path(name).name)
    (folder / "red.png").symlink_to(elsewhere / "red.png")
    (folder / "a").rmdir()
    (folder / "a").symlink_to(elsewhere)
    made = _engine(model, built)
    np.testing.assert_allclose(_colour(made.thumbnail("red", 320)), COLOURS["red"], atol=4)
    assert made.thumbnail("a/cyan", 320) is None


def test_the_attention_map(engine, tmp_path):
    query = _query(scene("red", "blue", width=96, height=64))
    assert engine.attention(query).shape == (64, 96, 3)
    assert engine.attention(query, (0, 0, 48, 32)).shape == (32, 48, 3)
    _, built = demo_world.make(tmp_path)
    plain = _engine(stand_in_saved_model.save(tmp_path / "plain", ()), built)
    assert not plain.collection.has_maps and plain.attention(query) is None
    assert "cannot show where it looked" in page_html.attention(None)


def test_names_are_no_code(engine):
    name = "<b onload='x'>\"&.png"
    shown = page_html.stage(Query(name, b"", 4, 3), b"")
    assert "<b" not in shown and "&lt;b onload=&#39;x&#39;&gt;&#34;&amp;.png" in shown
    assert "<b" not in page_html.wrong(name) and "<b" not in page_html.place(engine, name, 9)


# --- what is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"model_hash": "other"}, "has model_hash 'abc', .*index has 'other'"),
        ({"whitening": "abc"}, "`dolg whiten apply` whitened, .* export it with --whitening"),
        ({"scales": None}, "imported descriptors, whose scales are unknown"),
    ],
)
def test_an_index_of_another_making(tmp_path, about, told):
    world = demo_world.make(tmp_path, **about)
    with pytest.raises(InputError, match=told):
        IndexedPhotos(*world, "", 0)


# --- local features of an index ----------------------------------------------------------


class _WithLocal:
    """The model, which gives three local features that are the same for each photo."""

    has_maps, has_local = False, True

    def __init__(self, reduction=None):
        self.about = types.SimpleNamespace(
            model_hash="abc", local={"kind": "map", "reduction": reduction}
        )
        self.asked = []

    def describe(self, images, scales):
        return demo_world.descriptor(images[0])[None]

    def local_of(self, image, *numbers):
        self.asked.append(numbers)
        return local_sets.draw(np.random.default_rng(7), 3, size=image.shape[:2])


@pytest.fixture(scope="module")
def with_local(tmp_path_factory):
    """A model, and an index that keeps local features as bits."""
    folder = tmp_path_factory.mktemp("local")
    model, _ = demo_world.make(folder)
    rng = np.random.default_rng(0)
    kept = descriptors.read(folder / "set")
    photos = [
        (id_, local_sets.draw(rng, 5, size=(64, 96))) for id_ in sorted(COLOURS, reverse=True)
    ]
    meta = local_sets.LOCAL_META | {key: kept.meta[key] for key in ("model_hash", "crop")}
    meta |= {"dtype": "bits", "max_features": 55, "threshold": 0.25, "scales": [0.5, 2.0]}
    writing.write(folder / "set.local", photos, meta)
    local = {"descriptors": str(folder / "set"), "local": str(folder / "set.local")}
    stages.build(BuildConfig(**local, output=str(folder / "with")))
    return model, folder / "with", dict(photos)


def _opened(with_local, monkeypatch, model):
    monkeypatch.setattr(indexed, "load_model", lambda *_: model)
    made = IndexedPhotos(*with_local[:2], "", 0)
    made.load()
    return made


def test_an_index_gives_its_local_features_and_visitors_photos_theirs_alike(
    with_local, monkeypatch
):
    model = _WithLocal()
    made = _opened(with_local, monkeypatch, model)
    now = made.searchable()
    for row, id_ in enumerate(now.ids):
        stored = with_local[2][id_]
        np.testing.assert_array_equal(now.local(row).positions, stored.positions)
        np.testing.assert_allclose(now.local(row).descriptors, np.sign(stored.descriptors) / 4)
    found = made.local(np.zeros((32, 48, 3), np.uint8))
    assert model.asked == [([0.5, 2.0], 55, 0.25)] and found.size == (32, 48)
    np.testing.assert_allclose(np.abs(found.descriptors), 0.25)
    engine = Engine(made, 10**7, 10**7)
    assert "geometric" in engine.rerankings
    assert now.geometric.order == "delg" and now.verify.plausible
    answer = engine.search(_query(scene("red")), reranking="geometric")
    assert all(photo.inliers is not None for photo in answer.found)


def test_an_index_is_ordered_as_it_was_calibrated(with_local, monkeypatch):
    fitted = {"rerank": "geometric", "order": "sum", "weight": 0.02, "cap": 40, "verify": 3}
    fitted["settings"] = to_dict(VerifyConfig(max_residual="7").resolved())
    meta = Index.open(with_local[1]).meta
    directory.set_calibration(with_local[1], {"threshold": 0.9, "geometric": fitted}, meta)
    now = _opened(with_local, monkeypatch, _WithLocal()).searchable()
    assert now.geometric.numbers() == {"verify": 3, "weight": 0.02, "cap": 40}
    assert now.geometric.order == "sum" and now.verify.max_residual == "7"


def test_a_threshold_with_inliers_judges_verified_answers_alone(with_local, monkeypatch):
    fitted = {"rerank": "geometric", "order": "sum", "weight": 0.02, "cap": 40, "verify": 3}
    fitted |= {"settings": to_dict(VerifyConfig().resolved()), "min_inliers": 9}
    meta = Index.open(with_local[1]).meta
    directory.set_calibration(with_local[1], {"threshold": -1.0, "geometric": fitted}, meta)
    engine = Engine(_opened(with_local, monkeypatch, _WithLocal()), 10**7, 10**7)
    plain = engine.search(_query(scene("red")))
    assert {photo.matches for photo in plain.found} == {None}
    page = _told(engine, plain)
    assert "measured with 9 places or more that agree" in page and "The most similar" in page
    verified = engine.search(_query(scene("red")), reranking="geometric")
    assert {photo.matches for photo in verified.found} == {False}  # none has so many
    page = _told(engine, verified, reranking="geometric")
    assert "No photo of the same place" in page and "and 9 places that agree" in page


def test_local_features_of_another_making_are_not_compared(with_local, monkeypatch, caplog):
    made = _opened(with_local, monkeypatch, _WithLocal({"sha256": "other"}))
    assert made.searchable().local is None and made.has_local
    assert "have reduction None, the model gives 'other'" in caplog.text
    made.local(np.zeros((32, 48, 3), np.uint8))  # as the model gives them, to say why
    assert made._model.asked == [()]
    older = _WithLocal()
    older.has_local = False
    assert _opened(with_local, monkeypatch, older).searchable().local is None
