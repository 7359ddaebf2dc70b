"""The engine behind the page answers as the index does, for each visitor alone."""

import concurrent.futures
import csv
import html
import io
import os

import demo_world
import numpy as np
import pytest
import stand_in_saved_model
from demo_world import COLOURS, encoded, scene
from PIL import Image

from dolg_tf.apps.demo import html as demo_html
from dolg_tf.apps.demo import search
from dolg_tf.apps.demo.search import RERANKINGS, Engine, Query
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.extract.model import LoadedModel
from dolg_tf.retrieval.index import directory, stages
from dolg_tf.retrieval.index.directory import Index
from dolg_tf.retrieval.index.stages import BuildConfig, QueryConfig
from dolg_tf.retrieval.rerank import methods
from dolg_tf.retrieval.rerank.methods import RerankConfig
from dolg_tf.stage.config import InputError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return demo_world.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def engine(world):
    made = Engine(*world, "", 1024)
    made.load()
    return made


def _query(image):
    return Query(encoded(image), image.shape[1], image.shape[0])


def _ids(answer):
    return [photo.id for photo in answer.found]


@pytest.mark.parametrize("name", COLOURS)
def test_the_same_scene_leads(engine, name):
    answer = engine.search(scene(name), k=len(COLOURS))
    rows = {other: demo_world.descriptor(scene(other)) for other in COLOURS}
    expected = sorted(COLOURS, key=lambda other: (-float(rows[other] @ rows[name]), other))
    assert _ids(answer) == expected and expected[0] == name
    for photo in answer.found:
        assert photo.score == pytest.approx(float(rows[photo.id] @ rows[name]), abs=1e-5)
        assert photo.matches is None and not photo.added
        colour = np.asarray(Image.open(io.BytesIO(photo.thumbnail))).mean((0, 1))
        np.testing.assert_allclose(colour, COLOURS[photo.id], atol=4)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_it_answers_as_the_command_does(tmp_path, kind):
    """Photos of a phone: large, and turned by EXIF as those of the index were."""
    world = demo_world.make(tmp_path, upright=True, max_side=100)
    made = Engine(*world, "", 1024)
    made.load()
    rng, exif = np.random.default_rng(3), Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((1300, 900))
    data = encoded(np.asarray(noise), kind, exif=exif)
    (tmp_path / "photo.jpg").write_bytes(data)
    model, built = map(str, world)
    options = {"images": str(tmp_path / "photo.jpg"), "output": str(tmp_path / "found.csv")}
    stages.query(QueryConfig(index=built, saved_model=model, k=4, **options))
    with (tmp_path / "found.csv").open(newline="") as file:
        expected = [(row["id"], np.float32(row["score"])) for row in csv.DictReader(file)]
    query = made.read(data, 10**7, 10**7)
    assert (query.width, query.height) == (900, 1300)
    whole = (0, 0, 900, 1300)
    for image in (made.image(query), made.image(query, whole)):
        answer = made.search(image, k=4)
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
    query = _query(scene("green", "violet", "blue"))
    assert _ids(engine.search(engine.image(query, box)))[0] == first


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (9, 5, 5, 9), (96, 0, 120, 64), (-9, 0, 0, 64)])
def test_a_box_without_pixels(engine, box):
    with pytest.raises(InputError, match="contains no pixel of the photo, which has 96 x 64"):
        engine.image(_query(scene("red")), box)


def test_boxes_are_told_in_pixels_of_the_photo(engine):
    image = scene("green", "blue", width=5000, height=500)
    query = engine.read(encoded(image), 10**7, 10**7)
    assert (query.width, query.height) == (5000, 500)
    assert _ids(engine.search(engine.image(query, (2600, 0, 5000, 500))))[0] == "blue"
    assert engine.image(query).shape == (102, 1024, 3)
    assert engine.image(query, (0, 0, 2500, 250)).shape == (102, 1024, 3)
    np.testing.assert_array_equal(engine.image(query, (0, 0, 50, 50)), image[:50, :50])
    assert Image.open(io.BytesIO(engine.picture(query))).size == (1024, 102)


