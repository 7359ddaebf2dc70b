"""Parts of procedural landmarks: walls, patterns, windows, roofs.

Lengths are in units: the canvas is 1 wide and 1 high, x points right, y points up from the ground.
Heights make the relief: 0 to 255, towards the viewer.
"""

import numpy as np
from PIL import Image, ImageChops, ImageDraw

# Wall, trim, openings: sandstone, brick, limestone, stucco, granite. Shared by all landmarks, as
# the roofs are, so that colour does not identify them.
STONES = (
    ((196, 168, 124), (226, 208, 170), (58, 48, 40)),
    ((162, 92, 70), (214, 190, 164), (50, 40, 40)),
    ((172, 168, 156), (214, 210, 198), (48, 50, 54)),
    ((216, 202, 184), (238, 232, 222), (66, 58, 56)),
    ((132, 130, 134), (186, 184, 184), (42, 42, 48)),
)
# Tile, slate, lead, copper, thatch.
ROOF_COLOURS = ((156, 84, 62), (84, 82, 92), (104, 116, 124), (84, 122, 104), (150, 126, 82))
WALL, TRIM, DARK, ROOF = range(4)
TEXTURES = ("plain", "blocks", "stripes", "checker", "pilasters", "lozenges", "zigzag")
WINDOWS = ("rect", "round", "pointed", "circle", "slit")


class Canvas:
    """A canvas that draws polygons of a material into colour and height at once."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.side, self.rng = side, rng
        stone, roof = (
            STONES[rng.integers(len(STONES))],
            ROOF_COLOURS[rng.integers(len(ROOF_COLOURS))],
        )
        self.palette = np.array([*stone, roof], np.float32)
        self.colour = Image.new("RGBA", (side, side))
        self.height = Image.new("L", (side, side))
        self._open()

    def _open(self):
        self._colour, self._height = ImageDraw.Draw(self.colour), ImageDraw.Draw(self.height)

    def _pixels(self, points):
        return [(x * self.side, (1 - y) * self.side) for x, y in points]

    def polygon(self, points, material: int, height: int, tone: float = 1.0):
        """Fills a polygon; height is 0 to 255, tone multiplies the material's colour."""
        pixels = self._pixels(points)
        fill = np.clip(self.palette[material] * tone, 0, 255).astype(int)
        self._colour.polygon(pixels, fill=(*map(int, fill), 255))
        self._height.polygon(pixels, fill=int(np.clip(height, 1, 255)))

    def box(self, box, material: int, height: int, tone: float = 1.0):
        """Fills the rectangle (x0, y0, x1, y1)."""
        x0, y0, x1, y1 = box
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), material, height, tone)

    def cut(self, points):
        """Cuts a hole to see through."""
        pixels = self._pixels(points)
        self._colour.polygon(pixels, fill=(0, 0, 0, 0))
        self._height.polygon(pixels, fill=0)

    def _mask(self, points):
        mask = Image.new("L", self.colour.size)
        ImageDraw.Draw(mask).polygon(self._pixels(points), fill=255)
        return mask

    def clipped(self, points, draw):
        """Calls `draw()` and keeps only what it drew inside the polygon."""
        before = self.colour.copy(), self.height.copy()
        draw()
        mask = self._mask(points)
        self.colour = Image.composite(self.colour, before[0], mask)
        self.height = Image.composite(self.height, before[1], mask)
        self._open()

    def bulge(self, points, amount: int):
        """Raises the polygon like an upright cylinder, so that light falls on it like on one."""
        x0, x1 = min(p[0] for p in points), max(p[0] for p in points)
        u = ((np.arange(self.side) + 0.5) / self.side - x0) / (x1 - x0) * 2 - 1
        row = (amount * np.sqrt(np.clip(1 - u * u, 0, 1))).astype(np.uint8)
        raised = ImageChops.add(self.height, Image.fromarray(np.tile(row, (self.side, 1))))
        self.height.paste(raised, mask=self._mask(points))


# --- shapes --------------------------------------------------------------------------


def opening(shape: str, cx: float, y: float, w: float, h: float) -> list[tuple[float, float]]:
    """Returns the outline of an opening: standing at y, centred on cx, w wide and h high."""
    r = w / 2
    if shape == "circle":
        t = np.linspace(0, 2 * np.pi, 25)
        r = min(w, h) / 2
        return list(zip(cx + r * np.cos(t), y + h / 2 + r * np.sin(t), strict=True))
    if shape == "slit":
        r, shape = w / 6, "rect"
    if shape == "round":
        t = np.linspace(0, np.pi, 15)
        top = list(zip(cx + r * np.cos(t), y + max(h - r, 0) + r * np.sin(t), strict=True))
    elif shape == "pointed":
        t = np.linspace(0, np.pi / 3, 8)
        xs, ys = w * np.cos(t) - r, w * np.sin(t) + max(h - 0.87 * w, 0)
        top = list(zip(cx + xs, y + ys, strict=True))
        top += list(zip(cx - xs[::-1], y + ys[::-1], strict=True))
    else:
        top = [(cx + r, y + h), (cx - r, y + h)]
    return [(cx + r, y), *top, (cx - r, y)]


