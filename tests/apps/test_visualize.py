import io
import sys

import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps import visualize
from dolg_tf.apps.visualize import KINDS, RankedPhoto, RankedRow
from dolg_tf.config import InputError

GREY = np.full((30, 40, 3), 128, np.uint8)


def _pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB"))


def _count(pixels, colour):
    value = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels == value).all(axis=-1).sum())


def _row(*kinds, box=None):
    found = [RankedPhoto(GREY, kind, 0.5) for kind in kinds]
    return RankedRow(GREY, found, box)


def test_frames_and_marks_tell_the_kind():
    pixels = _pixels(visualize.ranked_list([_row("positive", "junk")]))
    assert _count(pixels, KINDS["positive"][0]) > 500
    assert _count(pixels, KINDS["junk"][0]) > 300
    assert _count(pixels, KINDS["negative"][0]) == 0
    figure = visualize.ranked_list([_row("negative")])
    texts = [text.get_text() for text in figure.texts]
    assert texts.count(KINDS["negative"][1]) == 2  # on the photo and in the legend
    assert "1  0.500" in texts and "another landmark" in texts


def test_box_is_drawn_only_where_there_is_one():
    colour = visualize._BOX_COLOUR
    assert _count(_pixels(visualize.ranked_list([_row("positive")])), colour) == 0
    boxed = visualize.ranked_list([_row("positive", box=(5, 5, 30, 20))])
    assert _count(_pixels(boxed), colour) > 100


def test_photos_keep_their_aspect_in_equal_cells():
    tall = np.zeros((50, 20, 3), np.uint8)
    row = RankedRow(GREY, [RankedPhoto(tall, "positive"), RankedPhoto(GREY, "negative")])
    figure = visualize.ranked_list([row])
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes]
    sizes = [(box.width * width, box.height * height) for box in boxes]
    cell = visualize._CELL
    np.testing.assert_allclose(sizes, [(cell, cell * 0.75), (cell * 0.4, cell), sizes[0]])


def test_rows_may_be_of_different_lengths():
    figure = visualize.ranked_list([_row("positive"), _row(), _row("junk", "negative", "positive")])
    assert len(figure.axes) == 3 + 1 + 0 + 3


def test_attention_overlay():
    values = np.zeros((3, 4), np.float32)
    values[0, 0] = 7
    figure = visualize.attention_overlay(GREY, values, "norm")
    photo, overlay, scale = figure.axes
    assert photo.get_position().width == pytest.approx(overlay.get_position().width)
    drawn = overlay.images[1]
    assert tuple(drawn.get_extent()) == (-0.5, 39.5, 29.5, -0.5)
    assert drawn.get_clim() == (0, 7) and scale.get_ylabel() == "norm"
    pixels = _pixels(figure).astype(int)
    colourful = np.ptp(pixels[:, : int(pixels.shape[1] * 0.85)], axis=-1) > 60
    rows, columns = np.nonzero(colourful)
    assert rows.max() < pixels.shape[0] / 2 and columns.min() > pixels.shape[1] * 0.4
    assert figure.get_size_inches()[0] > figure.get_size_inches()[1]


def test_a_flat_map_is_drawn_and_a_broken_one_refused():
    assert visualize.attention_overlay(GREY, np.ones((2, 2)))
    for values in (np.ones(3), np.array([[np.nan, 1]])):
        with pytest.raises(InputError, match="must be finite"):
            visualize.attention_overlay(GREY, values)


def test_no_figure_stays_in_pyplot():
    from matplotlib import pyplot

    visualize.ranked_list([_row("positive")])
    visualize.attention_overlay(GREY, np.ones((2, 2)))
    assert pyplot.get_fignums() == []


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'dolg_tf\[report\]'"):
        visualize.ranked_list([_row("positive")])
