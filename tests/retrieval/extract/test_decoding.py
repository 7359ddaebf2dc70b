import errno
import os
import pathlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from dolg_tf.data import photo_files
from dolg_tf.retrieval.extract import decoding
from dolg_tf.retrieval.extract.decoding import (
    Preparation,
    load_photo,
    prepare,
    read_photo,
    read_prepared,
)
from dolg_tf.retrieval.extract.photos import Photo
from dolg_tf.stage.config import InputError

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_whole_photo(png):
    np.testing.assert_array_equal(load_photo(Photo("photo", png)), IMAGE)


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((3.9, 2.9, 10.9, 8.9), IMAGE[2:8, 3:10]),
        ((-5.0, -0.5, 100.0, 12.0), IMAGE[:12]),
        ((28, 18, 31, 21), IMAGE[18:, 28:]),
    ],
)
def test_box_is_truncated_and_clipped(png, box, cut):
    np.testing.assert_array_equal(load_photo(Photo("photo", png, box)), cut)


@pytest.mark.parametrize("box", [(30, 0, 40, 10), (5, 5, 5.9, 9), (9, 9, 3, 12), (-9, 0, -1, 5)])
def test_box_without_pixels(png, box):
    with pytest.raises(InputError, match="has no pixel of its 30 x 20"):
        load_photo(Photo("photo", png, box))


def test_shrinks_whole_photos(png):
    assert load_photo(Photo("photo", png), Preparation(30)).shape == (20, 30, 3)
    assert load_photo(Photo("photo", png), Preparation(15)).shape == (10, 15, 3)
    # Antialiased: halving averages neighbours, so the noise becomes weaker.
    assert load_photo(Photo("photo", png), Preparation(15)).std() < 0.7 * IMAGE.std()


def _size(photo, box, max_side, query_scale, rounding):
    """Says a query's size as its authors' codes do, step by step: (height, width)."""
    height, width = photo
    if box is None:
        box = (0, 0, width, height)
    if rounding == "dolg":
        # img[int(y1):int(y2), int(x1):int(x2)]: NumPy stops at the photo's end.
        left, top, right, bottom = (int(side) for side in box)
        left, top = max(left, 0), max(top, 0)
        right, bottom = min(right, width), min(bottom, height)
    else:
        # image.crop(box): Pillow rounds, and pads with black.
        left, top, right, bottom = (int(np.rint(side)) for side in box)
    crop_width, crop_height = right - left, bottom - top
    if not max_side:
        return crop_height, crop_width
    bound = max_side
    if query_scale == "photo":  # resize_factor of DELF: longest(crop) / longest(photo)
        bound = max_side * max(crop_height, crop_width) / max(height, width)
    longest = max(crop_height, crop_width)
    if longest <= bound:
        return crop_height, crop_width
    scale = bound / longest
    return max(1, round(crop_height * scale)), max(1, round(crop_width * scale))


@pytest.mark.parametrize("rounding", ["dolg", "delf", "how"])
@pytest.mark.parametrize("query_scale", ["photo", "crop"])
def test_sizes_are_those_of_the_rule(tmp_path, query_scale, rounding):
    rng = np.random.default_rng(0)
    for number in range(25):
        height, width = (int(side) for side in rng.integers(8, 90, 2))
        path = tmp_path / f"{number}.{'png' if number % 2 else 'jpg'}"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        box = None
        if number % 5:
            left, top = rng.uniform(-6, 0.5 * width), rng.uniform(-6, 0.5 * height)
            box = (left, top, left + rng.uniform(8, width), top + rng.uniform(8, height))
        for max_side in (0, 7, 40, 89):
            how = Preparation(max_side, query_scale, rounding)
            found = load_photo(Photo("x", path, box), how).shape[:2]
            assert found == _size((height, width), box, max_side, query_scale, rounding)


def test_a_query_keeps_the_scale_of_its_photo(png):
    box = (0, 0, 10, 20)
    assert load_photo(Photo("photo", png, box), Preparation(15)).shape == (10, 5, 3)
    assert load_photo(Photo("photo", png, box), Preparation(15, "crop")).shape == (15, 8, 3)


