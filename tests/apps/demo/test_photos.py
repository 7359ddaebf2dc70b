"""Photos of strangers are refused by their headers, or decoded and turned upright."""

import io
import struct
import zlib

import demo_world
import numpy as np
import pytest
from PIL import Image, ImageOps

from dolg_tf.apps.demo import photos
from dolg_tf.data import images
from dolg_tf.stage.config import InputError

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)
LIMITS = (10**6, 10**6)


def _png_of(width, height):
    """A PNG that promises a size and holds next to nothing."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_photos_of_each_kind_are_read(kind):
    data = demo_world.encoded(NOISE, kind)
    found = photos.read_photo(data, len(data), NOISE.shape[0] * NOISE.shape[1])
    np.testing.assert_array_equal(found, images.decode(data).numpy())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = demo_world.encoded(NOISE, "JPEG", exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    found = photos.read_photo(data, *LIMITS)
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_is_passed_over(value):
    exif = Image.Exif()
    exif[0x0112] = value
    data = demo_world.encoded(NOISE, "JPEG", exif=exif)
    assert photos.read_photo(data, *LIMITS).shape == NOISE.shape
    cut = data.replace(b"Exif\0\0", b"Exif\0\0\xff")
    assert photos.read_photo(cut, *LIMITS).shape == NOISE.shape


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr(images, "decode", None)
    told = r"60000 x 70000 = 4200.0 million pixels, the limit is 1 million"
    with pytest.raises(InputError, match=told):
        photos.read_photo(_png_of(60000, 70000), *LIMITS)
    with pytest.raises(InputError, match=r"limit is 0\.000125 million"):
        photos.read_photo(demo_world.encoded(NOISE), 10**6, NOISE.size // 3 - 1)


def test_a_file_that_is_too_long_is_not_looked_at():
    with pytest.raises(InputError, match=r"has 1\.9 MiB, the limit is 0\.9537 MiB"):
        photos.read_photo(b"\xff\xd8\xff" * 666667, *LIMITS)


JPEG = demo_world.encoded(NOISE, "JPEG")
NO_PHOTOS = {
    "nothing": b"",
    "text": b"no photo",
    "cut jpeg": JPEG[: len(JPEG) * 2 // 3],
    "cut header": JPEG[:5],
    "cut png": _png_of(20, 20),
    "no pixels": _png_of(0, 20),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "gif of blocks": b"GIF89a\1\0\1\0\0\0\0" + b"!\xff\1x\0" * 3000,
}


@pytest.mark.parametrize("name", NO_PHOTOS)
def test_what_is_no_photo(name):
    with pytest.raises(InputError, match="cannot be read as a photo"):
        photos.read_photo(NO_PHOTOS[name], *LIMITS)


def test_thumbnails(tmp_path):
    file, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.full((100, 400, 3), 200, np.uint8)).save(file, exif=exif)
    small = Image.open(io.BytesIO(photos.thumbnail(file, 80)))
    assert small.size == (20, 80)
    file.write_bytes(file.read_bytes()[:50])
    assert photos.thumbnail(file, 80) is None
    assert photos.thumbnail(tmp_path / "none.jpg", 80) is None


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
