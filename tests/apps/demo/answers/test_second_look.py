"""Photos ordered by the local features that agree, and why one was found."""

import dataclasses

import numpy as np
import pytest
from demo_world import encoded, scene

from dolg_tf.apps.demo import html as page_html
from dolg_tf.apps.demo.answers.drawing import drawings
from dolg_tf.apps.demo.answers.second_look import Why
from dolg_tf.apps.demo.collection import Progress, Searchable
from dolg_tf.apps.demo.search import Engine, Query
from dolg_tf.retrieval.extract.decoding import Preparation
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError

COUNT, SIZE = 40, (48, 64)  # features; height and width of the described photos
VIEW = np.array([[0.5, 0, 3], [0, 0.5, 4]])  # from the photo "right" to what is searched for


def _features(positions, size):
    descriptors = np.eye(COUNT, dtype=np.float32)
    strengths = np.linspace(1, 0.1, COUNT, dtype=np.float32)
    return LocalFeatures(np.float32(positions), strengths * 0 + 1, strengths, descriptors, size)


class Sights:
    """Three photos: one shows what is searched for, the others have the same parts elsewhere."""

    title, how, scales, has_maps, has_local = "sights", Preparation(64), (1.0,), False, True

    def __init__(self, folder, kept=True):
        rng = np.random.default_rng(0)
        self.seen = rng.uniform(0.1, 0.8, (COUNT, 2)) * SIZE
        places = (self.seen - VIEW[:, 2]) @ np.linalg.inv(VIEW[:, :2]).T
        self.stored = [_features(rng.uniform(0, 90, (COUNT, 2)), (96, 128)) for _ in "abc"]
        self.stored[2] = _features(places, (96, 128))
        self.files = {}
        for name in ("near", "far", "right"):
            self.files[name] = folder / f"{name}.png"
            self.files[name].write_bytes(encoded(scene("red", width=128, height=96)))
        rows = np.float32([[1, 0.1, 0], [0.9, 0.3, 0], [0.8, 0.6, 0]])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        local = self.stored.__getitem__ if kept else None
        verify = VerifyConfig(max_residual="2")
        self.now = Searchable(tuple(self.files), rows, alike=None, local=local, verify=verify)
        self.asked = []

    def searchable(self):
        return self.now

    def progress(self):
        return Progress(3, 3)

    def describe(self, image, scales):
        return np.float32([[1, 0, 0]])

    def local(self, image):
        self.asked.append(image.shape[:2])
        scale = np.divide(image.shape[:2], SIZE)
        return _features(self.seen * scale, image.shape[:2])

    def file(self, id_):
        return self.files.get(id_)


def _query(width=256, height=192):
    data = encoded(scene("blue", width=width, height=height))
    return Query("a.png", data, width, height)


@pytest.fixture
def sights(tmp_path):
    return Sights(tmp_path)


def test_photos_come_by_what_agrees(sights):
    engine = Engine(sights, 10**7, 10**7)
    assert "geometric" in engine.rerankings
    plain = engine.search(_query())
    assert [photo.id for photo in plain.found] == ["near", "far", "right"]
    assert {photo.inliers for photo in plain.found} == {None} and not sights.asked
    found = engine.search(_query(), reranking="geometric").found
    assert found[0].id == "right" and found[0].inliers == COUNT
    assert all(0 <= photo.inliers < COUNT / 2 for photo in found[1:])
    assert found[0].score == pytest.approx(0.8)  # which still compares descriptors
    told = page_html.answer(
        engine.search(_query(), reranking="geometric"), engine, "own", "geometric"
    )
    assert f"{COUNT} places agree" in told and "Ordered by Geometric verification" in told
    assert told.count(">Why?<") == 3 and 'aria-label="Why was right.png found?"' in told
    assert sights.asked == [SIZE]  # described once, at the size of the others, and kept


def test_a_photo_of_the_collection_has_its_stored_features(sights):
    engine = Engine(sights, 10**7, 10**7)
    found = engine.search(engine.stored("near"), reranking="geometric").found
    assert [photo.id for photo in found] == ["far", "right"] and not sights.asked
    assert engine.second_look.why(engine.stored("near"), None, "far").pair.query is sights.stored[0]
    assert not sights.asked


def test_photos_behind_the_verified_ones_come_too(sights):
    verified = dataclasses.replace(sights.now.geometric, rerank_verify=2)
    sights.now = dataclasses.replace(sights.now, geometric=verified)
    found = Engine(sights, 10**7, 10**7).search(_query(), reranking="geometric").found
    assert found[2].id == "right" and found[2].inliers is None
    assert all(photo.inliers is not None for photo in found[:2])


