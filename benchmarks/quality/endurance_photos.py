"""Photos of all kinds, sound and not, drawn for `endurance.py`."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

IN_GRAPHS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # formats that a graph decodes
SIDES = (48, 64)  # height and width of the photos, in pixels
OK, UNDECODABLE, TOO_LARGE = 0, 1, 2  # statuses of `serving_default`
_SCANS = 3000  # of a bomb; each costs a pass over the photo


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PHOTO_KINDS = {  # name of a reader's input -> Pillow's format and options
    "photo.jpg": ("JPEG", {}),
    "progressive.jpg": ("JPEG", {"progressive": True}),
    "cmyk.jpg": ("JPEG", {"mode": "CMYK"}),
    "grey.jpg": ("JPEG", {"mode": "L"}),
    "turned.jpg": ("JPEG", {"exif": _turned()}),
    "photo.png": ("PNG", {}),
    "palette.png": ("PNG", {"mode": "P"}),
    "photo.webp": ("WEBP", {}),
    "lossless.webp": ("WEBP", {"lossless": True}),
    "photo.gif": ("GIF", {}),
    "photo.bmp": ("BMP", {}),
    "photo.tif": ("TIFF", {}),
    "packed.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "photo.jp2": ("JPEG2000", {}),
    "photo.avif": ("AVIF", {}),
}


def draw_photo(landmark: int, number: int) -> np.ndarray:
    """Returns uint8 RGB of stripes that depend on the landmark, and noise."""
    y, x = np.mgrid[: SIDES[0], : SIDES[1]]
    wave = [np.sin(x / 2), np.sin(y / 2), np.sin((x + y) / 5), np.sin(x / 6)][landmark]
    noise = np.random.default_rng([landmark, number]).normal(0, 20, (*SIDES, 3))
    return np.clip(128 + 80 * wave[..., None] + noise, 0, 255).astype(np.uint8)


def encode_photo(image: np.ndarray, kind: str, mode: str = "RGB", **options) -> bytes:
    """Returns an encoded photo in one of Pillow's formats and colour modes."""
    encoded = io.BytesIO()
    Image.fromarray(image).convert(mode).save(encoded, kind, **options)
    return encoded.getvalue()


# --- what is sent -----------------------------------------------------------------------------


def _good(rng: np.random.Generator) -> bytes:
    kinds = [(kind, o) for kind, o in PHOTO_KINDS.values() if kind in IN_GRAPHS and "mode" not in o]
    kind, options = kinds[rng.integers(len(kinds))]
    return encode_photo(draw_photo(int(rng.integers(4)), int(rng.integers(20))), kind, **options)


def _cut(rng: np.random.Generator) -> bytes:
    data = _good(rng)
    return data[: int(rng.integers(len(data)))]


def _no_photo(rng: np.random.Generator) -> bytes:
    return (b"", b"no photo", rng.bytes(300), b"\xff\xd8\xff", b"<svg/>")[rng.integers(5)]


def _huge(rng: np.random.Generator) -> bytes:
    """A header of many pixels: a JPEG, or a PNG of zeros that unpacks to them."""
    if rng.random() < 0.5:
        data = bytearray(encode_photo(draw_photo(0, 0), "JPEG"))
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = b"\xff\xdc\xff\xdc"
        return bytes(data)
    side = int(rng.integers(8000, 9000))
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


def scan_bomb(rng: np.random.Generator) -> bytes:
    """A progressive JPEG whose last scan is repeated very often."""
    image = np.zeros((int(rng.integers(256, 480)),) * 2 + (3,), np.uint8)
    data = encode_photo(image, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * _SCANS + data[-2:]


# A photo, and the statuses that it may have.
SENT_PHOTOS: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "good photo": (_good, (OK,)),
    "cut photo": (_cut, (OK, UNDECODABLE)),
    "no photo": (_no_photo, (UNDECODABLE,)),
    "huge photo": (_huge, (TOO_LARGE,)),
    "bomb of scans": (scan_bomb, (TOO_LARGE, UNDECODABLE)),
}
