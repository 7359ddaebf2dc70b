"""Every kind of photo by every path: plain Python, graphs, servers, and records as training reads
them. The same pixels, or refused."""

import struct
import time

import numpy as np
import odd_photos
import pytest
import tensorflow as tf
from odd_photos import comment, encode, photo

from dolg_tf.data import images, photo_files
from dolg_tf.data.formats import exif_graph, jpeg_graph, jpeg_header
from dolg_tf.data.photo_files import UnusablePhoto
from dolg_tf.data.records import shards
from dolg_tf.serving.graph import requests

_BYTES = [tf.TensorSpec([], tf.string)]
SHARED = odd_photos.shared()


@pytest.fixture(scope="module")
def decode():
    return tf.function(images.decode, input_signature=_BYTES)


@pytest.fixture(scope="module")
def load():
    """What `serving_default` sees of a photo: pixels and status."""
    traced = tf.function(
        lambda data: requests.load(data, 2**20, upright=True), input_signature=_BYTES
    )
    return lambda data: [tensor.numpy() for tensor in traced(tf.constant(data))]


@pytest.fixture(scope="module")
def orientation():
    traced = tf.function(exif_graph.orientation, input_signature=_BYTES)
    return lambda data: int(traced(tf.constant(data)))


def plain(data, upright=False):
    try:
        return photo_files.decode(data, upright=upright)
    except UnusablePhoto:
        return None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_graphs_decode_like_photo_files(decode, load, kind):
    names = [name for name in SHARED if name.startswith(kind)]
    assert len(names) >= 8
    for name in names:
        expected = plain(SHARED[name])
        np.testing.assert_array_equal(decode(tf.constant(SHARED[name])), expected, name)
        image, status = load(SHARED[name])
        assert status == requests.OK, name
        np.testing.assert_array_equal(image, expected, name)


def test_what_graphs_cannot_decode_has_status_1(load):
    for name, (_, data) in odd_photos.pillow_alone().items():
        assert plain(data) is not None, name
        assert load(data)[1] == requests.UNDECODABLE, name


def test_orientation(load, orientation):
    for (kind, turned), data in odd_photos.turned().items():
        assert photo_files.read_header(data).orientation == turned
        if kind not in ("JPEG", "PNG", "WEBP"):
            continue
        assert orientation(data) == turned, (kind, turned)
        image, status = load(data)
        assert status == requests.OK
        np.testing.assert_array_equal(image, plain(data, upright=True), f"{kind} {turned}")


def _with_exif(block, kind="JPEG"):
    """A photo with any bytes as its EXIF block."""
    data = encode(photo(), kind)
    if kind == "JPEG":
        return data[:2] + comment(b"Exif\0\0" + block, 0xE1) + data[2:]
    return data[:33] + odd_photos.chunk(b"eXIf", block) + data[33:]


def test_odd_exif(orientation):
    rng = np.random.default_rng(0)
    entry = b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    whole = b"II*\0\x08\0\0\0\x02\0" + b"\x0f\x01\x03\0\x01\0\0\0\x09\0\0\0" + entry
    big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0"
    blocks = [b"", b"II", whole, big, whole + entry, whole[:-1], whole[:-12]]
    blocks += [b"II*\0" + struct.pack("<I", at) for at in (0, 7, 8, 2**31 - 1, 2**31, 2**32 - 1)]
    for source in (whole, big):
        for _ in range(60):
            block = bytearray(source)
            for place in rng.integers(0, len(block), rng.integers(1, 4)):
                block[place] = rng.integers(0, 256)
            blocks.append(bytes(block))
    found = set()
    for block in blocks:
        for kind in ("JPEG", "PNG"):
            data = _with_exif(block, kind)
            expected = photo_files.read_header(data).orientation
            assert orientation(data) == expected, (kind, block)
            found.add(expected)
    assert {1, 6, 8} <= found


