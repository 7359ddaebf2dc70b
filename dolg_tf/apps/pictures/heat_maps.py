"""Heat maps over two photos of where their dense local features agree, joined by lines."""

from collections.abc import Sequence

import numpy as np

from dolg_tf.apps.pictures.agreement import Agreement, Pair
from dolg_tf.apps.pictures.ranked_list import draw_map

# Okabe and Ito's sky blue: no colour of the heat maps comes near it, not even for the colour-blind.
_LINE, _CASE = "#56B4E9", "black"


def draw(figure, panels: Sequence, scale, photos: Sequence[np.ndarray], found: Agreement) -> None:
    """Draws where two photos agree, over the photos.

    Both heat maps have one scale from 0 to 1, which is also that of every other pair of photos:
    where nothing agrees, they stay dark.

    Args:
      figure: of the axes.
      panels: the axes of either photo.
      scale: axes of the scale.
      photos: two, uint8 RGB (H, W, 3), of the axes' aspects.
      found: a result of `agreement`.
    """
    for axes, image, values in zip(panels, photos, (found.a, found.b), strict=True):
        drawn = draw_map(axes, image, values)
        drawn.set_clim(0, 1)
    bar = figure.colorbar(drawn, cax=scale)
    bar.set_label("agreement", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set_alpha(1)
    for number, pair in enumerate(found.pairs, 1):
        _draw_pair(figure, panels, photos, found, pair, number)


def describe(found: Agreement) -> str:
    """Returns in words what `draw` draws."""
    text = (
        "Heat maps over both show where their local features agree, at most "
        f"{found.a.max():.2f} of 1; "
    )
    if not found.pairs:
        return text + "no pair of places is joined."
    pairs = "1 pair of places is" if len(found.pairs) == 1 else f"{len(found.pairs)} pairs are"
    return text + f"{pairs} joined by lines, the strongest of {found.pairs[0].agreement:.2f}."


def caption(found: Agreement) -> str:
    """Returns what stands below the picture."""
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
