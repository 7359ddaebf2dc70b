"""Encoded photos of strangers in one batch, through the C++ loader: each row as if alone.

A function that tells any two photos apart replaces the network.
"""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.data import images
from dolg_tf.runtime.session import CppSession
from dolg_tf.serving.graph import requests

MAX_PIXELS = 100_000
KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


def describe(photos):
    """(1, H, W, 3) -> (1, 4): exact in float32, and different for any change of a pixel."""
    levels = tf.cast(tf.reshape(photos, [-1]), tf.int32)
    weights = 1 + tf.range(tf.size(levels)) % 97
    sums = [tf.reduce_sum(levels * weights) % 65_521, tf.reduce_sum(levels) % 65_521]
    return tf.cast(tf.stack([*sums, *tf.unstack(tf.shape(photos)[1:3])])[None], tf.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Function of a list of bytes to (descriptors, status)."""
    path, module = tmp_path_factory.mktemp("server"), tf.Module()
    module.call = tf.function(
        lambda image_bytes: requests.describe_encoded(describe, image_bytes, MAX_PIXELS, 4),
        input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")],
    )
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.call})
    with CppSession(path) as session:

        def call(batch):
            found = session.run("serving_default", {"image_bytes": np.array(batch, object)})
            return found["descriptors"], found["status"]

        yield call


@pytest.fixture(scope="module")
def expected():
    """Function of bytes to (descriptor, status), by decoding alone."""
    decode = tf.function(
        lambda data: describe(images.decode(data)[None])[0],
        input_signature=[tf.TensorSpec([], tf.string)],
    )

    def compute(data):
        try:
            return decode(tf.constant(data)).numpy(), requests.OK
        except tf.errors.InvalidArgumentError:
            return np.zeros(4, np.float32), requests.UNDECODABLE

    return compute


def encode(kind, height=40, width=52, channels=3, **options):
    coarse = np.random.default_rng(height).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mode = options.pop("mode", image.mode)
    image.convert(mode).save(out, kind, **options)
    return out.getvalue()


def check(server, expected, batch):
    """Compares everything and returns the status of each row."""
    descriptors, status = server(batch)
    assert descriptors.dtype == np.float32 and status.dtype == np.int32
    for data, row, code in zip(batch, descriptors, status, strict=True):
        descriptor, expected_code = expected(data)
        if code == requests.TOO_LARGE:  # damage in the header
            descriptor, expected_code = np.zeros(4, np.float32), requests.TOO_LARGE
        assert code == expected_code, data[:40]
        np.testing.assert_array_equal(row, descriptor)
    return status.tolist()


def test_sizes_and_kinds_are_mixed(server, expected):
    good = [encode(kind, 20 + i, 90 - i) for i, kind in enumerate(KINDS)]
    good += [
        encode("JPEG", mode="L"),
        encode("JPEG", mode="CMYK"),
        encode("JPEG", progressive=True),
    ]
    good += [encode("PNG", mode=mode) for mode in ("L", "P", "1", "RGBA", "I;16")]
    good += [encode("WEBP", channels=4), encode("GIF", interlace=1), encode("PNG", 1, 1)]
    assert check(server, expected, good) == [requests.OK] * len(good)
    bad = [b"", b"no photo", encode("TIFF"), b"\xff\x0a JPEG XL", good[0][:100]]
    mixed = [data for pair in zip(bad, good, strict=False) for data in pair]
    assert check(server, expected, mixed) == [requests.UNDECODABLE, requests.OK] * len(bad)


def test_no_photo_at_all(server):
    descriptors, status = server([])
    assert descriptors.shape == (0, 4) and status.shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_any_damage_stays_on_its_row(server, expected, kind):
    good, rng = encode(kind), np.random.default_rng(0)
    cut = [good[:length] for length in range(0, len(good), 64)]
    flipped = []
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), rng.integers(1, 8)):
            data[place] ^= 1 << rng.integers(0, 8)
        flipped.append(bytes(data))
    status = check(server, expected, [*cut, good, *flipped, good])
    assert status[: len(cut)] == [requests.UNDECODABLE] * len(cut)
    assert status[len(cut)] == status[-1] == requests.OK


def test_headers_that_promise_too_much(server):
    png, bmp = bytearray(encode("PNG")), bytearray(encode("BMP"))
    png[16:24] = struct.pack(">II", 50_000, 50_000)
    largest = bytes(png[:16]) + b"\xff" * 8 + bytes(png[24:])
    bmp[18:26] = struct.pack("<ii", 30_000, -30_000)
    gif, jpeg, webp = (bytearray(encode(kind)) for kind in ("GIF", "JPEG", "WEBP"))
    frame = gif.index(b",\0\0\0\0") + 5
    gif[frame : frame + 4] = struct.pack("<HH", 65_535, 65_535)
    frame = jpeg.index(b"\xff\xc0") + 5
    jpeg[frame : frame + 4] = struct.pack(">HH", 65_000, 65_000)
    webp[26:30] = struct.pack("<HH", 16_383, 16_383)
    good = encode("PNG")
    bombs = [bytes(data) for data in (png, largest, bmp, gif, jpeg, webp)]
    _, status = server([*bombs, good])
    assert status.tolist() == [requests.TOO_LARGE] * len(bombs) + [requests.OK]


def test_the_cap_is_exact_and_narrow_photos_count_as_32_wide(server):
    photos = [(200, 500), (200, 501), (1, 3125), (3126, 1), (31, 3125)]
    descriptors, status = server([encode("PNG", *size) for size in photos])
    assert status.tolist() == [0, 2, 0, 2, 0]
    assert not descriptors[[1, 3]].any() and descriptors[[0, 2, 4]].any(1).all()