def test_without_kept_features_why_is_answered_and_the_order_is_not_offered(tmp_path):
    sights = Sights(tmp_path, kept=False)
    engine = Engine(sights, 10**7, 10**7)
    assert "geometric" not in engine.rerankings
    with pytest.raises(InputError, match="Unknown re-ranking"):
        engine.search(_query(), reranking="geometric")
    why = engine.second_look.why(_query(), None, "right")
    # Both photos are described, each at the size of the others, once.
    assert sights.asked == [SIZE, SIZE] and why.pair.index.size == (96, 128)
    engine.second_look.why(_query(), None, "right")
    assert len(sights.asked) == 2 and why.pair.found.count == COUNT
    with pytest.raises(InputError, match="gone is not on disk"):
        engine.second_look.why(_query(), None, "gone")
    sights.has_local = False
    with pytest.raises(InputError, match="gives no local features"):
        engine.second_look.why(_query(), None, "right")
    assert ">Why?<" not in page_html.answer(engine.search(_query()), engine, "own", "none")


def test_what_a_box_agrees_on_is_shown_in_the_whole_photo(sights):
    engine = Engine(sights, 10**7, 10**7)
    query, box = _query(), (100.2, 40, 200, 900)
    part = engine.second_look.query(query, box)
    assert part.size == (152, 100)
    alone = Verifier(sights.now.verify).verify(part, sights.stored[2])
    why = engine.second_look.why(query, box, "right")
    assert why.box == (100, 40, 200, 192) and why.pair.query.size == (192, 256)
    np.testing.assert_array_equal(why.pair.found.inliers, alone.inliers)
    np.testing.assert_allclose(
        why.pair.query.positions, part.positions + np.float32((40, 100)), atol=1e-3
    )
    places = np.column_stack([why.pair.index.positions, np.ones(COUNT)]) @ why.pair.found.map.T
    inliers = why.pair.found.inliers
    apart = np.linalg.norm(places - why.pair.query.positions, axis=1)
    assert inliers.sum() > COUNT / 2 and apart[inliers].max() < 2.01
    wide, _ = drawings(why)
    asked, found = wide.panels
    scale = asked.height / 192
    expected = [100 * scale, 40 * scale, 200 * scale, 192 * scale, 100 * scale]
    numbers = [float(x) for x in asked.box[1:-1].replace("H", " ").replace("V", " ").split()]
    np.testing.assert_allclose(numbers, expected, atol=0.06)
    assert found.box == ""


def test_both_drawings_join_the_same_places(one_view):
    pair = one_view(np.array([[1.1, 0.2, 20], [-0.2, 1.1, 90]]), inliers=30, others=15)
    why = Why("b", pair, None)
    first, second = pair.ends(pair.lines())
    wide, tall = drawings(why)
    for drawing in (wide, tall):
        a, b = drawing.panels
        assert drawing.lines.count("M") == len(first) == len(drawing.ends) // 2
        for panel, places, ends in zip(
            (a, b), (first, second), np.split(np.array(drawing.ends), 2), strict=True
        ):
            expected = places * (panel.width, panel.height) + (panel.x, panel.y)
            np.testing.assert_allclose(ends, expected, atol=0.06)
            assert panel.crosses.count("M") == 15
            ratio = panel.width / panel.height
            size = pair.query.size if panel is a else pair.index.size
            assert ratio == pytest.approx(size[1] / size[0], rel=1e-3)
        assert (drawing.width, drawing.height) == (b.x + b.width, b.y + b.height)
    assert wide.panels[0].height == wide.panels[1].height and wide.panels[1].y == 0
    assert tall.panels[0].width == tall.panels[1].width and tall.panels[1].x == 0


def test_the_fragment_says_it_in_words_and_holds_no_style(one_view):
    name = "<b>\"&'.jpg"
    told = page_html.why(Why(name, one_view(np.eye(2, 3), inliers=9), None))
    assert "9 places look like one of the other photo; 9 of them agree" in told
    assert told.count('href="/large?photo=%3Cb%3E%22%26%27.jpg"') == 2
    assert told.count('role="img" aria-label="Both photos. 9 places') == 2
    assert "style=" not in told and "<b>" not in told and "nan" not in told
    nothing = page_html.why(Why(name, one_view(None, others=3), None))
    assert "no view of one scene" in nothing and "nan" not in nothing