def test_where_exif_stands(orientation):
    block = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    segment, jpeg = comment(b"Exif\0\0" + block, 0xE1), encode(photo())
    scan = jpeg.index(b"\xff\xda")
    cases = {
        "behind others": jpeg[:20] + comment(b"x" * 9) + segment + jpeg[20:],
        "twice": jpeg[:2] + segment + segment.replace(b"\x06\0\0\0", b"\x03\0\0\0") + jpeg[2:],
        "right before the scan": jpeg[:scan] + segment + jpeg[scan:],
        "after the scan": jpeg[:-2] + segment + jpeg[-2:],
        "inside a remark": jpeg[:2] + comment(segment) + jpeg[2:],
        "with bytes between segments": jpeg[:20] + b"\0\1\2" + segment + jpeg[20:],
        "with fill bytes": jpeg[:2] + b"\xff\xff\xff" + segment + jpeg[2:],
    }
    found = {name: photo_files.read_header(data).orientation for name, data in cases.items()}
    assert found == {name: orientation(data) for name, data in cases.items()}
    assert found["after the scan"] == found["inside a remark"] == 1
    assert found["right before the scan"] == found["twice"] == found["with fill bytes"] == 6
    png = encode(photo(), "PNG")
    behind = png[:-12] + odd_photos.chunk(b"eXIf", block) + png[-12:]
    assert orientation(behind) == photo_files.read_header(behind).orientation == 6


def test_scan_bombs(load):
    many = tf.function(lambda data: jpeg_graph.Segments(data).many_scans(), input_signature=_BYTES)
    bomb, jpeg = odd_photos.scan_bomb(jpeg_header.MAX_SCANS + 1), encode(photo())
    second = bomb.index(b"\xff\xda", bomb.index(b"\xff\xda") + 2)
    hidden = bomb[:second] + comment(b"\xff\xd9" * 9, 0xE5) + bomb[second:]
    remarks = comment(b"") * jpeg_header.MAX_SEGMENTS
    cases = {
        "bomb": (bomb, True),
        "an end marker between scans": (hidden, True),
        "as many as may be": (odd_photos.scan_bomb(jpeg_header.MAX_SCANS), False),
        "previews": (jpeg[:2] + comment(b"\xff\xda" * 999, 0xE1) + jpeg[2:], False),
        "behind the end": (jpeg + bomb, False),
        "remarks": (jpeg[:2] + remarks + jpeg[2:], True),
        "cut": (bomb[:second], False),
    }
    for name, (data, expected) in cases.items():
        assert bool(many(tf.constant(data))) is expected, name
        try:
            photo_files.read_header(data)
            kind = ""
        except UnusablePhoto as error:
            kind = error.kind
        assert kind == ("too_large" if expected else "corrupt" if name == "cut" else ""), name
        status = load(data)[1]
        assert status == {"": 0, "corrupt": 1, "too_large": 2}[kind], name
    large = odd_photos.scan_bomb(2000, 900, 1100)
    start = time.perf_counter()
    assert load(large)[1] == requests.TOO_LARGE
    assert time.perf_counter() - start < 0.5  # decoded, it takes minutes


def test_damaged_photos(decode):
    """Whatever is flipped or cut off: both refuse it, or the pixels are equal."""
    rng, refused, taken = np.random.default_rng(0), 0, 0
    names = ["JPEG baseline 2", "JPEG arithmetic", "PNG RGB", "PNG P", "GIF at an offset"]
    names += ["BMP palette of 100", "BMP 32 bits with masks", "WEBP RGBA lossy still"]
    for name in names:
        for _ in range(25):
            data = bytearray(SHARED[name])
            for place in rng.integers(0, min(len(data), 1500), rng.integers(1, 3)):
                data[place] ^= 1 << rng.integers(0, 8)
            data = bytes(data)
            expected = plain(data)
            if expected is not None and expected.size > 2**24:
                continue
            try:
                found = decode(tf.constant(data)).numpy()
            except tf.errors.InvalidArgumentError:
                refused += 1
                continue
            if expected is not None:
                np.testing.assert_array_equal(found, expected, f"{name} {data!r}")
                taken += 1
    assert refused > 30 and taken > 30


def test_records(decode):
    """What training decodes of a record is the photo, or a JPEG of it."""
    everything = SHARED | {name: data for name, (_, data) in odd_photos.pillow_alone().items()}
    everything |= {f"turned {kind} {n}": data for (kind, n), data in odd_photos.turned().items()}
    for upright in (False, True):
        for name, data in everything.items():
            encoded = shards.encode_photo(data, shards.Rule(upright))
            found = decode(tf.constant(encoded.jpeg)).numpy()
            expected = plain(data, upright)
            assert found.shape == expected.shape == (encoded.height, encoded.width, 3), name
            if encoded.jpeg != data:
                expected = plain(encode(expected, quality=shards.JPEG_QUALITY))
            np.testing.assert_array_equal(found, expected, name)
