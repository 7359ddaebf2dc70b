"""Photos of strangers are refused by their headers, and pictures are made for the page."""

import io
import os
import struct
import zlib

import demo_world
import numpy as np
import pytest
from PIL import Image

from dolg_tf.apps.demo import photos
from dolg_tf.data import photo_files
from dolg_tf.stage.config import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
LIMITS = (10**6, 10**6)


def _png_of(width, height):
    """A PNG that promises a size and holds next to nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.fixture(autouse=True)
def _no_decoding(monkeypatch, request):
    if "thumbnail" not in request.node.name:
        monkeypatch.setattr(photo_files, "decode", None)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG", "TIFF"])
def test_photos_of_each_kind_state_their_size(kind):
    data = demo_world.encoded(NOISE, kind)
    assert photos.read_size("a.jpg", data, True, len(data), NOISE.shape[0] * NOISE.shape[1]) == (
        14,
        9,
    )


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 9, 65535])
def test_the_size_is_that_of_the_turned_photo(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = demo_world.encoded(NOISE, "JPEG", exif=exif)
    turned = (9, 14) if orientation in range(5, 9) else (14, 9)
    assert photos.read_size("a.jpg", data, True, *LIMITS) == turned
    assert photos.read_size("a.jpg", data, False, *LIMITS) == (14, 9)


def test_a_bomb_is_refused_by_its_header():
    end = b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"
    told = r"60000 x 70000 = 4200.0 million pixels; the limit is 1 million"
    with pytest.raises(InputError, match=told):
        photos.read_size("a.jpg", _png_of(60000, 70000) + end, True, *LIMITS)
    with pytest.raises(InputError, match=r"limit is 0\.000125 million"):
        photos.read_size("a.jpg", demo_world.encoded(NOISE), True, 10**6, NOISE.size // 3 - 1)


def test_a_bomb_of_scans_is_refused_by_its_header():
    image = np.zeros((64, 64, 3), np.uint8)
    data = demo_world.encoded(image, "JPEG", progressive=True)
    start, end = data.index(b"\xff\xda"), data.rindex(b"\xff\xd9")
    scan = data[start : data.index(b"\xff", start + 20)]
    bomb = data[:end] + scan * 1000 + data[end:]
    with pytest.raises(
        InputError, match=r"a\.jpg is a JPEG photo that cannot be read .more than 32 scans"
    ):
        photos.read_size("a.jpg", bomb, True, 10**6, 10**6)


def test_a_file_that_is_too_long_is_not_looked_at():
    with pytest.raises(InputError, match=r"has 1\.9 MiB; the limit is 0\.9537 MiB"):
        photos.read_size("a.jpg", b"\xff\xd8\xff" * 666667, True, *LIMITS)


JPEG = demo_world.encoded(NOISE, "JPEG")
LOSSLESS = JPEG.replace(b"\xff\xc0", b"\xff\xc3")
NO_PHOTOS = {
    "nothing": (b"", "is not a photo: choose a JPEG"),
    "text": (b"no photo", "is not a photo: choose a JPEG"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a photo: choose a JPEG"),
    "cut jpeg": (JPEG[: len(JPEG) * 2 // 3], "is a JPEG photo that cannot be read .it ends"),
    "cut header": (JPEG[:5], "is a JPEG photo that cannot be read ."),
    "lossless": (LOSSLESS, "is a JPEG photo that cannot be read .a lossless JPEG"),
    "cut png": (_png_of(20, 20), "is a PNG photo that cannot be read ."),
    "no pixels": (_png_of(0, 20), "is a PNG photo that cannot be read ."),
    "gif of blocks": (
        b"GIF89a\1\0\1\0\0\0\0" + b"!\xff\1x\0" * 3000,
        "is a GIF photo that cannot be read .",
    ),
    "heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
        "is a HEIC photo that cannot be read .",
    ),
    "avif": (
        b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100),
        "is a AVIF photo that cannot be read .",
    ),
}


@pytest.mark.parametrize("name", NO_PHOTOS)
def test_what_is_no_photo(name):
    data, told = NO_PHOTOS[name]
    with pytest.raises(InputError, match=f"a.jpg {told}"):
        photos.read_size("a.jpg", data, True, *LIMITS)


def test_thumbnails(tmp_path):
    file, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((100, 400, 3), 200, np.uint8)).save(file, exif=exif)
    assert Image.open(io.BytesIO(photos.thumbnail(file, 80, True))).size == (20, 80)
    assert Image.open(io.BytesIO(photos.thumbnail(file, 80, False))).size == (80, 20)
    file.write_bytes(LOSSLESS)
    assert photos.thumbnail(file, 80, True) is None
    file.write_bytes(JPEG[:50])
    assert photos.thumbnail(file, 80, True) is None
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in ("none.jpg", "pipe.jpg", ".", "photo.jpg/x", "x" * 300):
        assert photos.thumbnail(tmp_path / name, 80, True) is None


def test_thumbnails_of_huge_photos(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "_THUMBNAIL_PIXELS", 100)
    monkeypatch.setattr(photo_files, "_MAX_BYTES", 5000)
    for kind, there in (("PNG", False), ("JPEG", True)):
        (tmp_path / kind).write_bytes(demo_world.encoded(NOISE, kind))
        assert (photos.thumbnail(tmp_path / kind, 80, True) is not None) == there
    (tmp_path / "JPEG").write_bytes(JPEG + bytes(5000))
    assert photos.thumbnail(tmp_path / "JPEG", 80, True) is None


def _ramp(value):
    """The slow way: between two neighbouring colours."""
    colours = [tuple(bytes.fromhex(c[1:])) for c in photos.RAMP]
    place = value * (len(colours) - 1)
    left = min(int(place), len(colours) - 2)
    return [
        a + (b - a) * (place - left) for a, b in zip(colours[left], colours[left + 1], strict=True)
    ]


def test_a_map_is_laid_over_the_grey_photo():
    values = np.array([[3.0, 5.0], [4.0, 3.5]])
    photo = np.zeros((2, 2, 3), np.uint8)
    photo[1] = (30, 60, 90)
    found = photos.overlay(photo, values)
    for row in range(2):
        for column in range(2):
            colour = np.array(_ramp((values[row, column] - 3) / 2))
            expected = 0.6 * colour + 0.4 * (60 if row else 0)
            np.testing.assert_allclose(found[row, column], expected, atol=0.51)
    stretched = photos.overlay(np.zeros((40, 60, 3), np.uint8), values)
    assert stretched.shape == (40, 60, 3)
    bright = np.unravel_index(stretched.sum(-1).argmax(), (40, 60))
    assert bright[0] < 20 and bright[1] >= 30
    assert (photos.overlay(photo, np.ones((3, 3)))[0] == [0, 0, 2]).all()
