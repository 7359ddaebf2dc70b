"""Verified matches: which are drawn, what is said of them, and where frames lie."""

import dataclasses
import io

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from PIL import Image

from dolg_tf.apps.pictures import verified
from dolg_tf.apps.pictures.match import Compared, draw
from dolg_tf.apps.pictures.verified import MOST_LINES
from dolg_tf.retrieval.verification.matching import Matches
from dolg_tf.retrieval.verification.pairs import Verification

TURNED = np.array([[0.0, 2, 30], [-2, 0, 400]])  # a quarter clockwise, twice as large


def _drawn(figure):
    (lines,) = (one for axes in figure.axes for one in axes.collections)
    assert isinstance(lines, LineCollection)
    return np.array(lines.get_segments())


def _pictures(pair):
    return [np.full((*features.size, 3), 90, np.uint8) for features in (pair.query, pair.index)]


def test_lines_join_the_places_that_agree(one_view):
    pair = one_view(TURNED, inliers=12, others=20)
    assert pair.found.count == 12 and len(pair.found.inliers) == 32
    photos = _pictures(pair)
    photos[0] = photos[0][::2, ::2]  # photos are shown at any size
    figure = draw(photos, Compared(verified=pair), ("a.jpg", "b.jpg"))
    segments = _drawn(figure)
    assert len(segments) == 12
    for number, features in enumerate((pair.query, pair.index)):
        rows = pair.found.matches[number][pair.found.inliers]
        places = features.positions[rows][:, ::-1] / features.size[::-1]
        left, low, wide, high = figure.axes[number].get_position().bounds
        expected = np.column_stack([left + places[:, 0] * wide, low + (1 - places[:, 1]) * high])
        np.testing.assert_allclose(segments[:, number], expected, atol=2e-3)
    crosses = [axes.lines[0].get_xydata() for axes in figure.axes[:2]]
    assert [len(places) for places in crosses] == [20, 20]


def test_frames_lie_where_the_map_puts_them(one_view):
    pair = one_view(TURNED, inliers=12)
    height, width = pair.index.size
    corners = {(0, 0), (0, width), (height, 0), (height, width)}
    mapped = [TURNED @ (*corner, 1) for corner in corners]
    first, second = pair.frames()
    for y, x in mapped:
        place = np.array([x, y]) / pair.query.size[::-1]
        assert np.abs(first - place).sum(1).min() < 1e-6
    for corner in ((0, 0), pair.query.size):
        y, x = np.linalg.solve(TURNED[:, :2], corner - TURNED[:, 2])
        assert np.abs(second - np.array([x / width, y / height])).sum(1).min() < 1e-6
    np.testing.assert_array_equal(first[0], first[-1])


def test_a_homography_that_equals_an_affine_map_is_drawn_and_told_alike(one_view):
    pair = one_view(TURNED, inliers=12)
    whole = dataclasses.replace(pair.found, map=7 * np.vstack([TURNED, (0, 0, 1)]))
    other = dataclasses.replace(pair, found=whole)
    np.testing.assert_allclose(other.frames(), pair.frames(), atol=1e-6)
    told = verified.describe(pair)
    assert "scales the second photo by 2.00 and turns it 90\N{DEGREE SIGN} clockwise" in told
    assert verified.describe(other) == told.replace("an affine map", "a homography")


def test_what_lies_behind_the_camera_is_not_drawn(one_view):
    pair = one_view(TURNED, inliers=12)
    tilted = np.array([[1, 0, 0], [0, 1, 0], [0, -1.5 / pair.index.size[1], 1.0]])
    torn = dataclasses.replace(pair, found=dataclasses.replace(pair.found, map=tilted))
    first, _ = torn.frames()
    gone = np.isnan(first).any(1)
    assert 0 < gone.sum() < len(first)
    draw(_pictures(pair), Compared(verified=torn)).savefig(io.BytesIO(), format="png")


def test_of_many_lines_strong_ones_all_over_the_photo_are_drawn(one_view):
    pair = one_view(np.eye(2, 3), inliers=500, query_size=(240, 320))
    chosen = pair.lines()
    assert len(chosen) == len(set(chosen)) == MOST_LINES
    assert f"{MOST_LINES} strong, well spread ones of these" in verified.caption(pair)
    strengths = pair.query.strengths * pair.index.strengths
    first, _ = pair.ends(np.arange(500))
    cells = (first * 8).astype(int) @ (8, 1)
    assert len({*cells[chosen]}) == MOST_LINES  # 64 cells: each gives its strongest at most
    for row in chosen:
        assert strengths[row] == strengths[cells == cells[row]].max()
    assert verified.caption(one_view(np.eye(2, 3), inliers=9)).count("Lines: these.") == 1


@pytest.mark.parametrize(
    ("inliers", "others", "told"),
    [
        (0, 0, "No place looks like one of the other photo."),
        (0, 1, "1 place looks like one of the other photo, but no view"),
        (0, 9, "9 places look like one of the other photo, but no view"),
    ],
)
def test_photos_that_share_nothing(one_view, inliers, others, told):
    pair = one_view(None, inliers=inliers, others=others)
    figure = draw(_pictures(pair), Compared(0.1, pair))
    assert verified.describe(pair).startswith(told) and len(_drawn(figure)) == 0
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png")
    assert np.asarray(Image.open(pixels)).std() > 0
    assert np.isnan(pair.frames()).all()


def test_a_map_without_a_way_back(one_view):
    """Three points on a line give one, which DELG counts."""
    flat = np.array([[0.0, 1, 0], [0, 1, 0]])
    pair = one_view(np.eye(2, 3), inliers=5)
    pair = dataclasses.replace(pair, found=dataclasses.replace(pair.found, map=flat))
    first, second = pair.frames()
    assert np.isfinite(first).all() and np.isnan(second).all()
    assert "scales the second photo by 0.00" in verified.describe(pair)
    draw(_pictures(pair), Compared(verified=pair)).savefig(io.BytesIO(), format="svg")
    mirrored = Verification(Matches(*pair.found.matches), pair.found.inliers, TURNED[::-1])
    assert "mirrors the second" in verified.describe(dataclasses.replace(pair, found=mirrored))
