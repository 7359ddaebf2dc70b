"""Procedural landmarks: facades, towers, domes, arches and mixes of them.

A landmark is drawn once, flat, with an alpha channel and a relief; `camera` warps it, lights
it and puts it into a photo. Units as in `parts`.
"""

import dataclasses

import numpy as np
from PIL import Image

from dolg_tf.data.procedural.parts import (
    DARK,
    ROOFS,
    TEXTURES,
    TRIM,
    WALL,
    WINDOWS,
    Canvas,
    opening,
    openings,
    rose,
    texture,
)

# Drawn at twice the size that photos are taken from: the reduction smooths the edges.
_SMOOTH = 2
# Height of a wall that is neither in front nor set back.
_FACE = 90


@dataclasses.dataclass(frozen=True)
class Landmark:
    """A drawn landmark.

    Attributes:
      levels: (colour and alpha as RGBA, relief as RGB) at full, half, quarter and eighth size.
        Relief is (slope to the right, slope upwards, height); a slope of 0 is 128.
      points: (N, 2) float64 x, y of a grid of places that the landmark covers, in units, with
        x = 0 in its middle and y = 0 on the ground.
      width: in units.
      height: in units.
    """

    levels: tuple[tuple[Image.Image, Image.Image], ...]
    points: np.ndarray
    width: float
    height: float


@dataclasses.dataclass(frozen=True)
class _Style:
    """Style that the parts of one landmark share."""

    textures: tuple[str, ...]
    windows: tuple[str, ...]
    roofs: tuple[str, ...]
    repeats: int
    share: float
    round_towers: bool
    cornice: float


def _draw_style(rng: np.random.Generator) -> _Style:
    return _Style(
        textures=tuple(rng.choice(TEXTURES, 2, replace=False)),
        windows=tuple(rng.choice(WINDOWS, 2, replace=False)),
        roofs=tuple(rng.choice(list(ROOFS), 3, replace=False)),
        repeats=int(rng.integers(3, 8)),
        share=float(rng.uniform(0.42, 0.76)),
        round_towers=bool(rng.random() < 0.4),
        cornice=float(rng.uniform(0.01, 0.03)),
    )


# --- parts ---------------------------------------------------------------------------


def _storeys(c: Canvas, style: _Style, box, rows: int, columns: int, face: int = _FACE):
    """A wall with its pattern, `rows` storeys of windows and cornices between them."""
    x0, y0, x1, y1 = box
    c.box(box, WALL, face)
    repeats = max(2, round(style.repeats * (x1 - x0) / 0.5))
    texture(c, box, style.textures[0], repeats, face)
    h = (y1 - y0) / rows
    for j in range(rows):
        floor = (x0, y0 + j * h, x1, y0 + (j + 1) * h)
        openings(c, floor, 1, columns, style.windows[j % 2], style.share, face)
        edge = y0 + (j + 1) * h
        c.box((x0, edge - style.cornice, x1, edge), TRIM, face + 40)


