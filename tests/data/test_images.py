"""Decoding against Pillow, geometry against plain NumPy."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.data import images


@pytest.fixture(scope="module")
def pixels():
    coarse = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((131, 97), Image.Resampling.BICUBIC))


def encode(pixels, kind="JPEG", mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_equals_pillow(pixels, mode, subsampling):
    data = encode(pixels, mode=mode, subsampling=subsampling)
    image = images.decode(tf.constant(data))
    assert image.dtype == tf.uint8
    np.testing.assert_array_equal(image, pillow(data))


@pytest.mark.parametrize(
    ("kind", "modes"),
    [("PNG", ("RGB", "L", "P", "1", "LA", "RGBA")), ("BMP", ("RGB", "L", "P", "RGBA"))],
)
def test_other_formats_equal_pillow(pixels, kind, modes):
    for mode in modes:
        data = encode(pixels, kind, mode)
        np.testing.assert_array_equal(images.decode(tf.constant(data)), pillow(data), mode)


def test_16_bits_become_8(pixels):
    data = encode(pixels[:, :, 0].astype(np.uint16) * 256 + 77, "PNG", "I;16")
    np.testing.assert_array_equal(images.decode(tf.constant(data)), pixels[:, :, :1] + [0, 0, 0])


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_webp_equals_pillow(pixels, mode, lossless):
    pixels = pixels if mode != "RGBA" else np.concatenate([pixels, pixels[:, :, :1]], -1)
    data = encode(pixels, "WEBP", mode, lossless=lossless, exact=True)
    np.testing.assert_array_equal(images.decode(tf.constant(data)), pillow(data))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(pixels, kind, alpha):
    # An animated WebP without alpha is written beyond the end of its tensor by TensorFlow 2.21.
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    if alpha:
        frames[1].putalpha(100)
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], lossless=True)
    image = images.decode(tf.constant(out.getvalue()))
    assert image.shape == (97, 131, 3)
    np.testing.assert_array_equal(image, pillow(out.getvalue()))


def test_exif_rotation_is_ignored(pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert images.decode(tf.constant(encode(pixels, exif=exif))).shape == (97, 131, 3)


def test_whole_chain_inside_tf_data(pixels):
    data = encode(pixels)

    def load(encoded):
        return images.resize(images.to_float(images.decode(encoded)), 40, 50)

    dataset = tf.data.Dataset.from_tensors(data).map(load)
    assert dataset.element_spec.shape == (40, 50, 3)
    np.testing.assert_array_equal(next(iter(dataset)), load(tf.constant(data)))


@pytest.mark.parametrize(
    "data", [b"", b"no photo", b"\xff\xd8\xff\xe0 cut", b"GIF89a", b"\xff\x0a JPEG XL", b"II*\0"]
)
def test_what_cannot_be_decoded(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(data))


def test_cut_jpeg_cannot_be_decoded(pixels):
    data = encode(pixels)
    with pytest.raises(tf.errors.InvalidArgumentError):
        images.decode(tf.constant(data[: len(data) // 2]))


@pytest.mark.parametrize("window", [(0, 0, 97, 131), (3, 17, 40, 50), (96, 130, 1, 1)])
def test_crop_equals_slice_of_the_whole(pixels, window):
    data = tf.constant(encode(pixels, subsampling=0))
    top, left, height, width = window
    expected = images.decode(data)[top : top + height, left : left + width]
    np.testing.assert_array_equal(images.decode_jpeg_crop(data, *window), expected)


def test_subsampled_crop_differs_at_its_sides_only(pixels):
    data = tf.constant(encode(pixels, subsampling=2))
    crop = images.decode_jpeg_crop(data, 10, 21, 60, 70)
    expected = images.decode(data)[10:70, 21:91]
    np.testing.assert_array_equal(crop[:, 1:-1], expected[:, 1:-1])


def test_to_float_spans_zero_to_one():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    result = images.to_float(tf.constant(levels)).numpy()
    np.testing.assert_array_equal(result, levels.astype(np.float32) / np.float32(255))
    assert result.min() == 0 and result.max() == 1


def naive_bilinear(image, height, width):
    """Half-pixel centres, clamped at the border, no antialiasing."""
    out = np.zeros((height, width, image.shape[2]))
    for y in range(height):
        for x in range(width):
            place = []
            for here, new, old in ((y, height, image.shape[0]), (x, width, image.shape[1])):
                source = (here + 0.5) * old / new - 0.5
                low = int(np.floor(source))
                share = source - low
                place.append([(max(low, 0), 1 - share), (min(low + 1, old - 1), share)])
            for row, row_share in place[0]:
                for column, column_share in place[1]:
                    out[y, x] += row_share * column_share * image[row, column]
    return out


@pytest.mark.parametrize("size", [(7, 5), (20, 31), (64, 40), (1, 1), (13, 64)])
def test_resize_equals_naive_bilinear(size):
    image = np.random.default_rng(1).random((13, 21, 3)).astype(np.float32)
    expected = naive_bilinear(image, *size)
    np.testing.assert_allclose(images.resize(image, *size), expected, atol=2e-6)
    batch = tf.stack([image, image])
    np.testing.assert_allclose(images.resize(batch, *size)[1], expected, atol=2e-6)


@pytest.mark.parametrize("size", [(40, 97), (200, 150)])
def test_resized_levels_equal_resized_floats(pixels, size):
    expected = images.resize(images.to_float(tf.constant(pixels)), *size)
    resize = tf.function(lambda image: images.resize_levels(image, *size))
    for found in (resize(tf.constant(pixels)), images.resize_levels(tf.constant(pixels), *size)):
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=3e-7)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((600, 800), 1.0, (600, 800)),
        ((5, 7), 0.5, (2, 4)),  # 2.5 and 3.5, halves to even
        ((1024, 683), 0.7071, (724, 483)),
        ((1, 3), 0.1, (1, 1)),
        ((480, 333), 1.4142135, (679, 471)),
    ],
)
def test_scaled_size(size, scale, expected):
    assert tuple(int(side) for side in images.scaled_size(*size, scale)) == expected
    traced = tf.function(images.scaled_size)(*map(tf.constant, size), tf.constant(scale))
    assert tuple(int(side) for side in traced) == expected
    assert traced[0].dtype == tf.int32


@pytest.mark.parametrize("scale", [2.0, 1.414, 1.0, 0.707, 0.5, 0.353, 0.25, 2**-0.5])
def test_floored_size_is_that_of_the_decimal_fraction(scale):
    sides = np.arange(1, 4097)
    exact = float(np.float32(scale)) if scale == 2**-0.5 else scale
    expected = [max(1, int(side * exact)) for side in sides.tolist()]
    found, same = images.floored_size(tf.constant(sides), tf.constant(sides), tf.constant(scale))
    assert found.numpy().tolist() == same.numpy().tolist() == expected
