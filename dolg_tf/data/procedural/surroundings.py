"""Surroundings of a procedural landmark: sky, ground and neighbours behind, things in front.

Everything is drawn anew for each photo, so that two photos have only the landmark in common.
Coordinates are pixels of the photo, y down.
"""

import numpy as np
from PIL import Image, ImageDraw

from dolg_tf.data.procedural.parts import ROOF_COLOURS, STONES

# Top and bottom of the sky: clear, pale, overcast, evening, storm, night.
_SKIES = (
    ((86, 138, 206), (186, 210, 232)),
    ((150, 190, 220), (226, 232, 236)),
    ((186, 188, 192), (222, 222, 220)),
    ((92, 84, 130), (240, 166, 112)),
    ((84, 92, 108), (160, 164, 168)),
    ((18, 24, 52), (62, 62, 92)),
)
_GROUNDS = (
    (104, 128, 72),
    (150, 144, 132),
    (190, 170, 132),
    (92, 94, 98),
    (78, 104, 124),
    (196, 196, 194),
)
_LEAVES = ((62, 92, 48), (88, 112, 56), (44, 70, 50), (168, 120, 50), (120, 132, 90), (70, 60, 50))
_CLOTHES = (
    (180, 50, 50),
    (40, 70, 130),
    (230, 226, 220),
    (40, 40, 44),
    (210, 170, 60),
    (90, 120, 90),
)


def _pick(rng: np.random.Generator, colours, spread: float = 22.0) -> tuple[int, int, int]:
    """Returns one of the colours, varied."""
    colour = np.array(colours[rng.integers(len(colours))]) + rng.normal(0, spread, 3)
    return tuple(int(v) for v in np.clip(colour, 0, 255))


def _toned(colour, tone: float) -> tuple[int, int, int]:
    return tuple(int(min(v * tone, 255)) for v in colour[:3])


# --- behind --------------------------------------------------------------------------


