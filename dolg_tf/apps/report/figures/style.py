"""What the figures share: colours that the colour-blind tell apart, quiet axes, words."""

import re

from dolg_tf.apps.pictures.names import PLAIN, shown
from dolg_tf.apps.pictures.ranked_list import new_figure

LEVEL = "medium"  # where a single one is shown

# Okabe and Ito's palette without its yellow, which is lost on white. Lines also differ in dashes
# and marks, so that nothing depends on colour alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)))
LEVEL_STYLE = {
    "easy": {"color": COLOURS[2], "linestyle": DASHES[2], "marker": "^"},
    "medium": {"color": COLOURS[0], "linestyle": DASHES[0], "marker": "o"},
    "hard": {"color": COLOURS[1], "linestyle": DASHES[1], "marker": "s"},
}

# Inches. On a phone, 350 pixels wide, the letters are still as large as small print.
_WIDTH, _HEIGHT, _DPI = 5.0, 3.2, 200
_SLUG = 80  # letters; a file's name may have 255 bytes
_INK, _FAINT = "#333333", "#d9d9d9"


def new_plot(xlabel: str, ylabel: str, title: str = "", height: float = _HEIGHT):
    """Returns (figure, axes) of a diagram.

    Args:
      xlabel, ylabel: of the axes.
      title: over them.
      height: inches.
    """
    figure = new_figure(_WIDTH, height, _DPI)
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#8a8a8a")
    axes.tick_params(colors=_INK, labelsize=9)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, fontsize=10, color=_INK, **PLAIN)
    axes.set_ylabel(ylabel, fontsize=10, color=_INK, **PLAIN)
    if title:
        style = {"fontsize": 11, "fontweight": "bold", "color": _INK, "loc": "left"}
        axes.set_title(shown(title), **style, **PLAIN)
    return figure, axes


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a fraction as "12.3 %", a dash for None."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.{digits}f} %"


def slug(text: str) -> str:
    """Returns text as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())[:_SLUG].strip("_") or "task"
