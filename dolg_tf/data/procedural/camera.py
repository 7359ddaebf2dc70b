"""Photos of procedural landmarks: camera position, light, and development.

`sample_view` decides the geometry, so the box of a query is known without rendering. `take_photo`
renders it. Both depend only on their arguments and the generator.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from dolg_tf.data.procedural.scene import Landmark
from dolg_tf.data.procedural.surroundings import backdrop, foreground

SEVERITIES = ("easy", "hard", "junk")
# Photos are rendered at twice their size and reduced.
_SUPERSAMPLE = 2


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Ranges that a view is drawn from.

    Attributes:
      yaw: of the camera from straight ahead, to either side, degrees.
      pitch: from above (negative) or below, degrees.
      roll: largest, to either side, degrees.
      fill: size of the landmark, as a fraction of the largest that fits the photo.
      inside: fraction of the landmark inside the photo.
      hidden: fraction of that part which is behind something.
      blur: standard deviation, as a fraction of the photo's longest side.
      noise: standard deviation, as a fraction of full scale.
      exposure: factor on the light.
      haze: fraction of grey mixed in.
    """

    yaw: tuple[float, float] = (0, 18)
    pitch: tuple[float, float] = (-4, 10)
    roll: float = 4
    fill: tuple[float, float] = (0.78, 1.02)
    inside: tuple[float, float] = (0.95, 1.0)
    hidden: tuple[float, float] = (0.0, 0.06)
    blur: tuple[float, float] = (0.0, 0.004)
    noise: tuple[float, float] = (0.0, 0.012)
    exposure: tuple[float, float] = (0.8, 1.2)
    haze: tuple[float, float] = (0.0, 0.15)


_EASY = _Limits()
# A hard view has one of these, a junk view one of the others.
_HARDSHIPS = (
    {"yaw": (30, 45), "pitch": (-6, 17), "roll": 6},
    {"fill": (0.58, 0.7)},
    {"fill": (1.12, 1.35), "inside": (0.68, 0.83)},
    {"hidden": (0.15, 0.28)},
    {"blur": (0.006, 0.01), "noise": (0.015, 0.03)},
    {"exposure": (0.5, 0.68), "noise": (0.01, 0.025), "haze": (0.1, 0.22)},
)
_RUINS = (
    {"fill": (0.8, 1.6), "inside": (0.05, 0.16)},
    {"fill": (0.07, 0.12), "blur": (0.006, 0.012)},
    {"hidden": (0.84, 0.97)},
)


@dataclasses.dataclass(frozen=True)
class View:
    """The camera's view.

    Attributes:
      limits: the ranges that the rest of the photo is drawn from.
      size: width and height of the photo, pixels.
      homography: (3, 3) float64, from units on the landmark to pixels (y down).
      points: (N, 2) float64, the landmark's points in pixels, also outside the photo.
      unit: height of the landmark, pixels.
    """

    limits: _Limits
    size: tuple[int, int]
    homography: np.ndarray
    points: np.ndarray
    unit: float

    @property
    def seen(self) -> np.ndarray:
        """(N,) bool: which points lie in the photo."""
        return ((self.points >= 0) & (self.points < self.size)).all(axis=1)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Box x1, y1, x2, y2 around the landmark, clipped to the photo, pixels."""
        low, high = self.points[self.seen].min(0), self.points[self.seen].max(0)
        margin = 0.01 * self.unit
        x1, y1 = np.maximum(low - margin, 0)
        x2, y2 = np.minimum(high + margin, self.size)
        return tuple(round(float(v), 1) for v in (x1, y1, x2, y2))


def _draw_limits(rng: np.random.Generator, severity: str) -> _Limits:
    if severity == "easy":
        return _EASY
    if severity == "junk":
        return dataclasses.replace(_EASY, **_RUINS[rng.integers(len(_RUINS))])
    return dataclasses.replace(_EASY, **_HARDSHIPS[rng.integers(len(_HARDSHIPS))])


def _project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns (N, 2) points mapped by a homography."""
    mapped = np.concatenate([points, np.ones((len(points), 1))], 1) @ homography.T
    return mapped[:, :2] / mapped[:, 2:]


