"""Why two photos match: where their local features agree, as two heat maps joined by lines.

dolg match --saved_model=MODEL --photos=A.jpg,B.jpg --output=match.png
"""

import dataclasses
import logging
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.pictures.agreement import Agreement, Pair, agreement
from dolg_tf.apps.pictures.names import PLAIN, shown
from dolg_tf.apps.pictures.ranked_list import draw_map, encoded, new_figure
from dolg_tf.retrieval.exact.search import inner_products
from dolg_tf.retrieval.extract.decoding import Preparation, read_photo
from dolg_tf.retrieval.extract.model import LoadedModel, load_model
from dolg_tf.stage import config, files
from dolg_tf.stage.config import InputError, option

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".pdf", ".png", ".svg")
# Okabe and Ito's sky blue: no colour of the heat maps comes near it, not even for the colour-blind.
_LINE, _CASE = "#56B4E9", "black"

# Sizes on the page, in inches.
_WIDTH, _HIGHEST, _MARGIN, _GAP, _BAR = 8.0, 3.2, 0.15, 0.35, 0.75
_TITLE, _CAPTION_LINE, _CAPTION_LETTERS = 0.25, 0.15, 118


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """The photos to compare, and the network."""

    saved_model: str = option("SavedModel directory of mode serving")
    photos: tuple[str, ...] = option("two photos, separated by a comma")
    output: str = option(f"picture to write: {', '.join(SUFFIXES)}")
    max_side: int = option(
        "shrink photos to this longest side; 0: never. With the value of the extraction, the "
        "similarity is that of a search",
        1024,
        unit="pixels",
    )
    overwrite: bool = option("replace an existing picture", False)

    def __post_init__(self):
        config.at_least(self, max_side=0)
        if len(self.photos) != 2:
            raise InputError(f"--photos={','.join(self.photos)} must be two photos, A.jpg,B.jpg")
        if pathlib.Path(self.output).suffix.lower() not in SUFFIXES:
            raise InputError(f"--output={self.output} must end in {', '.join(SUFFIXES)}")
        paths = [pathlib.Path(name).resolve() for name in (*self.photos, self.output)]
        if paths[2] in paths[:2]:
            raise InputError(f"--output={self.output} is one of the photos; name another file")


def match(settings: MatchConfig):
    """Shows why two photos match: where their local features agree.

    The similarity of their descriptors goes to the terminal, the picture of `draw` to the output.

    Returns:
      The matplotlib Figure.

    Raises:
      InputError: when a photo cannot be read, the model has no local features, or the output must
        not be replaced.
    """
    files.check_output(settings.output, settings.overwrite)
    new_figure(1, 1)  # says at once that matplotlib is missing
    photos = [read_photo(path, Preparation(settings.max_side)) for path in settings.photos]
    model = load_model(settings.saved_model)
    similarity, found = compare(model, *photos)
    strongest = found.a.max()
    log.info(
        "similarity of the descriptors %.4f, strongest agreement of two cells %.4f",
        similarity,
        strongest,
    )
    names = [pathlib.Path(path).name for path in settings.photos]
    figure = draw(photos, found, similarity, names)
    kind = pathlib.Path(settings.output).suffix[1:].lower()
    files.write_bytes(settings.output, encoded(figure, kind))
    return figure


def compare(model: LoadedModel, a: np.ndarray, b: np.ndarray) -> tuple[float, Agreement]:
    """Compares two photos.

    Args:
      model: of mode `serving`.
      a, b: uint8 RGB (H, W, 3).

    Returns:
      The inner product of their descriptors at the model's scales, and the agreement of their local
      features at the photos' own size.

    Raises:
      InputError: when the model has no local features.
    """
    found = agreement(model.local_features(a), model.local_features(b))
    own_size = {"max_side": 0}
    rows = np.concatenate([model.describe([photo], like=own_size) for photo in (a, b)])
    return float(inner_products(rows[0], rows[1:])[0]), found


# --- the picture ---------------------------------------------------------------------