def dome_outline(kind: str, cx: float, y: float, w: float, h: float):
    """Returns the outline of a dome: half an ellipse, or an onion."""
    t = np.linspace(0, 1, 22)
    if kind == "onion":
        xs = np.cos(t * np.pi / 2) ** 1.3 + 0.34 * np.sin(np.clip(t * 1.7, 0, 1) * np.pi)
        ys = t
    else:
        xs, ys = np.cos(t * np.pi / 2), np.sin(t * np.pi / 2)
    right = list(zip(cx + xs * w / 2, y + ys * h, strict=True))
    return right + list(zip(cx - xs[::-1] * w / 2, y + ys[::-1] * h, strict=True))


def texture(c: Canvas, box, kind: str, count: int, height: int):
    """Covers a wall with a pattern of about `count` repeats over its width."""
    x0, y0, x1, y1 = box
    step = (x1 - x0) / count
    rows = max(1, round((y1 - y0) / step))
    dy = (y1 - y0) / rows
    for j in range(rows):
        y = y0 + j * dy
        if kind == "stripes" and j % 2:
            c.box((x0, y, x1, y + dy), TRIM, height, 0.98)
        for i in range(count):
            x = x0 + i * step
            if kind == "blocks":
                shift = step / 2 if j % 2 else 0
                piece = (x + shift, y, min(x + shift + step * 0.93, x1), y + dy * 0.9)
                c.box(piece, WALL, height + 5, c.rng.uniform(0.72, 1.12))
            elif kind == "checker" and (i + j) % 2:
                c.box((x, y, x + step, y + dy), WALL, height - 4, 0.55)
            elif kind == "lozenges":
                mid = ((x + step / 2, y), (x + step, y + dy / 2))
                c.polygon((*mid, (x + step / 2, y + dy), (x, y + dy / 2)), TRIM, height + 6, 0.97)
            elif kind == "zigzag":
                up = ((x, y), (x + step / 2, y + dy * 0.6), (x + step, y), (x + step, y + dy * 0.4))
                c.polygon((*up, (x + step / 2, y + dy), (x, y + dy * 0.4)), WALL, height - 3, 0.55)
    if kind == "pilasters":
        for i in range(count):
            x = x0 + (i + 0.3) * step
            c.box((x, y0, x + 0.4 * step, y1), TRIM, height + 26)


def openings(c: Canvas, box, rows: int, columns: int, shape: str, share: float, height: int):
    """Puts a grid of framed windows into the box; `share` is their fraction of a cell."""
    x0, y0, x1, y1 = box
    w, h = (x1 - x0) / columns, (y1 - y0) / rows
    for j in range(rows):
        for i in range(columns):
            cx, y = x0 + (i + 0.5) * w, y0 + (j + (1 - share) / 2) * h
            frame = opening(shape, cx, y - 0.03 * h, w * min(share + 0.16, 0.95), h * share * 1.1)
            c.polygon(frame, TRIM, height + 18)
            c.polygon(opening(shape, cx, y, w * share, h * share), DARK, height - 30)


def rose(c: Canvas, cx: float, cy: float, r: float, spokes: int, height: int):
    """A wheel window, or the face of a clock."""
    c.polygon(opening("circle", cx, cy - r, 2 * r, 2 * r), TRIM, height + 24)
    c.polygon(opening("circle", cx, cy - 0.82 * r, 1.64 * r, 1.64 * r), DARK, height - 20)
    for t in np.arange(spokes) * 2 * np.pi / spokes:
        along, across = (
            np.array([np.cos(t), np.sin(t)]) * r * 0.86,
            np.array([-np.sin(t), np.cos(t)]),
        )
        a, b = np.array([cx, cy]) - across * r * 0.07, np.array([cx, cy]) + across * r * 0.07
        c.polygon([tuple(a), tuple(a + along), tuple(b + along), tuple(b)], TRIM, height + 10)
    c.polygon(opening("circle", cx, cy - 0.25 * r, 0.5 * r, 0.5 * r), TRIM, height + 14)


