"""Pictures of retrieval, as matplotlib Figures: for a report, or a cell of a notebook."""

import dataclasses
import io
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from dolg_tf.apps.pictures.names import PLAIN, shown
from dolg_tf.stage import installed
from dolg_tf.stage.config import InputError

# kind: (colour, mark, frame line, meaning). Okabe and Ito's palette keeps the colours apart for
# the colour-blind; the mark works without colour.
KINDS = {
    "positive": ("#009E73", "\N{CHECK MARK}", "solid", "same landmark"),
    "negative": ("#D55E00", "\N{MULTIPLICATION X}", "solid", "another landmark"),
    "junk": ("#8A8A8A", "\N{EN DASH}", "dashed", "not counted"),
    "unknown": ("#0072B2", "?", "solid", "landmark not known"),
}
BOX_COLOUR = "#F0E442"

# Sizes on the page, in inches.
_CELL, _GAP, _QUERY_GAP, _LABEL, _MARGIN, _LEGEND = 1.1, 0.09, 0.24, 0.29, 0.12, 0.34
_SCALE_BAR = 0.95  # with its numbers and two lines of text
_LETTERS = 18  # letters of a scale's label per inch


@dataclasses.dataclass(frozen=True)
class RankedPhoto:
    """A found photo: uint8 RGB (H, W, 3), its kind (a key of KINDS) and its score."""

    image: np.ndarray
    kind: str
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class RankedRow:
    """A query and what was found for it.

    Attributes:
      image: uint8 RGB (H, W, 3), the whole query photo.
      found: the photos found, best first.
      box: (left, top, right, bottom) in pixels, the part that was searched for; None: all.
      label: a few words under the query photo.
    """

    image: np.ndarray
    found: Sequence[RankedPhoto]
    box: tuple[float, float, float, float] | None = None
    label: str = "query"