@pytest.mark.parametrize(
    ("of_index", "asked", "side"),
    [(0, 0, 2048), (0, 4000, 2048), (0, 100, 100), (80, 100, 80), (80, 0, 80)],
)
def test_photos_are_shrunk_to_the_smaller_of_both_sides(tmp_path, of_index, asked, side):
    world = demo_world.make(tmp_path, max_side=of_index)
    query = _query(scene("red", width=2400, height=1200))
    assert Engine(*world, "", asked).image(query).shape == (side // 2, side, 3)


# --- scales, re-ranking, threshold ---------------------------------------------------


def test_scales(engine, monkeypatch):
    asked = []
    describe = LoadedModel.describe
    monkeypatch.setattr(
        LoadedModel, "describe", lambda m, x, s: asked.append(s) or describe(m, x, s)
    )
    for scales in (search.OWN_SCALES, "one", "five"):
        engine.search(scene("red"), scales=scales)
    assert asked == [stand_in_saved_model.SCALES, (1.0,), (0.3535, 0.5, 0.7071, 1.0, 1.4142)]
    with pytest.raises(InputError, match="Unknown scales 'seven'"):
        engine.search(scene("red"), scales="seven")


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
    folder = tmp_path_factory.mktemp("many")
    model, kept = _many(folder)
    stages.build(BuildConfig(descriptors=str(kept), output=str(folder / "exact")))
    made = Engine(model, folder / "exact", "", 0)
    made.load()
    return made


@pytest.mark.parametrize("name", RERANKINGS)
def test_rerankings_order_as_evaluation_does(many, name):
    image = scene("yellow", "violet", "red")
    row = demo_world.descriptor(image)[None]
    rows = np.asarray(many.index.descriptors)
    answer = many.search(image, reranking=name, k=20)
    refined = methods.apply(RerankConfig(rerank=name), row, rows)
    if refined.head is not None:
        expected = refined.head[0]
    else:
        expected = np.argsort(-(refined.queries @ rows.T)[0], kind="stable")
    assert _ids(answer) == [many.index.ids[rank] for rank in expected[:20]]
    places = [many.index.ids.index(id_) for id_ in _ids(answer)]
    expected = rows[places] @ row[0]
    np.testing.assert_allclose([photo.score for photo in answer.found], expected, atol=1e-5)


def test_rerankings_differ(many):
    image = scene("yellow", "violet", "red")
    orders = {tuple(_ids(many.search(image, reranking=x, k=40))) for x in RERANKINGS}
    assert len(orders) == len(RERANKINGS)
    with pytest.raises(InputError, match="Unknown re-ranking 'alpha_dba'"):
        many.search(image, reranking="alpha_dba")


def test_the_threshold_says_what_matches(tmp_path):
    model, built = demo_world.make(tmp_path)
    calibration = {"threshold": 0.9, "precision": 0.95}
    directory.set_calibration(built, calibration, Index.open(built).meta)
    made = Engine(model, built, "", 0)
    made.load()
    answer = made.search(scene("red"))
    assert [photo.matches for photo in answer.found] == [
        photo.score >= 0.9 for photo in answer.found
    ]
    page = demo_html.answer(answer, made.index, search.OWN_SCALES, "none")
    assert "<strong>Match</strong> 1 photo reaches the threshold of 0.900." in page
    assert "95 % show the same place" in page
    none = made.search(scene("red", "green"))
    page = demo_html.answer(none, made.index, "one", "superglobal")
    best = max(photo.score for photo in none.found)
    assert "<strong>No match</strong>" in page and f"the best scores {best:.3f}" in page
    assert "Ordered by SuperGlobal" in page and "described at other scales (0.5, 1)" in page


def test_without_a_threshold_the_page_says_so(engine):
    page = demo_html.answer(engine.search(scene("red")), engine.index, "index", "none")
    assert "No threshold in this index" in page and "match" not in page.lower()


# --- photos that a visitor adds ------------------------------------------------------


def test_added_photos_are_found_by_who_added_them(engine):
    added = engine.add(None, "mine.jpg", _query(scene("red", "blue")))
    added = engine.add(added, "other.jpg", _query(scene("green", "yellow")))
    query = scene("red", "blue")
    for reranking in ("none", "alpha_qe"):
        first = engine.search(query, reranking=reranking, added=added).found[0]
        assert (first.id, first.added) == ("mine.jpg", True)
        assert first.score == pytest.approx(1, abs=1e-5)
        colour = np.asarray(Image.open(io.BytesIO(first.thumbnail))).mean((0, 1))
        np.testing.assert_allclose(colour, scene("red", "blue").mean((0, 1)), atol=4)
    alone = engine.search(query, k=48)
    assert len(alone.found) == len(COLOURS) and not any(photo.added for photo in alone.found)
    # A copy of a photo of the index ranks behind it.
    twin = engine.add(None, "a.jpg", _query(scene("red")))
    assert _ids(engine.search(scene("red"), added=twin))[:2] == ["red", "a.jpg"]


def test_an_approximate_index(tmp_path, many):
    pytest.importorskip("faiss")
    model, kept = _many(tmp_path, 300)
    settings = BuildConfig(
        descriptors=str(kept), output=str(tmp_path / "small"), kind="ivfpq", nlist=2, m=3, nprobe=2
    )
    stages.build(settings)
    made = Engine(model, tmp_path / "small", "", 0)
    made.load()
    assert made.rerankings == ("none",)
    query, row = scene("red", "blue"), demo_world.descriptor(scene("red", "blue"))[None]
    scores, ranks = made.index.search(row, 12)
    plain = made.search(query)
    assert _ids(plain) == [made.index.ids[rank] for rank in ranks[0]]
    np.testing.assert_allclose([photo.score for photo in plain.found], scores[0], atol=1e-4)
    added = made.add(None, "far.jpg", _query(scene("green")))
    added = made.add(added, "same.jpg", _query(query))
    found = made.search(query, added=added).found
    assert len(found) == 12 and [p.id for p in found if p.added] == ["same.jpg"]
    scores = [photo.score for photo in found]
    assert scores == sorted(scores, reverse=True)


def test_several_visitors_at_once(engine):
    names = list(COLOURS) * 8

    def ask(name):
        added = engine.add(None, f"x/{name[-4:]}.jpg", _query(scene(name)))
        return set(_ids(engine.search(scene(name), added=added, k=2)))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, names))
    assert answers == [{name, f"{name[-4:]}.jpg"} for name in names]


@pytest.mark.parametrize("upright", [True, False, None])
def test_a_photo_is_turned_as_those_of_the_index_were(tmp_path, upright):
    """The same file in the index and on the page: cosine 1."""
    about = {} if upright is None else {"upright": upright}
    model, built = demo_world.make(tmp_path, **about)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = scene("red", "blue")
    data = encoded(stored, "JPEG", exif=exif, quality=95, subsampling=0)
    (tmp_path / "photos/phone.jpg").write_bytes(data)
    made = Engine(model, built, "", 0)
    made.load()
    query = made.read(data, 10**6, 10**6)
    assert (query.width, query.height) == ((64, 96) if upright else (96, 64))
    shown = np.rot90(stored, -1) if upright else stored
    np.testing.assert_allclose(made.image(query).astype(int), shown, atol=6)
    picture = Image.open(io.BytesIO(made.picture(query)))
    assert picture.size == (query.width, query.height)
    thumbnail = Image.open(io.BytesIO(made._thumbnail("phone")))
    assert thumbnail.size == (query.width, query.height)
    # The upper half of what is shown.
    half = made.image(query, (0, 0, query.width, query.height // 2))
    np.testing.assert_allclose(half.astype(int), shown[: query.height // 2], atol=6)


# --- photos of the index, and its map ------------------------------------------------


def test_photos_that_are_gone_or_outside_have_no_thumbnail(tmp_path):
    model, built = demo_world.make(tmp_path)
    (tmp_path / "photos/red.png").unlink()
    (tmp_path / "photos/blue.png").write_bytes(b"no photo")
    (tmp_path / "photos/green.png").unlink()
    os.mkfifo(tmp_path / "photos/green.png")
    (tmp_path / "photos/yellow.png").unlink()
    (tmp_path / "photos/yellow.png").mkdir()
    made = Engine(model, built, "", 0)
    made.load()
    answer = made.search(scene("red"), k=48)
    gone = {photo.id for photo in answer.found if photo.thumbnail is None}
    assert gone == {"red", "blue", "green", "yellow"}
    page = demo_html.answer(answer, made.index, "index", "none")
    assert page.count("photo not on disk") == 4
    assert made.has_photos(["violet", "none"]) and not made.has_photos(["red", "none"])
    for id_ in ("../secret", "a/../../secret", str(tmp_path / "secret"), "a\0b"):
        (tmp_path / "secret.png").write_bytes(encoded(scene("red")))
        assert made._file(id_) is None
    # A suffix in any case, as extraction finds it.
    (tmp_path / "photos/violet.png").rename(tmp_path / "photos/violet.Png")
    assert Engine(model, built, "", 0).has_photos(["violet"])
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    assert not made.has_photos(["violet"])
    assert Engine(model, built, str(moved), 0).has_photos(["violet"])


def test_the_attention_map(engine, tmp_path):
    image = scene("red", "blue", width=96, height=64)
    assert engine.attention(image).shape == (64, 96, 3)
    assert engine.attention(engine.image(_query(image), (0, 0, 48, 32))).shape == (32, 48, 3)
    _, built = demo_world.make(tmp_path)
    plain = Engine(stand_in_saved_model.save(tmp_path / "plain", ()), built, "", 0)
    plain.load()
    assert not plain.has_maps and plain.attention(image) is None
    assert "no attention map" in demo_html.attention(None)


def test_names_are_no_code():
    name = "<b onload='x'>&${1+1}{{x}}`\\"
    found = demo_html.escape(name)
    assert not set("<>'\"${}`\\") & set(found.replace("&#", "").replace("&", ""))
    assert html.unescape(found) == name


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
        Engine(*world, "", 0)