def _sky(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    top, bottom = np.array(_SKIES[rng.integers(len(_SKIES))], np.float32)
    ramp = np.linspace(0, 1, 12, dtype=np.float32)[:, None, None]
    sky = np.broadcast_to(top + (bottom - top) * ramp, (12, 5, 3))
    clouds = rng.random((12, 5, 1), np.float32) ** 2 * rng.uniform(0, 0.8)
    sky = sky * (1 - clouds) + (bottom * 0.6 + 90) * clouds
    return Image.fromarray(sky.astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _hills(draw, rng, size, horizon: float):
    n = 12
    rise = np.abs(np.cumsum(rng.normal(0, 0.03, n))) * size[1] * rng.uniform(0.3, 1.6)
    xs = np.linspace(0, size[0], n)
    ridge = list(zip(xs, horizon - rise, strict=True))
    draw.polygon([(0, size[1]), *ridge, (size[0], size[1])], fill=_pick(rng, _LEAVES[:3], 30))


def _house(draw, rng, x: float, base: float, unit: float):
    """Draws an ordinary building; `unit` is the height of the landmark."""
    w, h = unit * rng.uniform(0.15, 0.5), unit * rng.uniform(0.12, 0.62)
    wall, _, dark = STONES[rng.integers(len(STONES))]
    wall = _pick(rng, (wall,), 26)
    draw.rectangle((x, base - h, x + w, base), fill=wall)
    if rng.random() < 0.5:
        peak = base - h - w * rng.uniform(0.15, 0.4)
        draw.polygon(
            [(x, base - h), (x + w, base - h), (x + w / 2, peak)], fill=_pick(rng, ROOF_COLOURS)
        )
    columns, rows = rng.integers(2, 7), rng.integers(2, 7)
    share, glass = rng.uniform(0.3, 0.7), _pick(rng, (dark,))
    dx, dy = w / columns, h / rows
    for i in range(columns):
        for j in range(rows):
            a, b = x + (i + 0.5 - share / 2) * dx, base - h + (j + 0.5 - share / 2) * dy
            draw.rectangle((a, b, a + share * dx, b + share * dy), fill=glass)


def _ground(draw, rng, size, horizon: float):
    colour = _pick(rng, _GROUNDS)
    steps = 8
    edges = horizon + (size[1] - horizon) * np.linspace(0, 1, steps + 1) ** 1.5
    fade = rng.uniform(-0.25, 0.25)
    for i in range(steps):
        box = (0, edges[i], size[0], max(edges[i + 1], edges[i]))
        draw.rectangle(box, fill=_toned(colour, 1 + fade * (i / steps - 0.5)))
    if rng.random() < 0.5:
        centre, line = rng.uniform(0, size[0]), _toned(colour, rng.uniform(0.75, 1.2))
        for x in np.linspace(-3, 4, int(rng.integers(8, 24))) * size[0]:
            draw.line((centre, horizon, x, size[1]), fill=line, width=1)


def backdrop(rng: np.random.Generator, size: tuple[int, int], horizon: float, unit: float):
    """Draws what is behind the landmark.

    Args:
      rng: draws everything that varies.
      size: width and height of the photo, pixels.
      horizon: where the ground begins, pixels from the top; may be outside the photo.
      unit: height of the landmark, pixels.

    Returns:
      An RGB image.
    """
    image = _sky(rng, size)
    draw = ImageDraw.Draw(image)
    if rng.random() < 0.5:
        _hills(draw, rng, size, horizon)
    # The ground reaches under the landmark, whose foot may be tilted.
    if horizon < size[1]:
        _ground(draw, rng, size, horizon)
    for _ in range(int(rng.integers(0, 4))):
        _house(draw, rng, rng.uniform(-0.2, 1.0) * size[0], horizon + 0.04 * unit, unit)
    for _ in range(int(rng.integers(0, 4))):
        x, h = rng.uniform(0, size[0]), unit * rng.uniform(0.12, 0.4)
        _tree(draw, rng, x, horizon + 0.05 * unit, h)
    return image


# --- in front ------------------------------------------------------------------------


def _tree(draw, rng, x: float, base: float, h: float):
    leaves = _pick(rng, _LEAVES)
    trunk = 0.04 * h
    draw.rectangle((x - trunk, base - 0.5 * h, x + trunk, base), fill=(70, 56, 44, 255))
    wide = rng.uniform(0.2, 0.42) * h
    n = 14
    across, up = rng.uniform(-1, 1, n) * wide, rng.uniform(0.35, 0.92, n) * h
    radius, tone = rng.uniform(0.1, 0.2, n) * h, rng.uniform(0.65, 1.2, n)
    for a, u, r, t in zip(across, up, radius, tone, strict=True):
        box = (x + a - r, base - u - r, x + a + r, base - u + r)
        draw.ellipse(box, fill=(*_toned(leaves, t), 255))


def _person(draw, rng, x: float, base: float, h: float):
    h = h * rng.uniform(0.4, 0.8)
    w = 0.13 * h
    legs, coat = _pick(rng, _CLOTHES), _pick(rng, _CLOTHES)
    skin = _pick(rng, ((222, 184, 150), (150, 104, 76), (90, 62, 48)), 8)
    draw.rectangle((x - 0.7 * w, base - 0.5 * h, x + 0.7 * w, base), fill=(*legs, 255))
    draw.rectangle((x - w, base - 0.85 * h, x + w, base - 0.42 * h), fill=(*coat, 255))
    draw.ellipse((x - 0.5 * w, base - h, x + 0.5 * w, base - 0.84 * h), fill=(*skin, 255))


def _pole(draw, rng, x: float, base: float, h: float):
    w, colour = h * rng.uniform(0.012, 0.03), (*_pick(rng, _CLOTHES[3:4]), 255)
    top = base - 1.6 * h
    draw.rectangle((x - w, top, x + w, base), fill=colour)
    if rng.random() < 0.5:
        draw.ellipse((x - 3 * w, top - 3 * w, x + 3 * w, top + 3 * w), fill=(236, 230, 200, 255))
    else:
        flag = (x, top, x + 0.35 * h, top + 0.22 * h)
        draw.rectangle(flag, fill=(*_pick(rng, _CLOTHES), 255))


def _bus(draw, rng, x: float, base: float, h: float):
    h = h * rng.uniform(0.3, 0.5)
    w, paint = h * rng.uniform(1.2, 2.4), (*_pick(rng, _CLOTHES), 255)
    draw.rectangle((x - w / 2, base - h, x + w / 2, base - 0.1 * h), fill=paint)
    for i in range(5):
        a = x - w / 2 + w * (0.06 + 0.19 * i)
        draw.rectangle((a, base - 0.9 * h, a + 0.14 * w, base - 0.55 * h), fill=(50, 58, 66, 255))
    for a in (x - 0.3 * w, x + 0.3 * w):
        box = (a - 0.14 * h, base - 0.22 * h, a + 0.14 * h, base + 0.06 * h)
        draw.ellipse(box, fill=(30, 30, 32, 255))


_THINGS = (_tree, _tree, _person, _person, _pole, _bus)


def foreground(
    rng: np.random.Generator,
    size: tuple[int, int],
    points: np.ndarray,
    unit: float,
    hidden: tuple[float, float],
) -> Image.Image:
    """Draws things in front of the landmark until they hide enough of it.

    Args:
      rng: draws everything that varies.
      size: width and height of the photo, pixels.
      points: (N, 2) pixels that the landmark covers, only those in the photo.
      unit: height of the landmark, pixels.
      hidden: least and greatest fraction of the points to hide. A thing that would hide more is
        left out again; where there is little room, less than the least may be hidden.

    Returns:
      An RGBA image.
    """
    layer = Image.new("RGBA", size)
    columns, rows = points.astype(int).T
    foot = min(rows.max() + 0.06 * unit, size[1] * 1.05)
    share, aim = 0.0, rng.uniform(*hidden)
    for _ in range(24):
        if share >= aim:
            break
        before = layer.copy()
        near = rng.uniform(0.3, 1.2) * (1 + aim)
        thing = _THINGS[rng.integers(len(_THINGS))]
        x = columns[rng.integers(len(columns))]
        base = foot + rng.uniform(0, 0.3) * near * unit
        thing(ImageDraw.Draw(layer), rng, float(x), base, near * min(unit, 1.2 * size[1]))
        covered = float(np.mean(np.asarray(layer.getchannel("A"))[rows, columns] > 0))
        if covered > hidden[1]:
            layer = before
        else:
            share = covered
    return layer
