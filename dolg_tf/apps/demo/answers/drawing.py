"""Verified matches as paths of an SVG over two photos, beside each other or one above the other."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from dolg_tf.apps.demo.answers.second_look import Why

_SIDE, _GAP = 600, 24  # of a photo across the row or column, and between two, in units of the SVG
_CROSS = 4  # half of one
_MOST_CROSSES = 200


@dataclasses.dataclass(frozen=True)
class Panel:
    """A photo's place in a drawing, and paths over it, from its corner.

    Attributes:
      name: of its class, "asked" or "found".
      x, y, width, height: in units of the drawing.
      frame: the other photo's frame, by the map.
      box: the part that was searched for; empty: all.
      crosses: matches that do not agree.
    """

    name: str
    x: float
    y: float
    width: float
    height: float
    frame: str
    box: str
    crosses: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A drawing.

    Attributes:
      name: of its class, "wide" or "tall".
      width, height: in its units.
      panels: of both photos.
      lines: path of the matches that agree.
      ends: (x, y) of these.
    """

    name: str
    width: float
    height: float
    panels: tuple[Panel, Panel]
    lines: str
    ends: list[tuple[float, float]]


def drawings(why: Why) -> tuple[Drawing, Drawing]:
    """Returns both drawings of an answer: for a wide and for a narrow screen."""
    return _drawing(why, "wide"), _drawing(why, "tall")


def _drawing(why: Why, name: str) -> Drawing:
    pair = why.pair
    sizes = [np.array(one.size[::-1], float) for one in (pair.query, pair.index)]
    across = 1 if name == "wide" else 0  # the axis along which both are equally long
    sizes = [size * _SIDE / size[across] for size in sizes]
    corners = [np.zeros(2), np.zeros(2)]
    corners[1][1 - across] = sizes[0][1 - across] + _GAP
    width, height = corners[1] + sizes[1]
    apart = np.flatnonzero(~pair.found.inliers)
    apart = apart[:: -(-max(1, len(apart)) // _MOST_CROSSES)]
    boxes = (why.box, None)
    panels = [
        Panel(
            word,
            *corner.round(1),
            *size.round(1),
            _outline(frame * size),
            "" if box is None else _rectangle(box, size / one.size[::-1]),
            "".join(
                f"M{x - _CROSS:.0f} {y - _CROSS:.0f}l{2 * _CROSS} {2 * _CROSS}m0-{2 * _CROSS}"
                f"l-{2 * _CROSS} {2 * _CROSS}"
                for x, y in places * size
            ),
        )
        for word, corner, size, frame, box, one, places in zip(
            ("asked", "found"),
            corners,
            sizes,
            pair.frames(),
            boxes,
            (pair.query, pair.index),
            pair.ends(apart),
            strict=True,
        )
    ]
    first, second = (
        (places * size + corner).round(1)
        for places, size, corner in zip(pair.ends(pair.lines()), sizes, corners, strict=True)
    )
    lines = "".join(f"M{a:g} {b:g}L{c:g} {d:g}" for a, b, c, d in np.hstack([first, second]))
    ends = [(x, y) for x, y in np.concatenate([first, second]).tolist()]
    return Drawing(name, round(width, 1), round(height, 1), tuple(panels), lines, ends)


def _rectangle(box: tuple[int, int, int, int], factor: np.ndarray) -> str:
    left, top, right, bottom = box * np.tile(factor, 2)
    return f"M{left:.1f} {top:.1f}H{right:.1f}V{bottom:.1f}H{left:.1f}Z"


def _outline(places: Iterable[np.ndarray]) -> str:
    """Returns the path through places (P, 2), broken where there are none."""
    path, begun = [], False
    for x, y in places:
        # Browsers draw in float32.
        if not (abs(x) < 1e5 and abs(y) < 1e5):
            begun = False
            continue
        path.append(f"{'L' if begun else 'M'}{x:.1f} {y:.1f}")
        begun = True
    return "".join(path)