def _tower(c: Canvas, style: _Style, cx: float, w: float, h: float, tiers: int, face: int):
    """A tower of tiers, each a little narrower, with a roof; h is without the roof."""
    rng = c.rng
    shrink = rng.uniform(0.72, 1.0)
    dy = h / tiers
    clock = rng.integers(tiers) if rng.random() < 0.4 else -1
    columns = int(rng.integers(1, 4))
    for i in range(tiers):
        half = w / 2 * shrink**i
        box = (cx - half, i * dy, cx + half, (i + 1) * dy)
        c.box(box, WALL, face)
        texture(c, box, style.textures[i % 2], max(2, style.repeats // 2), face)
        if i == clock:
            rose(c, cx, (i + 0.5) * dy, min(half, dy / 2) * 0.8, 12, face)
        else:
            rows = max(1, round(dy / half / 2))
            openings(c, box, rows, columns, style.windows[i % 2], style.share, face)
        if style.round_towers:
            c.bulge(((box[0], box[1]), (box[2], box[1]), (box[2], box[3]), (box[0], box[3])), 60)
        rim = half * 1.1
        c.box((cx - rim, box[3] - style.cornice, cx + rim, box[3]), TRIM, face + 50)
    ROOFS[style.roofs[0]](c, cx - half, cx + half, h, w * rng.uniform(0.8, 1.5), face)


def _portals(c: Canvas, style: _Style, x0: float, x1: float, h: float, n: int, face: int):
    """A row of doors, the middle one the highest."""
    w = (x1 - x0) / n
    shape = style.windows[0] if style.windows[0] in ("round", "pointed") else "rect"
    for i in range(n):
        cx, high = x0 + (i + 0.5) * w, h * (1 - 0.25 * (i != n // 2))
        for share, material, up in ((0.8, TRIM, 24), (0.62, WALL, 4), (0.46, DARK, -30)):
            grow = high * (0.75 + 0.3 * share)
            c.polygon(opening(shape, cx, 0, share * w, grow), material, face + up, 0.9)


def _columns(c: Canvas, box, n: int, face: int):
    """A row of standing columns before a dark hall."""
    x0, y0, x1, y1 = box
    c.box(box, DARK, face - 40)
    w = (x1 - x0) / n
    for i in range(n):
        a, b = x0 + (i + 0.25) * w, x0 + (i + 0.75) * w
        c.box((a, y0, b, y1), TRIM, face)
        c.bulge(((a, y0), (b, y0), (b, y1), (a, y1)), 50)
        for y in (y0, y1 - 0.1 * w):
            c.box((a - 0.12 * w, y, b + 0.12 * w, y + 0.1 * w), WALL, face + 50)


# --- kinds ---------------------------------------------------------------------------


def _facade(c: Canvas, style: _Style):
    rng = c.rng
    half, high = rng.uniform(0.2, 0.36), rng.uniform(0.34, 0.6)
    rows, columns = int(rng.integers(1, 5)), int(rng.integers(2, 8))
    box = (0.5 - half, 0, 0.5 + half, high)
    _storeys(c, style, box, rows, columns)
    if rng.random() < 0.3:
        _columns(c, (0.5 - half, 0, 0.5 + half, high * 0.62), int(rng.integers(4, 10)), _FACE)
    else:
        portal = high / rows * rng.uniform(0.7, 1.1)
        _portals(c, style, 0.5 - half * 0.8, 0.5 + half * 0.8, portal, rng.integers(1, 4), _FACE)
    ROOFS[style.roofs[1]](c, box[0], box[2], high, rng.uniform(0.2, 0.36), _FACE)
    if rng.random() < 0.5:
        rose(c, 0.5, high * 0.72, half * rng.uniform(0.3, 0.5), int(rng.integers(6, 14)), _FACE)
    which = rng.integers(4)  # 0 none, 1 left, 2 right, 3 both
    w, h, tiers = rng.uniform(0.11, 0.19), rng.uniform(0.5, 0.8), int(rng.integers(2, 5))
    for bit, cx in ((1, 0.5 - half - w * 0.35), (2, 0.5 + half + w * 0.35)):
        if which & bit:
            _tower(c, style, cx, w, h, tiers, _FACE + 30)


def _tall_tower(c: Canvas, style: _Style):
    rng = c.rng
    w = rng.uniform(0.2, 0.4)
    if rng.random() < 0.7:
        wide, low = rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.26)
        cx = 0.5 + rng.choice([-0.15, 0, 0.15])
        _storeys(c, style, (cx - wide, 0, cx + wide, low), 1, int(rng.integers(3, 9)), _FACE - 20)
        ROOFS[style.roofs[2]](c, cx - wide, cx + wide, low, 0.15, _FACE - 20)
    h = rng.uniform(0.5, 0.72)
    _tower(c, style, 0.5, w, h, int(rng.integers(2, 6)), _FACE)
    if rng.random() < 0.6:
        _portals(c, style, 0.5 - w / 2, 0.5 + w / 2, h * rng.uniform(0.12, 0.25), 1, _FACE)


def _domed(c: Canvas, style: _Style):
    rng = c.rng
    half, high = rng.uniform(0.2, 0.42), rng.uniform(0.14, 0.46)
    drum, rise = half * rng.uniform(0.35, 0.85), rng.uniform(0.02, 0.2)
    kind, other = rng.choice(["dome", "onion", "pyramid"], 2)
    box = (0.5 - drum, high, 0.5 + drum, high + rise)
    _storeys(c, style, box, 1, int(rng.integers(3, 9)), _FACE - 20)
    ROOFS[kind](c, box[0], box[2], box[3], drum * rng.uniform(0.7, 1.7), _FACE - 10)
    side, pairs = half * rng.uniform(0.14, 0.3), int(rng.integers(3))
    for place in (0.82, 0.4)[:pairs]:
        for cx in (0.5 - half * place, 0.5 + half * place):
            ROOFS[other](c, cx - side, cx + side, high, side * rng.uniform(1.5, 2.2), _FACE - 20)
    rows, columns = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    _storeys(c, style, (0.5 - half, 0, 0.5 + half, high), rows, columns)
    portal, tall = rng.uniform(0.06, 0.2), high * rng.uniform(0.4, 1.2)
    _portals(c, style, 0.5 - portal, 0.5 + portal, tall, int(rng.integers(1, 3)), _FACE + 10)
    if rng.random() < 0.6:
        w, h, tiers = rng.uniform(0.06, 0.14), rng.uniform(0.35, 0.85), int(rng.integers(1, 5))
        for cx in (0.5 - half - w * 0.4, 0.5 + half + w * 0.4):
            _tower(c, style, cx, w, h, tiers, _FACE + 20)


def _arch(c: Canvas, style: _Style):
    rng = c.rng
    half, high = rng.uniform(0.26, 0.46), rng.uniform(0.4, 0.75)
    n, shape = int(rng.choice([1, 1, 2, 3, 3, 5])), str(rng.choice(["round", "pointed", "rect"]))
    attic = high * rng.uniform(0.62, 0.8)
    c.box((0.5 - half, 0, 0.5 + half, high), WALL, _FACE)
    texture(c, (0.5 - half, 0, 0.5 + half, high), style.textures[0], style.repeats * 2, _FACE)
    top = (0.5 - half * 0.94, attic, 0.5 + half * 0.94, high)
    texture(c, top, style.textures[1], style.repeats, _FACE)
    columns = int(rng.integers(3, 9))
    openings(c, top, 1, columns, style.windows[1], style.share, _FACE)
    c.box((0.5 - half * 1.04, attic - 0.02, 0.5 + half * 1.04, attic + 0.01), TRIM, _FACE + 50)
    ROOFS[style.roofs[0]](c, 0.5 - half, 0.5 + half, high, rng.uniform(0.15, 0.32), _FACE)
    w = 2 * half / n
    for i in range(n):
        cx, tall = 0.5 - half + (i + 0.5) * w, attic * (0.88 if i == n // 2 else 0.62)
        c.polygon(opening(shape, cx, 0, w * 0.76, tall * 1.06), TRIM, _FACE + 30)
        c.cut(opening(shape, cx, 0, w * 0.58, tall))
        edge = cx - w / 2
        c.box((edge - 0.012, 0, edge + 0.012, attic), TRIM, _FACE + 36)
    if rng.random() < 0.35:
        w, h = rng.uniform(0.1, 0.16), rng.uniform(0.5, 0.8)
        for cx in (0.5 - half, 0.5 + half):
            _tower(c, style, cx, w, h, int(rng.integers(2, 4)), _FACE + 30)


def _mix(c: Canvas, style: _Style):
    """Blocks side by side: a castle, a monastery, a street of one builder."""
    rng = c.rng
    n = int(rng.integers(3, 6))
    edges = 0.06 + 0.88 * np.concatenate([[0], np.cumsum(w := rng.uniform(0.5, 1.5, n)) / w.sum()])
    for i in range(n):
        x0, x1, high = edges[i], edges[i + 1], rng.uniform(0.15, 0.65)
        if rng.random() < 0.35:
            tall = min(high + 0.15, 0.7)
            _tower(c, style, (x0 + x1) / 2, x1 - x0, tall, int(rng.integers(1, 4)), _FACE + 20)
            continue
        rows, columns = max(1, round(high / 0.16)), max(1, round((x1 - x0) / 0.09))
        _storeys(c, style, (x0, 0, x1, high), rows, columns)
        roof = style.roofs[int(rng.integers(3))]
        ROOFS[roof](c, x0, x1, high, (x1 - x0) * rng.uniform(0.5, 0.9), _FACE)
        if rng.random() < 0.4:
            _portals(c, style, x0, x1, high * 0.4, 1, _FACE)


_KINDS = (_facade, _tall_tower, _domed, _arch, _mix)


# --- the landmark --------------------------------------------------------------------


def _relief(height: np.ndarray, side: int) -> np.ndarray:
    """Returns slope to the right, slope upwards and height, (H, W, 3) uint8."""
    # A step of 30 in height over one of 384 pixels is a full slope, at any canvas size.
    gain = 4.0 * side / 384
    padded = np.pad(height.astype(np.float32), 1, mode="edge")
    right = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    up = (padded[:-2, 1:-1] - padded[2:, 1:-1]) / 2
    slopes = np.clip(128 + gain * np.stack([right, up], -1), 0, 255)
    return np.concatenate([slopes, height[..., None]], -1).astype(np.uint8)


def draw_landmark(seed: int, number: int, side: int) -> Landmark:
    """Draws a landmark; the same seed and number give the same one.

    Args:
      seed: of the whole set.
      number: of the landmark, from 0; its kind is the number modulo 5.
      side: of the canvas, in pixels.
    """
    rng = np.random.default_rng([seed, number, 0])
    canvas = Canvas(side * _SMOOTH, rng)
    _KINDS[number % len(_KINDS)](canvas, _draw_style(rng))
    # Spires may reach beyond the canvas and are cut off there; margins are cropped here.
    left, top, right, bottom = canvas.colour.getbbox()
    unit = _SMOOTH * side
    colour = canvas.colour.crop((left, top, right, bottom)).reduce(_SMOOTH)
    height = np.asarray(canvas.height.crop((left, top, right, bottom)).reduce(_SMOOTH))
    levels = [(colour, Image.fromarray(_relief(height, side)))]
    for factor in (2, 4, 8):
        levels.append((colour.reduce(factor), levels[0][1].reduce(factor)))
    ys, xs = np.nonzero(np.asarray(colour.getchannel("A"))[4::8, 4::8] > 127)
    w, h = (right - left) / unit, (bottom - top) / unit
    points = np.stack([(xs * 8 + 4) / side - w / 2, h - (ys * 8 + 4) / side], -1)
    return Landmark(tuple(levels), points.astype(np.float64), w, h)
