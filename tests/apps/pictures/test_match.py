"""The picture of why two photos match, and its command."""

import dataclasses
import io
import logging

import numpy as np
import pytest
import stand_in_saved_model as stand_in
from matplotlib.patches import ConnectionPatch
from PIL import Image

from dolg_tf.apps.pictures.agreement import Agreement, Pair
from dolg_tf.apps.pictures.match import (
    Compared,
    MatchConfig,
    compare,
    compare_local,
    describe_match,
    draw,
    match,
)
from dolg_tf.retrieval.extract.model import load_model
from dolg_tf.retrieval.verification.pairs import Verifier, VerifyConfig
from dolg_tf.stage.config import InputError

WIDE, TALL = np.full((30, 60, 3), 90, np.uint8), np.full((80, 40, 3), 90, np.uint8)


def _compared(*pairs, similarity=None):
    return Compared(similarity, None, _found(*pairs))


def _found(*pairs):
    a, b = np.zeros((3, 6), np.float32), np.zeros((8, 4), np.float32)
    a[0, 5], b[7, 0] = 0.8, 0.8
    return Agreement(a, b, pairs)


def _texts(figure):
    return [text.get_text() for text in figure.texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two photos that share a red corner, and a model."""
    path = tmp_path_factory.mktemp("match")
    for name, (rows, columns) in {"a": (64, 96), "b": (96, 48)}.items():
        image = np.full((rows, columns, 3), 120, np.uint8)
        image[-16:, :16] = (255, 0, 0)
        image[:16, -16:] = (0, 0, 255) if name == "a" else (0, 255, 0)
        Image.fromarray(image).save(path / f"{name}.png")
    stand_in.save(path / "model")
    stand_in.save(path / "plain", ("local",))
    return path


def _config(folder, output, **options):
    photos = (str(folder / "a.png"), str(folder / "b.png"))
    arguments = {"saved_model": str(folder / "model"), "photos": photos, "output": str(output)}
    return MatchConfig(**arguments | options)


def test_photos_and_maps_keep_their_aspects_and_share_a_scale():
    figure = draw((WIDE, TALL), _compared(similarity=0.5), ("wide.jpg", "tall.jpg"))
    *panels, bar = figure.axes
    panels = [panels[place] for place in (0, 2, 1, 3)]
    size = figure.get_size_inches()
    boxes = [axes.get_position().bounds * np.tile(size, 2) for axes in panels]
    aspects = [box[2] / box[3] for box in boxes]
    np.testing.assert_allclose(aspects, [2, 2, 0.5, 0.5])
    assert len({round(box[3], 6) for box in boxes}) == 1
    for photo, below in (boxes[:2], boxes[2:]):
        assert photo[0] == below[0] and photo[1] > below[1] + below[3]
    # Not the largest value that is there: another pair's picture has the same colours.
    drawn = [panel.images[1] for panel in (panels[1], panels[3])]
    assert [image.get_clim() for image in drawn] == [(0, 1), (0, 1)]
    np.testing.assert_array_equal(drawn[1].get_array(), _found().b)
    assert bar.get_ylabel() == "agreement"
    titles = [axes.get_title() for axes in panels]
    assert titles == ["wide.jpg", "", "tall.jpg", ""] and "0.500" in _texts(figure)[0]


def test_a_name_is_no_formula():
    figure = draw((WIDE, TALL), _compared(similarity=0.5), (r"a$\frac$b.jpg", "$x^2$.jpg"))
    figure.savefig(io.BytesIO(), format="png")


def test_a_match_is_told_in_words():
    assert describe_match(_compared()).endswith("at most 0.80 of 1; no pair of places is joined.")
    pairs = Pair((0, 5), (7, 0), 0.7), Pair((2, 0), (0, 3), 0.1)
    assert "1 pair of places is joined by lines" in describe_match(_compared(pairs[0]))
    text = describe_match(_compared(*pairs))
    assert text.endswith("2 pairs are joined by lines, the strongest of 0.70.")


def test_lines_join_the_middles_of_cells():
    found = _compared(Pair((0, 5), (7, 0), 0.8), Pair((2, 0), (0, 3), 0.1))
    figure = draw((WIDE, TALL), found)
    lines = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    # Cells of 10 x 10 pixels; the first pixel's middle is 0.
    assert [(line.xy1, line.xy2) for line in lines] == [
        ((54.5, 4.5), (4.5, 74.5)),
        ((4.5, 24.5), (34.5, 4.5)),
    ]
    assert [line.axesA for line in lines] == [figure.axes[2]] * 2
    assert [line.axesB for line in lines] == [figure.axes[3]] * 2
    assert lines[0].get_linewidth() > lines[1].get_linewidth()
    assert "the 2 strongest pairs" in " ".join(_texts(figure)[-1].split())
    assert not any("similarity" in text for text in _texts(figure))
    assert "No two places" in " ".join(_texts(draw((WIDE, TALL), _compared()))[-1].split())


def test_where_photos_agree_is_bright_and_joined(folder):
    images = [np.asarray(Image.open(folder / f"{name}.png")) for name in "ab"]
    photos = [folder / f"{name}.png" for name in "ab"]
    compared = compare(load_model(folder / "model"), photos, 0)
    similarity, found = compared.similarity, compared.agreement
    assert found.a.shape == (4, 6) and found.b.shape == (6, 3)
    assert found.a.argmax() == 3 * 6 and found.b.argmax() == 5 * 3
    assert (found.pairs[0].a, found.pairs[0].b) == ((3, 0), (5, 0))
    rows = load_model(folder / "model").describe(images)
    assert similarity == pytest.approx(float(rows[0] @ rows[1]), abs=1e-6)
    pixels = io.BytesIO()
    draw(images, compared).savefig(pixels, format="png")
    shown = np.asarray(Image.open(pixels).convert("RGB")).astype(int)
    assert (np.abs(shown - (0x56, 0xB4, 0xE9)).max(-1) < 8).sum() > 200  # the line and its ends


class Network:
    """Stands for a model without a local branch, whose local features are known."""

    path, has_local, has_maps = "model", True, False

    def __init__(self, pair):
        self.features, self.asked = {"a": pair.query, "b": pair.index}, []

    def local(self, photo, *, max_features, like):
        self.asked.append((photo, max_features, like))
        return self.features[photo]


def test_any_network_shows_its_verified_matches(one_view):
    pair = one_view(np.array([[1.2, 0, 9], [0, 1.2, 7]]), inliers=30)
    model, likes = Network(pair), ({"max_side": 64}, {"max_side": 32})
    found = compare_local(model, "ab", likes, max_features=77)
    assert model.asked == [("a", 77, likes[0]), ("b", 77, likes[1])]
    assert found.agreement is None and found.verified.found.count == 30
    np.testing.assert_allclose(found.verified.found.map, pair.found.map, atol=1e-3)
    figure = draw((WIDE, TALL), dataclasses.replace(found, similarity=0.5))
    assert len(figure.axes) == 3  # two photos, and what lies over both
    assert describe_match(found).startswith("30 places look like one of the other photo; 30 of")
    # Verified as the flags say: a residual of a hair leaves few.
    strict = Verifier(VerifyConfig(max_residual="0.000001"))
    assert compare_local(model, "ab", likes, strict).verified.found.count < 30
    model.has_local = False
    with pytest.raises(InputError, match="gives no local features: export it again"):
        compare_local(model, "ab", likes)


@pytest.mark.parametrize(("suffix", "model"), [(".png", "model"), (".svg", "plain")])
def test_the_command_writes_a_picture_and_says_the_similarity(
    folder, tmp_path, caplog, suffix, model
):
    """Of a network with a local branch, and of one without."""
    caplog.set_level(logging.INFO)
    output = tmp_path / f"match{suffix}"
    figure = match(_config(folder, output, saved_model=str(folder / model)))
    if model == "plain":
        assert "like one of the other photo" in caplog.text and len(figure.axes) == 3
    else:
        assert "strongest agreement" in caplog.text
    assert output.stat().st_size > 10_000 and "similarity of the descriptors" in caplog.text
    with pytest.raises(InputError, match="--overwrite"):
        match(_config(folder, output))
    match(_config(folder, output, overwrite=True, max_side=32))
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_flags_and_photos(folder, tmp_path):
    output = tmp_path / "match.png"
    for options, message in (
        ({"photos": ("a.jpg",)}, "must be two photos"),
        ({"output": "match.gif"}, r"must end in \.jpg, \.pdf, \.png, \.svg"),
        ({"output": str(folder / "x" / ".." / "a.png")}, "one of the photos"),
        ({"max_side": -1}, "at least 0"),
        ({"max_features": 0}, "at least 1"),
        ({"max_residual": "2 m"}, "neither a number of pixels"),
    ):
        with pytest.raises(InputError, match=message):
            _config(folder, **{"output": output} | options)
    with pytest.raises(InputError, match=r"none\.jpg: No such file"):
        match(_config(folder, output, photos=(str(folder / "a.png"), str(folder / "none.jpg"))))
    assert not output.exists()