def test_delf_and_how_round_boxes_and_pad_them(png):
    box = (-1.6, 2.5, 10.5, 21.4)
    for rounding in ("delf", "how"):
        found = load_photo(Photo("photo", png, box), Preparation(box_rounding=rounding))
        expected = np.asarray(Image.fromarray(IMAGE).crop(box))
        np.testing.assert_array_equal(found, expected)
        assert found.shape == (19, 12, 3) and not found[:, :2].any()


def test_a_box_far_beyond_its_photo_takes_no_memory(png):
    photo = Photo("photo", png, (0, 0, 10**7, 10**7))
    np.testing.assert_array_equal(load_photo(photo), IMAGE)
    with pytest.raises(InputError, match="has hardly a pixel of its 30 x 20"):
        load_photo(photo, Preparation(box_rounding="delf"))


def _turned(folder):
    """Saves IMAGE as a camera does that was held upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(np.rot90(IMAGE)).save(folder / "turned.png", exif=exif)
    return folder / "turned.png"


def test_photos_are_turned_before_they_are_cut(tmp_path):
    path = _turned(tmp_path)
    np.testing.assert_array_equal(load_photo(Photo("a", path, turn=True)), IMAGE)
    np.testing.assert_array_equal(load_photo(Photo("a", path)), np.rot90(IMAGE))
    box = (3, 2, 30, 20)
    found = load_photo(Photo("a", path, box, turn=True))
    np.testing.assert_array_equal(found, IMAGE[2:20, 3:30])
    np.testing.assert_array_equal(read_photo(path), IMAGE)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A smooth photo, 1603 x 1201 pixels, as a JPEG and a PNG."""
    rng = np.random.default_rng(1)
    blocks = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    path = tmp_path_factory.mktemp("large") / "large"
    image = blocks.resize((1603, 1201), Image.Resampling.BICUBIC)
    image.save(path.with_suffix(".jpg"), quality=95)
    image.save(path.with_suffix(".png"), compress_level=1)
    return path


@pytest.fixture
def decoded(monkeypatch):
    """The shapes of what is decoded, in order."""
    shapes, decode = [], photo_files.Examined.decode_unturned

    def watch(examined, **options):
        image = decode(examined, **options)
        shapes.append(image.shape)
        return image

    monkeypatch.setattr(photo_files.Examined, "decode_unturned", watch)
    return shapes


@pytest.mark.parametrize("box", [None, (101.0, 53.0, 1502.0, 1100.0), (0.0, 0.0, 1603.0, 1201.0)])
@pytest.mark.parametrize("max_side", [40, 90, 190])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_large_photos_are_decoded_at_less_than_their_size(
    large, box, max_side, suffix, decoded, monkeypatch
):
    photo = Photo("large", large.with_suffix(suffix), box)
    small = load_photo(photo, Preparation(max_side))
    monkeypatch.setattr(decoding, "_REDUCED", 1e9)
    whole = load_photo(photo, Preparation(max_side))
    assert [max(shape) for shape in decoded] == [{40: 201, 90: 401, 190: 802}[max_side], 1603]
    assert small.shape == whole.shape
    # A shift by a tenth of the blocks' width would be more.
    assert np.abs(small.astype(int) - whole).mean() < 0.6


@pytest.mark.parametrize("max_side", [40, 90, 190, 220, 500])
def test_the_memory_that_is_asked_for_is_that_of_the_reduced_photo(large, max_side, decoded):
    asked, path = [], large.with_suffix(".jpg")
    load_photo(Photo("large", path), Preparation(max_side), asked.append)
    height, width, _ = decoded[0]
    expected = 7 * height * width + path.stat().st_size
    assert asked == [pytest.approx(expected, rel=0.02)]


