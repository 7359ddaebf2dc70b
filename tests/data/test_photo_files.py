"""The one rule for photos: what is taken, what is refused, and why."""

import io
import struct

import numpy as np
import odd_photos
import pytest
from odd_photos import HEIGHT, WIDTH, comment, encode, photo, pixels
from PIL import Image, ImageOps

from dolg_tf.data import photo_files
from dolg_tf.data.formats import jpeg_header
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.stage import installed
from dolg_tf.stage.config import InputError


def refusal(data, **options):
    with pytest.raises(UnusablePhoto) as error:
        photo_files.decode(data, **{"upright": False} | options)
    return error.value.kind, error.value.reason


SHARED = odd_photos.shared()


@pytest.mark.parametrize("name", SHARED)
def test_formats(name):
    data = SHARED[name]
    header = photo_files.read_header(data)
    image = photo_files.decode(data, upright=True)
    assert image.dtype == np.uint8 and image.flags.writeable
    assert image.shape == (header.height, header.width, 3)
    assert name.startswith(header.format) and header.orientation == 1


@pytest.mark.parametrize("name", odd_photos.pillow_alone())
def test_formats_of_pillow_alone(name):
    kind, data = odd_photos.pillow_alone()[name]
    assert photo_files.read_header(data)[:1] == (kind,)
    image = photo_files.decode(data, upright=True)
    assert image.shape == (HEIGHT, WIDTH, 3)
    if "16 bits" in name:
        np.testing.assert_array_equal(image[:, :, 0], pixels(channels=1))
    elif not name.startswith("BMP"):
        assert np.abs(image.astype(int) - pixels()).mean() < 12


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    heif.from_pillow(photo()).save(out, quality=95)
    assert photo_files.sniff(out.getvalue()) == "HEIC"
    image = photo_files.decode(out.getvalue(), upright=True)
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(image.astype(int) - pixels()).mean() < 12


def test_heic_without_its_reader(monkeypatch):
    def missing(extra, purpose, *packages):
        raise InputError(f"{purpose}: {packages[0]} is missing; {installed.install_command(extra)}")

    monkeypatch.setattr(installed, "need", missing)
    kind, reason = refusal(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(60))
    assert kind == "unsupported" and "pillow_heif is missing; pip install" in reason
    assert "photos" in reason


def test_colours():
    shown = pixels().astype(int)
    for name in ("cmyk", "cmyk without marker"):
        image = photo_files.decode(SHARED[f"JPEG {name}"], upright=False)
        assert np.abs(image - shown).mean() < 6, name
    # The high byte of 16 bits.
    deep = pixels(channels=1).astype(np.uint16) * 256 + 77
    image = photo_files.decode(encode(deep, "PNG"), upright=False)
    np.testing.assert_array_equal(image[:, :, 2], pixels(channels=1))
    # A GIF's frame on its canvas, transparent pixels black.
    image = photo_files.decode(SHARED["GIF at an offset"], upright=False)
    frame = np.asarray(photo("P").convert("RGB"))
    assert image.shape == (60, 70, 3)
    np.testing.assert_array_equal(image[7 : 7 + HEIGHT, 5 : 5 + WIDTH], frame)
    assert image.sum() == frame.sum()
    image = photo_files.decode(SHARED["GIF transparent"], upright=False)
    gone = (image == 0).all(-1)
    assert gone.any() and not gone.all()


@pytest.mark.parametrize(("kind", "orientation"), odd_photos.turned())
def test_orientation(kind, orientation):
    data = odd_photos.turned()[kind, orientation]
    header = photo_files.read_header(data)
    assert header[2:] == (HEIGHT, WIDTH, orientation)
    stored = np.asarray(Image.open(io.BytesIO(odd_photos.turned()[kind, 1])).convert("RGB"))
    np.testing.assert_array_equal(photo_files.decode(data, upright=False), stored)
    with Image.fromarray(stored) as image:
        image.getexif()[odd_photos.ORIENTATION] = orientation
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(photo_files.decode(data, upright=True), expected)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"", 1),
        (b"II*\0", 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"II*\0\x08\0\0\0\xff\xff", 1),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", 6),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0", 8),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0", 1),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\x06\0\0\0", 1),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0", 1),
    ],
)
def test_exif(block, expected):
    assert jpeg_header.orientation(block) == expected