def draw(
    photos: Sequence[np.ndarray],
    found: Agreement,
    similarity: float | None = None,
    names: Sequence[str] = ("", ""),
):
    """Draws two photos, and below them where they agree, joined by lines.

    Both heat maps have one scale from 0 to 1, which is also that of every other pair of photos:
    where nothing agrees, they stay dark.

    Args:
      photos: two, uint8 RGB (H, W, 3); they keep their aspects, at one height.
      found: a result of `agreement`.
      similarity: of their descriptors, for the title; None: no title.
      names: titles of the photos; empty: no titles.

    Returns:
      A matplotlib Figure.
    """
    aspects = [image.shape[1] / image.shape[0] for image in photos]
    high = min(_HIGHEST, (_WIDTH - 2 * _MARGIN - _GAP - _BAR) / sum(aspects))
    wides = [aspect * high for aspect in aspects]
    caption = textwrap.wrap(_caption(found), _CAPTION_LETTERS)
    top = _MARGIN + _TITLE * (similarity is not None) + _TITLE * any(names)
    bottom = _MARGIN + _CAPTION_LINE * len(caption) + _MARGIN
    figure = new_figure(_WIDTH, top + 2 * high + _MARGIN + bottom)
    height = figure.get_size_inches()[1]
    first = (_WIDTH - _BAR - _GAP - sum(wides)) / 2
    lefts = (first, first + wides[0] + _GAP)

    def add_axes(left: float, low: float, wide: float):
        return figure.add_axes((left / _WIDTH, low / height, wide / _WIDTH, high / height))

    maps = []
    for left, wide, image, values, name in zip(
        lefts, wides, photos, (found.a, found.b), names, strict=True
    ):
        axes = add_axes(left, bottom + high + _MARGIN, wide)
        axes.imshow(image, aspect="auto")
        axes.set_axis_off()
        title = {"fontsize": 8, "color": "#333333", "pad": 4, **PLAIN}
        axes.set_title(shown(name, max(8, int(wide * 14))), **title)
        maps.append(add_axes(left, bottom, wide))
        drawn = draw_map(maps[-1], image, values)
        drawn.set_clim(0, 1)
    bar = figure.colorbar(drawn, cax=add_axes(lefts[1] + wides[1] + 0.15, bottom, 0.13))
    bar.set_label("agreement", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set_alpha(1)
    for number, pair in enumerate(found.pairs, 1):
        _draw_pair(figure, maps, photos, found, pair, number)
    if similarity is not None:
        title = f"similarity of the descriptors {similarity:.3f}"
        middle = (lefts[0] + lefts[1] + wides[1]) / 2 / _WIDTH
        figure.text(middle, 1 - _MARGIN / height, title, ha="center", va="top", fontsize=11)
    text = "\n".join(caption)
    low = (bottom - _MARGIN) / height
    figure.text(_MARGIN / _WIDTH, low, text, va="top", fontsize=7.5, color="#333333")
    return figure


def describe_match(found: Agreement) -> str:
    """Returns in words what `draw` draws."""
    text = (
        "two photos, and heat maps over them of where their local features agree, at most "
        f"{found.a.max():.2f} of 1; "
    )
    if not found.pairs:
        return text + "no pair of places is joined."
    pairs = "1 pair of places is" if len(found.pairs) == 1 else f"{len(found.pairs)} pairs are"
    return text + f"{pairs} joined by lines, the strongest of {found.pairs[0].agreement:.2f}."


def _caption(found: Agreement) -> str:
    text = (
        "Heat: the best agreement of each place with any place of the other photo, which is the "
        "cosine of their local features times the attention of both, as a share of each photo's "
        "highest. "
    )
    if not found.pairs:
        return text + "No two places that the network attends to are each other's most similar."
    return text + (
        f"Lines: the {len(found.pairs)} strongest pairs of places that are each other's most "
        "similar, 1 the strongest; the thicker, the stronger."
        if len(found.pairs) > 1
        else "Line: the strongest pair of places that are each other's most similar."
    )


def _draw_pair(figure, maps, photos, found: Agreement, pair: Pair, number: int) -> None:
    from matplotlib.patches import ConnectionPatch
    from matplotlib.patheffects import Normal, Stroke

    ends = [
        _middle(cell, values.shape, image.shape)
        for cell, values, image in zip((pair.a, pair.b), (found.a, found.b), photos, strict=True)
    ]
    width = 0.6 + 1.8 * min(pair.agreement, 1)
    line = ConnectionPatch(
        *ends, "data", "data", axesA=maps[0], axesB=maps[1], color=_LINE, linewidth=width
    )
    line.set_path_effects([Stroke(linewidth=width + 1.2, foreground=_CASE), Normal()])
    figure.add_artist(line)
    for axes, end in zip(maps, ends, strict=True):
        figure.add_artist(
            axes.annotate(
                str(number),
                end,
                ha="center",
                va="center_baseline",
                fontsize=5.5,
                fontweight="bold",
                bbox={"boxstyle": "circle,pad=0.2", "facecolor": _LINE, "linewidth": 0.6},
            )
        )


def _middle(cell: tuple[int, int], size: Sequence[int], image: Sequence[int]):
    """Returns the middle of a cell, (x, y) in pixels of the photo that the map covers."""
    y, x = ((place + 0.5) * image[axis] / size[axis] - 0.5 for axis, place in enumerate(cell))
    return x, y
