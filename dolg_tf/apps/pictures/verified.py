"""Verified matches: two photos side by side, lines between the places that agree on one view."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.retrieval.verification.pairs import Verification

MOST_LINES = 40  # more could not be told apart
_MOST_MARKS = 400  # of matches that do not agree
_CELLS = 8  # along either side of the first photo: lines begin in as many of these as they can
_EDGE = 48  # points along each side of a photo's frame, which a homography may tear

# Okabe and Ito's: each stands out on light and on dark, also for the colour-blind.
LINE, FRAME, MARK, CASE = "#56B4E9", "#F0E442", "#E69F00", "black"


@dataclasses.dataclass(frozen=True)
class VerifiedPair:
    """Two photos' local features, and what they agree on.

    Attributes:
      query, index: the features of the first and of the second photo.
      found: see `Verification`.
    """

    query: LocalFeatures
    index: LocalFeatures
    found: Verification

    def ends(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places of matches in either photo, (M, 2), x and y as shares of its sides."""
        pairs = zip((self.query, self.index), self.found.matches, strict=True)
        first, second = (
            features.positions[rows[chosen]][:, ::-1] / features.size[::-1]
            for features, rows in pairs
        )
        return first, second

    def lines(self, most: int = MOST_LINES) -> np.ndarray:
        """Returns which inliers to draw, int64: strong ones, spread over the first photo.

        Each cell of a grid gives its strongest, then each its second, and so on. The strength of a
        match is the product of its features'.
        """
        rows = np.flatnonzero(self.found.inliers)
        if len(rows) <= most:
            return rows
        first, _ = self.ends(rows)
        cells = np.clip((first * _CELLS).astype(int), 0, _CELLS - 1) @ (_CELLS, 1)
        matches = self.found.matches
        strengths = self.query.strengths[matches.query[rows]]
        strengths = strengths * self.index.strengths[matches.index[rows]]
        order = np.lexsort((-strengths, cells))
        counted = np.arange(len(rows)) - np.searchsorted(cells[order], cells[order])
        turn = np.empty(len(rows), int)
        turn[order] = counted
        return np.sort(rows[np.lexsort((-strengths, turn))[:most]])

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns where each photo's frame lies in the other, (P, 2), x and y as shares of it.

        The second photo's frame in the first, then the first's in the second. A point is NaN where
        there is no such place, and all are when there is no map, or none back.
        """
        nowhere = np.full((4 * _EDGE + 1, 2), np.nan)
        if self.found.map is None:
            return nowhere, nowhere
        there = np.vstack([self.found.map, (0, 0, 1)])[:3]
        sizes = self.query.size, self.index.size
        first = _frame(there, sizes[1], sizes[0])
        if abs(np.linalg.det(there)) < np.finfo(np.float32).eps:
            return first, nowhere
        return first, _frame(np.linalg.inv(there), *sizes)


def _frame(map_: np.ndarray, size: Sequence[int], other: Sequence[int]) -> np.ndarray:
    """Maps the frame of a photo into another one; see `VerifiedPair.frames`."""
    along = np.linspace(0, 1, _EDGE, endpoint=False)
    still = np.zeros(_EDGE)
    edges = ((still, along), (along, still + 1), (still + 1, 1 - along), (1 - along, still))
    y, x = np.concatenate([*map(np.array, edges), np.zeros((2, 1))], axis=1)
    places = map_ @ (y * size[0], x * size[1], np.ones_like(x))
    depth = places[2]
    # What lies behind the camera is on no picture.
    middle = map_[2] @ (size[0] / 2, size[1] / 2, 1)
    places = np.where(depth * middle > 1e-9 * middle**2, places[:2], np.nan)
    return (places / np.where(depth == 0, 1, depth))[::-1].T / other[::-1]


# --- words ---------------------------------------------------------------------------


def describe(pair: VerifiedPair) -> str:
    """Returns in words how much of two photos agrees, and on what."""
    count, inliers = len(pair.found.inliers), pair.found.count
    if not count:
        return "No place looks like one of the other photo."
    matches = "1 place looks" if count == 1 else f"{count:,} places look"
    alike = f"{matches} like one of the other photo"
    if pair.found.map is None:
        return f"{alike}, but no view of one scene explains three of them or more."
    return f"{alike}; {inliers:,} of them agree on one view: {_model(pair)}."


def _model(pair: VerifiedPair) -> str:
    """Returns what the second photo undergoes to lie upon the first."""
    map_ = pair.found.map
    kind = "a homography" if len(map_) == 3 else "an affine map"
    projective = np.vstack([map_, (0, 0, 1)])[:3]
    middle = np.array([*(side / 2 for side in pair.index.size), 1])
    y, x, w = projective @ middle
    # The derivative in the middle of the photo, x before y.
    linear = (projective[:2, :2] - np.outer((y, x), projective[2, :2]) / w) / w
    ((d, c), (b, a)) = linear
    scale = np.sqrt(abs(a * d - b * c))
    if a * d - b * c < 0:
        return (
            f"{kind} that mirrors the second photo, as no other photo of the same scene does, and "
            f"scales it by {scale:.2f}"
        )
    degrees = np.degrees(np.arctan2(c - b, a + d))
    way = "clockwise" if degrees > 0 else "anticlockwise"
    turn = f"turns it {abs(degrees):.0f}\N{DEGREE SIGN} {way}"
    if round(abs(degrees)) == 0:
        turn = "does not turn it"
    return f"{kind} that scales the second photo by {scale:.2f} and {turn}"


def caption(pair: VerifiedPair) -> str:
    """Returns what stands below the picture."""
    text = describe(pair)
    inliers, drawn = pair.found.count, len(pair.lines())
    if pair.found.map is not None:
        whose = "these" if drawn == inliers else f"{drawn} strong, well spread ones of these"
        text += f" Lines: {whose}. Dashed: the frame of each photo in the other, by that map."
    if inliers < len(pair.found.inliers):
        text += " Crosses: places that look alike but do not agree."
    return text


# --- the picture ---------------------------------------------------------------------


def draw(figure, panels: Sequence, photos: Sequence[np.ndarray], pair: VerifiedPair) -> None:
    """Draws the matches over two photos.

    Args:
      figure: of the axes.
      panels: the axes of either photo.
      photos: that these show, at any size.
      pair: what their local features agree on.
    """
    from matplotlib.patheffects import Normal, Stroke

    def cased(width: float) -> list:
        return [Stroke(linewidth=width + 1.1, foreground=CASE), Normal()]

    sizes = [np.array(image.shape[1::-1]) for image in photos]
    apart = np.flatnonzero(~pair.found.inliers)
    apart = apart[:: -(-max(1, len(apart)) // _MOST_MARKS)]
    for axes, size, frame, ends in zip(panels, sizes, pair.frames(), pair.ends(apart), strict=True):
        axes.autoscale(False)
        axes.plot(
            *(ends * size - 0.5).T, "x", color=MARK, markersize=2.6, markeredgewidth=0.6, alpha=0.75
        )
        axes.plot(
            *(frame * size - 0.5).T,
            color=FRAME,
            linewidth=1.4,
            dashes=(4, 2),
            path_effects=cased(1.4),
        )
    _join(
        figure,
        panels,
        [e * s - 0.5 for e, s in zip(pair.ends(pair.lines()), sizes, strict=True)],
        cased,
    )


def _join(figure, panels, ends, cased) -> None:
    """Joins places (M, 2) of two axes, in the data of each."""
    from matplotlib.collections import LineCollection

    # Over both photos and what is between them, in shares of the figure.
    overlay = figure.add_axes((0, 0, 1, 1), facecolor="none")
    overlay.set_axis_off()
    overlay.set(xlim=(0, 1), ylim=(0, 1))
    first, second = (
        figure.transFigure.inverted().transform(axes.transData.transform(places))
        for axes, places in zip(panels, ends, strict=True)
    )
    lines = np.stack([first, second], axis=1)
    overlay.add_collection(
        LineCollection(lines, colors=LINE, linewidths=0.9, path_effects=cased(0.9))
    )
    for places in (first, second):
        overlay.plot(
            *places.T, "o", color=LINE, markersize=3.2, markeredgecolor=CASE, markeredgewidth=0.6
        )
