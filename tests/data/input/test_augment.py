"""Augmentation against NumPy: distributions, bounds, and the same result for the same seed."""

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.data.input import augment


def draw(count, key=1, first=0, area_min=0.08):
    return augment.draw(tf.constant(key, tf.uint64), first, count, area_min)


def photo_of(draws, i):
    return tf.nest.map_structure(lambda values: values[i], draws)


def windows(height, width, area_min, count):
    photos = tf.data.Dataset.from_tensor_slices(draw(count, area_min=area_min))
    found = photos.map(lambda one: augment.crop_window(height, width, one))
    return next(iter(found.batch(count))).numpy()


def naive_window(rng, height, width, area_min):
    """The authors' crop, as a loop."""
    for _ in range(10):
        area = rng.uniform(area_min, 1) * height * width
        aspect = rng.uniform(3 / 4, 4 / 3)
        if rng.uniform() < 0.5:
            aspect = 1 / aspect
        h, w = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if h <= height and w <= width:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@pytest.mark.parametrize(("height", "width", "area_min"), [(600, 800, 0.08), (500, 300, 0.4)])
def test_crop_has_the_distribution_of_the_loop(height, width, area_min):
    found = windows(height, width, area_min, 2000)
    rng = np.random.default_rng(0)
    expected = np.array([naive_window(rng, height, width, area_min) for _ in range(20_000)])

    def numbers(sample):
        top, left, h, w = sample.T.astype(float)
        slack_y, slack_x = np.maximum(height - h, 1), np.maximum(width - w, 1)
        return [h * w / height / width, np.log(w / h), top / slack_y, left / slack_x]

    for ours, theirs in zip(numbers(found), numbers(expected), strict=True):
        quantiles = [5, 25, 50, 75, 95]
        np.testing.assert_allclose(
            np.percentile(ours, quantiles), np.percentile(theirs, quantiles), atol=0.05
        )
    top, left, h, w = found.T
    assert min(top.min(), left.min()) >= 0 and min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height and (left + w).max() <= width


def test_crop_of_a_square_keeps_the_smallest_area_and_is_wide_as_often_as_high():
    _, _, h, w = windows(1000, 1000, 0.5, 2000).T
    assert (h * w).min() > 0.499e6 and (h * w).max() <= 1e6
    # An aspect uniform in [3/4, 4/3], not exchanged, has a mean logarithm of 0.026.
    assert abs(np.log(w / h).mean()) < 0.012


def test_photo_too_narrow_for_any_crop_gives_the_centre():
    found = windows(1000, 20, 0.9, 5)
    np.testing.assert_array_equal(found, [[490, 0, 20, 20]] * 5)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 2)])
def test_crop_of_a_tiny_photo(height, width):
    top, left, h, w = windows(height, width, 0.08, 100).T
    assert min(h.min(), w.min()) >= 1
    assert (top + h).max() <= height and (left + w).max() <= width


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [
        ((600, 800), 1.0, (0, 100, 600, 600)),
        ((600, 800), 0.875, (37, 137, 525, 525)),
        ((801, 600), 0.875, (138, 37, 525, 525)),
        ((1, 1), 0.3, (0, 0, 1, 1)),
    ],
)
def test_centre_window(size, share, expected):
    assert tuple(augment.centre_window(*size, share).numpy()) == expected


def test_flip_half_of_the_time():
    image = tf.reshape(tf.range(24.0), (2, 4, 3))
    for flipped in (False, True):
        expected = image.numpy()[:, ::-1] if flipped else image
        np.testing.assert_array_equal(augment.flip(image, tf.constant(flipped)), expected)
    assert abs(draw(4000).flipped.numpy().mean() - 0.5) < 0.03


def test_lighting_is_one_colour_with_the_covariance_of_the_components():
    image = tf.random.stateless_uniform((4, 5, 3), [1, 2])
    weights = tf.data.Dataset.from_tensor_slices(0.1 * draw(1500).lighting)
    lit = weights.map(lambda one: augment.lighting(image, one)).batch(1500)
    shifts = next(iter(lit)).numpy() - image.numpy()
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-6)
    shifts = shifts[:, 0, 0]
    values = np.array([0.2175, 0.0188, 0.0045])
    vectors = np.array(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    expected = vectors @ np.diag((0.1 * values) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(shifts.T), expected, rtol=0.12, atol=1e-6)
    np.testing.assert_allclose(np.mean(shifts, axis=0), 0, atol=1.5e-3)
    # The components are an orthonormal basis.
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-3)


def test_same_draws_same_result_everywhere():
    image = tf.random.stateless_uniform((30, 40, 3), [1, 2])
    draws = draw(20)

    def work(one):
        flipped = augment.flip(image, one.flipped)
        return augment.crop_window(30, 40, one), augment.lighting(flipped, one.lighting)

    parallel = tf.data.Dataset.from_tensor_slices(draws).map(work, num_parallel_calls=4)
    for i, (window, result) in enumerate(parallel):
        expected = work(photo_of(draws, i))
        np.testing.assert_array_equal(window, expected[0])
        np.testing.assert_array_equal(result, expected[1])


def test_draws_of_a_photo_do_not_depend_on_how_many_are_drawn():
    whole = draw(100)
    for first, count in ((0, 1), (37, 20), (99, 1)):
        for part, expected in zip(draw(count, first=first), whole, strict=True):
            np.testing.assert_array_equal(part, expected[first : first + count])


def test_draws_are_uniform_and_independent():
    draws = draw(20_000)
    columns = np.concatenate(
        [draws.tries[:, 0], draws.corner, draws.lighting, np.float32(draws.flipped)[:, None]], 1
    )
    correlation = np.corrcoef(columns.T) - np.eye(8)
    correlation[0, 1] = correlation[1, 0] = 0  # height and width, of the same area
    assert np.abs(correlation).max() < 0.03
    deciles = np.percentile(draws.corner, np.arange(10, 100, 10), axis=0)
    np.testing.assert_allclose(deciles, np.tile(np.arange(0.1, 1, 0.1)[:, None], 2), atol=0.015)
    np.testing.assert_allclose(np.std(draws.lighting, axis=0), 1, atol=0.03)
    areas = np.prod(draws.tries, axis=2)
    np.testing.assert_allclose([areas.min(), areas.mean(), areas.max()], [0.08, 0.54, 1], atol=2e-3)


def test_keys_differ():
    corners = np.concatenate([draw(4, key).corner for key in (0, 1, 2**32, 2**63)])
    assert len(np.unique(corners)) == 32