def _pinhole(rng: np.random.Generator, landmark: Landmark, limits: _Limits) -> np.ndarray:
    """Returns the homography of a camera that looks at the landmark's centre, in focal lengths."""
    yaw = np.radians(rng.uniform(*limits.yaw)) * rng.choice([-1, 1])
    pitch = np.radians(rng.uniform(*limits.pitch))
    roll = np.radians(rng.uniform(-limits.roll, limits.roll))
    distance = rng.uniform(1.3, 3.0)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    c, s = np.cos(pitch), np.sin(pitch)
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ turn
    c, s = np.cos(roll), np.sin(roll)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ turn
    middle = np.array([0, landmark.height / 2, 0])
    plane = np.stack([turn[:, 0], turn[:, 1], np.array([0, 0, distance]) - turn @ middle], 1)
    return np.diag([1.0, -1.0, 1.0]) @ plane


def _frame(rng: np.random.Generator, landmark: Landmark, size: int) -> tuple[int, int]:
    short = round(size * rng.choice([2 / 3, 3 / 4, 3 / 4, 1]))
    upright = landmark.height > landmark.width
    if rng.random() < 0.15:
        upright = not upright
    return (short, size) if upright else (size, short)


def sample_view(rng: np.random.Generator, landmark: Landmark, severity: str, size: int) -> View:
    """Draws a view at random.

    Args:
      rng: draws everything that varies.
      landmark: what the camera looks at.
      severity: easy, hard or junk.
      size: longest side of the photo, pixels.
    """
    limits = _draw_limits(rng, severity)
    frame = np.array(_frame(rng, landmark, size))
    pinhole = _pinhole(rng, landmark, limits)
    flat = _project(pinhole, landmark.points)
    low, high = flat.min(0), flat.max(0)
    best = None
    for _ in range(60):
        scale = rng.uniform(*limits.fill) * ((frame / (high - low)).min())
        # The centre of the landmark: near the photo's centre, or anywhere, if it is to be cut off.
        half = scale * (high - low) / 2
        loose = np.abs(frame / 2 - half) if limits.inside[0] > 0.8 else half + frame / 2
        middle = frame / 2 + rng.uniform(-1, 1, 2) * loose
        points = (flat - (low + high) / 2) * scale + middle
        share = ((points >= 0) & (points < frame)).all(axis=1).mean()
        miss = max(limits.inside[0] - share, share - limits.inside[1], 0)
        if share > 0 and (best is None or miss < best[0]):
            best = (miss, scale, middle, points)
        if miss == 0:
            break
    _, scale, middle, points = best
    x, y = middle - scale * (low + high) / 2
    homography = np.array([[scale, 0, x], [0, scale, y], [0, 0, 1]]) @ pinhole
    unit = float(np.ptp(points[:, 1]))
    return View(limits, (int(frame[0]), int(frame[1])), homography, points, unit)


# --- rendering -----------------------------------------------------------------------


def _warp(landmark: Landmark, view: View) -> tuple[Image.Image, Image.Image]:
    """Returns colour (RGBA) and relief (RGB) as the camera sees them, supersampled."""
    shrink = landmark.levels[0][0].height / (view.unit * _SUPERSAMPLE)
    level = int(np.clip(np.log2(shrink), 0, len(landmark.levels) - 1))
    drawn = landmark.levels[level][0]
    fx, fy = drawn.width / landmark.width, drawn.height / landmark.height
    place = np.array([[fx, 0, fx * landmark.width / 2], [0, -fy, fy * landmark.height], [0, 0, 1]])
    zoom = np.diag([_SUPERSAMPLE, _SUPERSAMPLE, 1.0])
    back = place @ np.linalg.inv(zoom @ view.homography)
    back = tuple((back / back[2, 2]).ravel()[:8])
    size = (view.size[0] * _SUPERSAMPLE, view.size[1] * _SUPERSAMPLE)
    return tuple(
        image.transform(size, Image.Transform.PERSPECTIVE, back, Image.Resampling.BILINEAR)
        for image in landmark.levels[level]
    )


