"""Names are data: whatever photos, landmarks, metrics and runs are called, pictures are drawn."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties, findfont, get_font

from dolg_tf.apps.pictures.agreement import Agreement
from dolg_tf.apps.pictures.match import Compared, draw
from dolg_tf.apps.pictures.names import shown
from dolg_tf.apps.pictures.ranked_list import (
    RankedPhoto,
    RankedRow,
    attention_overlay,
    maps_overlay,
    ranked_list,
)
from dolg_tf.apps.report.figures.embedding_map import EmbeddingMap, embedding_map
from dolg_tf.apps.report.figures.scores import score_intervals
from dolg_tf.apps.report.figures.style import new_plot
from dolg_tf.apps.report.figures.training_curves import training_curve

NAMES = {
    "formula": r"a$\frac$b",
    "two dollars": "$x$",
    "underscore": "_hidden",
    "lines": "two\nlines\r\ttab",
    "escape": "\x1b[31mred\x1b[0m\x00",
    "long": "Wannsee" * 43,
    "one long word": "/".join("x" * 300),
    "emoji": "\N{GRINNING FACE} \N{FAMILY}\N{ZERO WIDTH JOINER}",
    "right to left": "\u202eמגדל برج",
    "no font has it": "東京 \U0010fffd",
    "surrogate": "\udcff",
    "nothing": "",
}
PHOTO = np.full((30, 40, 3), 90, np.uint8)
MAP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
COMPARED = Compared(0.5, None, Agreement(MAP, MAP, ()))


def _embedding(name):
    points, landmark = np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1])
    is_query = np.array([True, True, False, False])
    return embedding_map(EmbeddingMap(points, landmark, is_query, (f"folder/{name}", name)))


def _scores(name):
    one = {"mAP": 0.5, "mAP_interval": [0.4, 0.6]}
    return score_intervals({name: dict.fromkeys(("easy", "medium", "hard"), one)})


def _curve(name):
    curve = np.arange(3), np.arange(3.0)
    return training_curve(name, {name: curve, "train": curve})


DRAWN = {
    "match": lambda name: draw((PHOTO, PHOTO), COMPARED, (name, name)),
    "ranked list": lambda name: ranked_list(
        [RankedRow(PHOTO, [RankedPhoto(PHOTO, "positive", 1.0)], None, name)]
    ),
    "attention": lambda name: attention_overlay(PHOTO, MAP, name),
    "maps": lambda name: maps_overlay(PHOTO, {name: MAP, f"{name} ": MAP}),
    "embedding": _embedding,
    "scores": _scores,
    "curve": _curve,
    "plot": lambda name: new_plot(shown(name), shown(name), name)[0],
}


@pytest.mark.parametrize("drawn", DRAWN)
def test_pictures_are_drawn(drawn):
    for name in NAMES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # letters that are missing, layouts that do not fit
            DRAWN[drawn](name).savefig(io.BytesIO(), dpi=40)


def test_every_landmark_is_in_the_legend():
    for name in NAMES.values():
        (axes,) = _embedding(name).axes
        assert len(axes.get_legend().get_texts()) == 2, name


def test_what_is_shown():
    font = get_font(findfont(FontProperties()))
    for name in NAMES.values():
        text = shown(name)
        assert (len(text) <= 61 and text.isprintable()) or text.startswith("\N{HAIR SPACE}")
        assert all(font.get_char_index(ord(letter)) for letter in text)
    assert shown("Café £ $x$") == "Café £ $x$"
    assert shown("x" * 70) == "x" * 59 + "\N{HORIZONTAL ELLIPSIS}"
    assert shown("東a\n") == "\N{WHITE SQUARE}a "