def new_figure(width: float, height: float, dpi: int = 120):
    """Returns an empty Figure of a size in inches, free of pyplot's global state.

    Raises:
      InputError: when matplotlib is not installed.
    """
    installed.need("report", "pictures", "matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=dpi, facecolor="white")


def encoded(figure, kind: str = "png") -> bytes:
    """Returns a Figure as the bytes of a file, for `files.write_bytes`, which says why.

    Args:
      figure: what is drawn.
      kind: of matplotlib's formats.
    """
    found = io.BytesIO()
    figure.savefig(found, format=kind)
    return found.getvalue()


def _photo_axes(figure, image: np.ndarray, left: float, top: float, cell: float):
    """Shows an image in a square cell (inches from the top left), centred, at its aspect."""
    width, height = figure.get_size_inches()
    rows, columns = image.shape[:2]
    scale = cell / max(rows, columns)
    wide, high = columns * scale, rows * scale
    x, y = left + (cell - wide) / 2, top + (cell - high) / 2
    axes = figure.add_axes((x / width, 1 - (y + high) / height, wide / width, high / height))
    axes.imshow(image, aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    return axes


def _frame(axes, colour: str, line: str, width: float = 2.6) -> None:
    from matplotlib.patches import Rectangle

    place = {"transform": axes.transAxes, "clip_on": False, "fill": False}
    if line != "solid":
        axes.add_patch(Rectangle((0, 0), 1, 1, color="white", linewidth=width, **place))
    axes.add_patch(Rectangle((0, 0), 1, 1, color=colour, linewidth=width, linestyle=line, **place))


def _caption(figure, text: str, left: float, top: float, **style) -> None:
    """Writes a line centred under a cell; `top` is the lower edge of the cell in inches."""
    width, height = figure.get_size_inches()
    x, y = (left + _CELL / 2) / width, 1 - (top + 0.065) / height
    style = {"fontsize": 7.5, "color": "#333333", **PLAIN, **style}
    figure.text(x, y, shown(text, 24), ha="center", va="top", **style)


def _badge(figure, kind: str, left: float, top: float, size: float = 8) -> None:
    """Draws the mark of a kind in a disc centred at (left, top) inches."""
    width, height = figure.get_size_inches()
    colour, mark = KINDS[kind][:2]
    figure.text(
        left / width,
        1 - top / height,
        mark,
        ha="center",
        va="center",
        fontsize=size,
        fontweight="bold",
        color="white",
        bbox={"boxstyle": "circle,pad=0.18", "facecolor": colour, "edgecolor": "white"},
    )


def _draw_query(figure, row: RankedRow, left: float, top: float) -> None:
    from matplotlib.patches import Rectangle

    axes = _photo_axes(figure, row.image, left, top, _CELL)
    if row.box is not None:
        x, y, right, bottom = row.box
        for colour, width in (("black", 3.0), (BOX_COLOUR, 1.6)):
            axes.add_patch(
                Rectangle((x, y), right - x, bottom - y, fill=False, color=colour, linewidth=width)
            )
    _frame(axes, "#222222", "solid", 1.0)
    _caption(figure, row.label, left, top + _CELL, fontweight="bold")


def _draw_found(figure, photo: RankedPhoto, rank: int, left: float, top: float) -> None:
    colour, _, line, _ = KINDS[photo.kind]
    axes = _photo_axes(figure, photo.image, left, top, _CELL)
    _frame(axes, colour, line)
    rows, columns = photo.image.shape[:2]
    scale = _CELL / max(rows, columns)
    x = left + (_CELL - columns * scale) / 2
    y = top + (_CELL - rows * scale) / 2
    _badge(figure, photo.kind, x + 0.11, y + 0.11)
    score = "" if photo.score is None else f"  {photo.score:.3f}"
    _caption(figure, f"{rank}{score}", left, top + _CELL)


def _draw_legend(figure, kinds: Sequence[str], boxed: bool, top: float) -> None:
    width, height = figure.get_size_inches()
    left = _MARGIN + 0.1
    y = 1 - top / height
    for kind in kinds:
        _badge(figure, kind, left, top, 7)
        text = KINDS[kind][3]
        figure.text((left + 0.14) / width, y, text, va="center", fontsize=8, color="#333333")
        left += 0.42 + 0.066 * len(text)
    if boxed:
        from matplotlib.patches import Rectangle

        corner = ((left - 0.08) / width, y - 0.06 / height)
        figure.add_artist(
            Rectangle(
                corner,
                0.17 / width,
                0.12 / height,
                transform=figure.transFigure,
                facecolor=BOX_COLOUR,
                edgecolor="black",
                linewidth=0.8,
            )
        )
        text = "searched part of the query"
        figure.text((left + 0.16) / width, y, text, va="center", fontsize=8, color="#333333")


def ranked_list(rows: Sequence[RankedRow]):
    """Draws queries with the photos found for each, best first from left to right.

    Frames and marks show what each photo is: the same landmark (green, a tick), another one
    (red, a cross) or one that the protocol does not count (grey, dashed, a dash). Rank and
    score stand under each photo.

    Args:
      rows: at least one.

    Returns:
      A matplotlib Figure.
    """
    columns = max(len(row.found) for row in rows)
    pitch = _CELL + _GAP
    first = _MARGIN + _CELL + _QUERY_GAP
    row_height = _CELL + _LABEL
    kinds = [kind for kind in KINDS if any(p.kind == kind for row in rows for p in row.found)]
    boxed = any(row.box is not None for row in rows)
    width = first + columns * pitch - _GAP + _MARGIN
    figure = new_figure(width, _MARGIN + len(rows) * row_height + _LEGEND)
    for number, row in enumerate(rows):
        top = _MARGIN + number * row_height
        _draw_query(figure, row, _MARGIN, top)
        for column, photo in enumerate(row.found):
            _draw_found(figure, photo, column + 1, first + column * pitch, top)
    _draw_legend(figure, kinds, boxed, _MARGIN + len(rows) * row_height + _LEGEND / 2 - 0.03)
    return figure


def attention_overlay(photo: np.ndarray, values: np.ndarray, label: str = "attention"):
    """Draws a photo and, beside it, a map of the network over it; see `maps_overlay`.

    Args:
      photo: uint8 RGB (H, W, 3).
      values: float (h, w), any range.
      label: what the map shows; stands at its scale.
    """
    return maps_overlay(photo, {label: values}, side=3.4)


def maps_overlay(
    photo: np.ndarray, maps: Mapping[str, np.ndarray], side: float = 2.4, columns: int = 0
):
    """Draws a photo and, beside it, maps of the network over it, each with its scale.

    Args:
      photo: uint8 RGB (H, W, 3); its aspect is kept.
      maps: {label: float (h, w)}, any range, such as outputs of the signature `maps`; each is
        stretched over the photo.
      side: longest side of the photo, in inches.
      columns: of photo and maps; 0: all in one row.

    Returns:
      A matplotlib Figure.

    Raises:
      InputError: when a map is not finite or does not have two axes.
    """
    high, wide = side * np.array(photo.shape[:2]) / max(photo.shape[:2])
    columns = columns or len(maps) + 1
    first = 0.15 + wide if columns > len(maps) else wide + 0.15 + _SCALE_BAR  # with no scale
    pitch = wide + 0.15 + _SCALE_BAR
    lines = -(-(len(maps) + 1) // columns)
    tall = high + 0.3
    figure = new_figure(0.15 + first + (columns - 1) * pitch, lines * tall)
    width, height = figure.get_size_inches()

    def add_axes(place: int, wide: float, right: float = 0.0):
        line, column = divmod(place, columns)
        left = 0.15 + right + (first + (column - 1) * pitch if column else 0)
        low = height - (line + 1) * tall + 0.15
        return figure.add_axes((left / width, low / height, wide / width, high / height))

    axes = add_axes(0, wide)
    axes.imshow(photo, aspect="auto")
    axes.set_axis_off()
    for place, (label, values) in enumerate(maps.items(), 1):
        drawn = draw_map(add_axes(place, wide), photo, values)
        bar = figure.colorbar(drawn, cax=add_axes(place, 0.13, wide + 0.15))
        text = textwrap.fill(shown(label), max(12, int(_LETTERS * tall)))
        bar.set_label(text, fontsize=8, **PLAIN)
        bar.ax.tick_params(labelsize=7)
        bar.solids.set_alpha(1)
    return figure


def draw_map(axes, photo: np.ndarray, values: np.ndarray):
    """Draws a map over a photo; returns what `colorbar` needs."""
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InputError(f"the map must be finite and (h, w), not {values.shape}")
    rows, columns = photo.shape[:2]
    axes.set_axis_off()
    # A grey photo under the map, so that its colours are those of the scale.
    axes.imshow(photo.mean(axis=-1), cmap="gray", aspect="auto", vmin=0, vmax=255)
    return axes.imshow(
        values,
        cmap="inferno",
        alpha=0.6,
        aspect="auto",
        interpolation="bilinear",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )
