"""Sizes that headers promise, against Pillow and against what is decoded."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.data import headers, images

KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")


@pytest.fixture(scope="module")
def photo_size():
    """Traced once: function of bytes to (height, width)."""
    traced = tf.function(headers.photo_size, input_signature=[tf.TensorSpec([], tf.string)])
    return lambda data: tuple(traced(tf.constant(data)).numpy().tolist())


def encode(frames, kind, **options):
    out = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    if rest:
        options |= {"save_all": True, "append_images": rest}
    first.save(out, kind, **options)
    return out.getvalue()


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (70, 300), (301, 257)])
def test_size_is_the_size(photo_size, kind, size):
    assert photo_size(encode([noise(*size)], kind)) == size


def test_size_of_every_webp_layout(photo_size):
    for frames, options in (
        ([noise(70, 300)], {"lossless": True}),
        ([noise(70, 300, 4)], {}),  # extended
        ([noise(70, 300, 4)], {"lossless": True}),
        ([noise(70, 300), noise(70, 300) // 2], {}),  # animated
    ):
        assert photo_size(encode(frames, "WEBP", **options)) == (70, 300)


def test_sizes_larger_than_any_memory(photo_size):
    png = bytearray(encode([noise(2, 2)], "PNG"))
    png[16:24] = struct.pack(">II", 50_000, 2**31 - 1)
    assert photo_size(bytes(png)) == (2**31 - 1, 50_000)
    bmp = bytearray(encode([noise(2, 2)], "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, -70_000)
    assert photo_size(bytes(bmp)) == (70_000, 2**31 - 1)
    jpeg = encode([noise(2, 2)], "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    jpeg = jpeg[: frame + 5] + struct.pack(">HH", 65_000, 64_000) + jpeg[frame + 9 :]
    assert photo_size(jpeg) == (65_000, 64_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_header_has_no_size_and_raises_nothing_else(photo_size, kind):
    data = encode([noise(40, 50)], kind)
    for length in range(0, 40, 3):
        try:
            assert photo_size(data[:length]) <= (65_536, 65_536)
        except tf.errors.InvalidArgumentError:
            assert kind == "JPEG"


@pytest.mark.parametrize("data", [b"", b"\xff\x0a no", b"II*\0", b"RIFF1234WAVE", b"%PDF-1.7"])
def test_what_is_no_photo_has_size_zero(photo_size, data):
    assert photo_size(data) == (0, 0)


def test_first_gif_frame_is_what_pillow_shows():
    first, second = noise(40, 50), noise(40, 50) // 3
    still = Image.open(io.BytesIO(encode([first], "GIF"))).convert("RGB")
    data = encode([first, second, first], "GIF", comment=b"x" * 700, loop=0)
    gif, place = headers.first_gif_frame(tf.constant(data))
    assert len(gif.numpy()) < 0.6 * len(data) and place.numpy().tolist() == [40, 50, 0, 0]
    assert Image.open(io.BytesIO(gif.numpy())).n_frames == 1
    np.testing.assert_array_equal(images.decode(tf.constant(data)), still)
    # Damage behind the first frame is not seen, damage inside it is.
    images.decode(tf.constant(data[: len(gif.numpy()) + 10]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(data[: len(gif.numpy()) - 100]))


def test_gif_frame_smaller_than_its_canvas_stands_on_it(photo_size):
    data = bytearray(encode([noise(40, 50)], "GIF"))
    frame = data.index(b"\0\0\0\0" + struct.pack("<HH", 50, 40))
    data[frame : frame + 4] = struct.pack("<HH", 7, 9)  # its place on the canvas
    data[6:10] = struct.pack("<HH", 500, 400)  # the canvas
    assert photo_size(bytes(data)) == (400, 500)
    whole, alone = (
        images.decode(tf.constant(gif)).numpy()
        for gif in (bytes(data), encode([noise(40, 50)], "GIF"))
    )
    np.testing.assert_array_equal(whole[9:49, 7:57], alone)
    assert whole.shape == (400, 500, 3) and whole.sum() == alone.sum()