def _shade(rng: np.random.Generator, relief: np.ndarray, unit: float) -> np.ndarray:
    """Returns (H, W, 1) float32 light on the landmark, about 1, from a sun drawn at random."""
    side, up = rng.uniform(-1, 1), rng.uniform(0.1, 0.9)
    strength = rng.uniform(0.1, 0.55)
    slopes = relief[..., :2].astype(np.float32) / 128 - 1
    light = 1 - strength * 0.2 - strength * 0.8 * (side * slopes[..., 0] + up * slopes[..., 1])
    # What is higher, a little towards the sun, casts a shadow here.
    height = relief[..., 2].astype(np.float32)
    dx, dy = round(-side * 0.02 * unit), round(up * 0.025 * unit)
    higher = np.roll(height, (dy, dx), (0, 1)) - height
    light *= 1 - 0.6 * strength * np.clip((higher - 14) / 24, 0, 1)
    return np.clip(light, 0.15, 1.9)[..., None]


def _develop(rng: np.random.Generator, photo: Image.Image, limits: _Limits) -> Image.Image:
    """Applies haze, exposure, gamma, colour cast, blur and noise."""
    pixels = np.asarray(photo, np.float32) / 255
    haze = rng.uniform(*limits.haze)
    pixels = pixels * (1 - haze) + haze * rng.uniform(0.5, 0.85)
    grey = pixels.mean(-1, keepdims=True)
    pixels = grey + (pixels - grey) * rng.uniform(0.4, 1.2)
    cast = np.exp(rng.normal(0, 0.08, 3)).astype(np.float32)
    pixels = pixels * cast / cast.mean() * rng.uniform(*limits.exposure)
    pixels = np.clip(pixels, 0, None) ** np.float32(rng.uniform(0.8, 1.2))
    pixels = pixels * rng.uniform(0.85, 1.1) + rng.uniform(-0.03, 0.06)
    radius = rng.uniform(*limits.blur) * max(photo.size)
    photo = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))
    if radius > 0.2:
        photo = photo.filter(ImageFilter.GaussianBlur(radius))
    noise = rng.normal(0, 255 * rng.uniform(*limits.noise), (photo.height, photo.width, 1))
    noisy = np.asarray(photo, np.float32) + noise.astype(np.float32)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def take_photo(rng: np.random.Generator, landmark: Landmark, view: View) -> Image.Image:
    """Renders the view.

    Args:
      rng: the generator that drew the view; it continues from there.
      landmark: what the camera looks at.
      view: of the camera.

    Returns:
      An RGB image of `view.size`.
    """
    colour, relief = _warp(landmark, view)
    foot = _project(view.homography, np.array([[0.0, 0.0]]))[0, 1]
    horizon = (foot - view.unit * rng.uniform(0.0, 0.12)) * _SUPERSAMPLE
    unit = view.unit * _SUPERSAMPLE
    photo = backdrop(rng, colour.size, horizon, unit)
    pixels = np.asarray(colour, np.float32)
    lit = np.clip(pixels[..., :3] * _shade(rng, np.asarray(relief), unit), 0, 255)
    photo.paste(Image.fromarray(lit.astype(np.uint8)), mask=colour.getchannel("A"))
    inside = view.points[view.seen] * _SUPERSAMPLE
    front = foreground(rng, colour.size, inside, unit, view.limits.hidden)
    photo.paste(front, mask=front)
    return _develop(rng, photo.reduce(_SUPERSAMPLE), view.limits)