def test_what_is_refused():
    jpeg = encode(photo())
    for code, name in ((0xC3, "lossless"), (0xCF, "lossless"), (0xC5, "hierarchical")):
        assert refusal(odd_photos.with_frame(jpeg, code)) == ("unsupported", f"a {name} JPEG")
    assert refusal(odd_photos.with_frame(jpeg, 0xC1, 12))[1] == "a JPEG of 12 bits per channel"
    for data in (b"", b"no photo", b"\0" + jpeg, b"%PDF-1.4"):
        assert refusal(data) == ("corrupt", "not a picture")
    assert refusal(encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"))[0] == "unsupported"
    kind, reason = refusal(jpeg, max_pixels=HEIGHT * WIDTH - 1)
    assert kind == "too_large" and reason.startswith("53 x 37 = 0.0 million pixels")
    photo_files.decode(jpeg, upright=False, max_pixels=HEIGHT * WIDTH)


@pytest.mark.parametrize("name", [*SHARED, *odd_photos.pillow_alone()])
def test_cut_short(name):
    data = SHARED[name] if name in SHARED else odd_photos.pillow_alone()[name][1]
    if "trailing" in name or "pictures" in name:
        return
    for part in (20, len(data) // 3, len(data) // 2):
        assert refusal(data[:part])[0] in ("corrupt", "unsupported"), part


def test_ends_are_needed():
    for kind, end in (("JPEG", 2), ("PNG", 12), ("PNG", 3)):
        assert refusal(encode(photo(), kind)[:-end])[0] == "corrupt"


@pytest.mark.parametrize("scans", [10, jpeg_header.MAX_SCANS])
def test_many_scans(scans):
    photo_files.decode(odd_photos.scan_bomb(scans), upright=False)


def test_too_many_scans():
    data = odd_photos.scan_bomb(jpeg_header.MAX_SCANS + 1)
    expected = ("too_large", f"more than {jpeg_header.MAX_SCANS} scans")
    assert refusal(data) == expected
    # An end marker in a remark between scans hides nothing.
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    assert refusal(data[:second] + comment(b"\xff\xd9") + data[second:]) == expected
    assert refusal(data[:second] + comment(b"\xff\xd9" * 9, 0xE5) + data[second:]) == expected
    # Previews inside remarks, and pictures after the end, are no scans of this one.
    jpeg = encode(photo())
    photo_files.decode(jpeg[:2] + comment(b"\xff\xda" * 99, 0xE1) + jpeg[2:], upright=False)
    photo_files.decode(jpeg + data, upright=False)
    many = comment(b"") * (jpeg_header.MAX_SEGMENTS + 1)
    assert refusal(jpeg[:2] + many + jpeg[2:])[0] == "too_large"


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (7, 100), (100, 3), (97, 131)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_reduced(size, mode):
    data = encode(Image.fromarray(pixels(*size)).convert(mode), subsampling=0)
    assert photo_files.decode(data, upright=False, reduce_to=10**6).shape[:2] == size
    for reduce_to in (1, 20, max(size)):
        image = photo_files.decode(data, upright=False, reduce_to=reduce_to)
        assert max(image.shape[:2]) >= min(reduce_to, max(size))
    if min(size) >= 8:
        assert photo_files.decode(data, upright=False, reduce_to=1).shape[0] == -(-size[0] // 8)


def test_memory_is_one_bad_photo(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "crop", full)
    assert refusal(encode(photo())) == ("too_large", "too large for this machine's memory")


def test_pillows_own_bound_does_not_count(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**22)
    large = Image.new("L", (3000, 3000))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        assert photo_files.decode(encode(large, kind), upright=False).shape == (3000, 3000, 3)


def test_sizes_that_no_memory_holds():
    head = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    end = odd_photos.chunk(b"IEND", b"")
    png = b"\x89PNG\r\n\x1a\n" + odd_photos.chunk(b"IHDR", head) + end
    assert refusal(png)[0] == "too_large"
    webp = encode(photo("RGBA"), "WEBP")
    at = webp.index(b"VP8X") + 12
    assert refusal(webp[:at] + b"\xff" * 6 + webp[at + 6 :])[0] == "too_large"


def test_pillows_remarks_are_not_shown(recwarn):
    block = odd_photos.exif(6)
    block[0x010E] = "a long enough description"
    cut = block.tobytes()[:-9]
    photos = [encode(photo(), kind, exif=cut) for kind in ("JPEG", "PNG", "WEBP", "AVIF")]
    photos += [data for _, data in odd_photos.pillow_alone().values()]
    photos.append(encode(photo("P"), "PNG", transparency=bytes(range(60))))
    recwarn.clear()
    for data in photos:
        photo_files.decode(data, upright=True)
    assert not [str(warning.message) for warning in recwarn]
    with Image.open(io.BytesIO(photos[3])) as image:
        image.getexif()
    assert len(recwarn)