# --- roofs ---------------------------------------------------------------------------
# Each stands at y on a wall from x0 to x1, is about h high and starts at a height of relief.


def _flat(c, x0, x1, y, h, height):
    w = x1 - x0
    c.box((x0 - 0.04 * w, y, x1 + 0.04 * w, y + 0.1 * h), TRIM, height + 34)


def _pitched(c, x0, x1, y, h, height, material):
    over, cx = 0.03 * (x1 - x0), (x0 + x1) / 2
    c.polygon(((x0 - over, y), (x1 + over, y), (cx, y + h)), material, height + 10)
    c.polygon(((cx, y), (x1 + over, y), (cx, y + h)), material, height + 4, 0.8)


def _pyramid(c, x0, x1, y, h, height):
    _pitched(c, x0, x1, y, 0.8 * h, height, ROOF)


def _spire(c, x0, x1, y, h, height):
    _pitched(c, x0, x1, y, 1.4 * h, height, ROOF)


def _gable(c, x0, x1, y, h, height):
    w, cx = x1 - x0, (x0 + x1) / 2
    c.polygon(((x0 - 0.05 * w, y), (x1 + 0.05 * w, y), (cx, y + 0.5 * h)), TRIM, height + 30)
    c.polygon(((x0 + 0.1 * w, y), (x1 - 0.1 * w, y), (cx, y + 0.38 * h)), WALL, height, 0.8)


def _bands(c, box, n, height):
    x0, y0, x1, y1 = box
    for low in np.linspace(y0, y1, n, endpoint=False):
        c.box((x0, low, x1, low + 0.45 * (y1 - y0) / n), TRIM, height)


def _dome(c, x0, x1, y, h, height, kind="dome"):
    w, cx = x1 - x0, (x0 + x1) / 2
    shape = dome_outline(kind, cx, y, w * (0.94 if kind == "dome" else 0.8), h)
    half = len(shape) // 2
    c.polygon(shape, ROOF, height - 20)
    pattern, n = c.rng.integers(3), int(c.rng.integers(2, 7))  # plain, ribs or bands
    if pattern == 1:
        for u in np.linspace(-0.8, 0.8, n):
            a, b = (
                [(cx + (px - cx) * v, py) for px, py in shape[:half]] for v in (u - 0.07, u + 0.07)
            )
            c.polygon(a + b[::-1], TRIM, height - 12)
    elif pattern == 2:
        c.clipped(shape, lambda: _bands(c, (x0, y, x1, y + h), n, height - 12))
    c.bulge(shape, 90)
    c.box((cx - 0.02 * w, y + 0.97 * h, cx + 0.02 * w, y + 1.2 * h), ROOF, height, 0.7)


def _onion(c, x0, x1, y, h, height):
    _dome(c, x0, x1, y, 1.1 * h, height, "onion")


def _crenels(c, x0, x1, y, h, height):
    w = x1 - x0
    n = max(3, round(w / 0.045))
    c.box((x0 - 0.03 * w, y, x1 + 0.03 * w, y + 0.14 * h), WALL, height + 30, 1.06)
    for i in range(0, 2 * n - 1, 2):
        a = x0 + i * w / (2 * n - 1)
        c.box((a, y, a + w / (2 * n - 1), y + 0.34 * h), WALL, height + 24)


def _steps(c, x0, x1, y, h, height):
    inset = (x1 - x0) / 9
    for i in range(4):
        a, b, edge = x0 + i * inset, x1 - i * inset, y + (i + 1) * h / 5
        c.box((a, edge - h / 5, b, edge), WALL, height + 6 - 5 * i)
        c.box((a, edge - h / 30, b, edge), TRIM, height + 24)


def _pagoda(c, x0, x1, y, h, height):
    w, cx, dy = x1 - x0, (x0 + x1) / 2, 0.36 * h
    for i in range(3):
        eaves, wall, y0 = (0.62 - 0.14 * i) * w, (0.42 - 0.12 * i) * w, y + i * dy
        c.box((cx - wall, y0, cx + wall, y0 + dy), WALL, height - 10, 0.85)
        low = ((cx - eaves, y0 + 0.3 * dy), (cx + eaves, y0 + 0.3 * dy))
        high = ((cx + 0.8 * wall, y0 + dy), (cx - 0.8 * wall, y0 + dy))
        c.polygon((*low, *high), ROOF, height + 20)


ROOFS = {
    "flat": _flat,
    "crenels": _crenels,
    "pyramid": _pyramid,
    "spire": _spire,
    "dome": _dome,
    "onion": _onion,
    "steps": _steps,
    "gable": _gable,
    "pagoda": _pagoda,
}
