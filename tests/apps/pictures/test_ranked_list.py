import io
import sys

import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps.pictures import ranked_list
from dolg_tf.apps.pictures.maps import MAPS
from dolg_tf.apps.pictures.ranked_list import KINDS, RankedPhoto, RankedRow
from dolg_tf.stage.config import InputError

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
    pixels = _pixels(ranked_list.ranked_list([_row("positive", "junk")]))
    assert _count(pixels, KINDS["positive"][0]) > 500
    assert _count(pixels, KINDS["junk"][0]) > 300
    assert _count(pixels, KINDS["negative"][0]) == 0
    figure = ranked_list.ranked_list([_row("negative")])
    texts = [text.get_text() for text in figure.texts]
    assert texts.count(KINDS["negative"][1]) == 2  # on the photo and in the legend
    assert "1  0.500" in texts and "another landmark" in texts


def test_a_name_is_no_formula():
    row = RankedRow(GREY, [RankedPhoto(GREY, "positive", 0.5)], None, label=r"a$\frac$b")
    ranked_list.ranked_list([row]).savefig(io.BytesIO(), format="png")


def test_box_is_drawn_only_where_there_is_one():
    colour = ranked_list.BOX_COLOUR
    assert _count(_pixels(ranked_list.ranked_list([_row("positive")])), colour) == 0
    boxed = ranked_list.ranked_list([_row("positive", box=(5, 5, 30, 20))])
    assert _count(_pixels(boxed), colour) > 100


def test_photos_keep_their_aspect_in_equal_cells():
    tall = np.zeros((50, 20, 3), np.uint8)
    row = RankedRow(GREY, [RankedPhoto(tall, "positive"), RankedPhoto(GREY, "negative")])
    figure = ranked_list.ranked_list([row])
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes]
    sizes = [(box.width * width, box.height * height) for box in boxes]
    cell = ranked_list._CELL
    np.testing.assert_allclose(sizes, [(cell, cell * 0.75), (cell * 0.4, cell), sizes[0]])


def test_rows_may_be_of_different_lengths():
    figure = ranked_list.ranked_list(
        [_row("positive"), _row(), _row("junk", "negative", "positive")]
    )
    assert len(figure.axes) == 3 + 1 + 0 + 3


def test_attention_overlay():
    values = np.zeros((3, 4), np.float32)
    values[0, 0] = 7
    figure = ranked_list.attention_overlay(GREY, values, "norm")
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
    assert ranked_list.attention_overlay(GREY, np.ones((2, 2)))
    for values in (np.ones(3), np.array([[np.nan, 1]])):
        with pytest.raises(InputError, match="must be finite"):
            ranked_list.attention_overlay(GREY, values)


def test_no_figure_stays_in_pyplot():
    from matplotlib import pyplot

    ranked_list.ranked_list([_row("positive")])
    ranked_list.attention_overlay(GREY, np.ones((2, 2)))
    assert pyplot.get_fignums() == []


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib is missing; pip install .*\[report\]"):
        ranked_list.ranked_list([_row("positive")])


@pytest.mark.parametrize("columns", [0, 2])
@pytest.mark.parametrize("shape", [(20, 50, 3), (50, 20, 3)])
def test_long_words_fit_beside_a_scale(shape, columns):
    maps = {label: np.array([[0.001, 0.002]]) for label in MAPS.values()}
    figure = ranked_list.maps_overlay(np.zeros(shape, np.uint8), maps, columns=columns)
    figure.savefig(io.BytesIO(), format="png")
    width, height = figure.get_size_inches() * figure.dpi
    axes = figure.axes[1:]
    for photo, scale in zip(axes[::2], axes[1::2], strict=True):
        words = scale.yaxis.label.get_window_extent()
        assert words.y0 >= 0 and words.y1 <= height and words.x1 <= width
        assert not any(words.overlaps(other.get_window_extent()) for other in figure.axes)
        assert photo.get_window_extent().y0 >= 0 and photo.get_window_extent().y1 <= height


def test_maps_stand_side_by_side_over_the_photo():
    tall = np.full((40, 20, 3), 100, np.uint8)
    maps = {"a": np.ones((4, 2)), "b": np.array([[0.0, 1], [2, 3]])}
    figure = ranked_list.maps_overlay(tall, maps)
    photo, first, scale, second, _ = figure.axes
    width, height = figure.get_size_inches()
    for axes in (photo, first, second):
        box = axes.get_position()
        assert box.height * height / (box.width * width) == pytest.approx(2)
    assert scale.get_ylabel() == "a" and second.images[1].get_clim() == (0, 3)
    lefts = [axes.get_position().x0 for axes in figure.axes]
    assert lefts == sorted(lefts)
    assert second.images[1].get_extent() == [-0.5, 19.5, 39.5, -0.5]