@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_turned_photos_stay_where_they_are_when_they_are_reduced(
    tmp_path, suffix, orientation, turn
):
    path, exif = tmp_path / f"x{suffix}", Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    blocks = np.random.default_rng(1).integers(0, 256, (20, 27, 3), np.uint8)
    # 1 more than a multiple of 8: where the blocks begin matters most.
    image = Image.fromarray(blocks).resize((401, 297), Image.Resampling.BICUBIC)
    image.save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    whole = photo_files.decode(path.read_bytes(), upright=turn)
    for box in (None, (31, 17, 250, 260)):
        found, size = prepare(Photo("x", path, box, turn=turn), Preparation(20))
        assert size == ((243, 219) if box else whole.shape[:2])
        left, top, right, bottom = box or (0, 0, whole.shape[1], whole.shape[0])
        expected = Image.fromarray(whole[top:bottom, left:right])
        expected = expected.resize(found.shape[1::-1], Image.Resampling.BILINEAR)
        assert np.abs(found.astype(int) - np.asarray(expected)).mean() < 2


def test_too_many_pixels_are_a_bad_photo_and_name_the_flag(png):
    found = load_photo(Photo("x", png), Preparation(max_pixels=599))
    assert "too_large: 30 x 20 pixels are more than --max_pixels=599" in found
    for enough in (600, 0):
        assert load_photo(Photo("x", png), Preparation(max_pixels=enough)).shape == IMAGE.shape


def test_no_memory_is_a_bad_photo(png, monkeypatch):
    def cut(*_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_cut", cut)
    assert load_photo(Photo("x", png)).endswith("photo.png: too large for the memory")


def test_files_larger_than_photos_are_not_read(tmp_path, png, monkeypatch):
    monkeypatch.setattr(photo_files, "_MAX_BYTES", png.stat().st_size)
    assert load_photo(Photo("x", png)).shape == IMAGE.shape
    (tmp_path / "x.png").write_bytes(png.read_bytes() + b"x")
    assert "x.png: too_large: a file of " in load_photo(Photo("x", tmp_path / "x.png"))


def test_pipes_and_devices_are_never_read(tmp_path):
    os.mkfifo(tmp_path / "b.jpg")
    for path in (tmp_path / "b.jpg", pathlib.Path("/dev/zero")):
        assert "corrupt: not a file" in load_photo(Photo("x", path))


def test_unreadable_photos_give_a_reason(tmp_path, png):
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "half.png").write_bytes(png.read_bytes()[:200])
    (tmp_path / "empty.jpg").write_bytes(b"")
    for name in ("text.jpg", "half.png", "empty.jpg"):
        assert f"{name}: corrupt: " in load_photo(Photo("x", tmp_path / name))
    assert "No such file" in load_photo(Photo("x", tmp_path / "none.jpg"))


def test_a_fault_of_the_disk_is_none_of_the_photo(tmp_path, monkeypatch):
    def read(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x.jpg").write_bytes(b"")
    monkeypatch.setattr(photo_files, "read_file", read)
    with pytest.raises(InputError, match=r"x\.jpg: cannot be read \(Input/output error\)"):
        load_photo(Photo("x", tmp_path / "x.jpg"))


def test_photos_are_read_as_extraction_reads_them(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), IMAGE)
    assert read_photo(tmp_path / "a.png", Preparation(15)).shape == (10, 15, 3)
    cut = read_photo(Photo("a", tmp_path / "a.png", (10, 5, 30, 15)))
    np.testing.assert_array_equal(cut, IMAGE[5:15, 10:30])
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"b\.jpg: corrupt: not a picture"):
        read_photo(tmp_path / "b.jpg")
    with pytest.raises(InputError, match=r"c\.jpg: No such file"):
        read_photo(tmp_path / "c.jpg")
    np.testing.assert_array_equal(read_photo(IMAGE), IMAGE)
    small = read_prepared(IMAGE, Preparation(15))
    assert small.image.shape == (10, 15, 3) and small.size == (20, 30)
    with pytest.raises(InputError, match=r"float64 \(20, 30, 3\); give uint8 RGB"):
        read_photo(IMAGE / 255)
    with pytest.raises(InputError, match=r"uint8 \(20, 30\); give uint8 RGB"):
        read_photo(IMAGE[..., 0])
