"""Local features chosen over scales: as DELF's own code chooses, and as a slow loop does."""

import functools
import itertools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.serving.graph.local_selection import Maps, select

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / "golden" / "delf_selection.npz")
CASES = {case["case"]: case for case in json.loads(str(GOLDEN["cases"]))}
SCALES = GOLDEN["scales"]


@functools.cache
def _golden_maps(stride):
    """Attention of each scale, and as its features the number of a cell among all scales'."""
    maps = [(GOLDEN[f"attention/{stride}/{i}"] / 10).astype(np.float32) for i in range(7)]
    starts = itertools.accumulate((each.size for each in maps), initial=0)
    numbers = [start + np.arange(each.size) for start, each in zip(starts, maps, strict=False)]
    return [
        (each, number.reshape(*each.shape, 1).astype(np.float32))
        for each, number in zip(maps, numbers, strict=True)
    ]


@functools.cache
def _graph(count, stride, iou, width):
    """Function of (maps, which of them, scales, limit, threshold) to what is selected."""
    maps = [(tf.TensorSpec([None, None]), tf.TensorSpec([None, None, 1]))] * count
    kinds = (([None], tf.int32), ([None], tf.float32), ([], tf.int32), ([], tf.float32))

    @tf.function(input_signature=[maps, *(tf.TensorSpec(*kind) for kind in kinds)], autograph=False)
    def run(maps, which, scales, limit, threshold):
        def maps_at(index, _):
            strength, features = tf.switch_case(which[index], [lambda one=one: one for one in maps])
            return Maps(features, strength, tf.fill([1, width], tf.cast(index, tf.float32)))

        options = {"stride": stride, "widths": (1, width), "iou": iou}
        found = select(maps_at, scales, limit, threshold, **options)
        return found._asdict() | {"positions": found.positions, "boxes": found.boxes}

    return run


def _select(maps, which, scales, limit, threshold, stride=16, iou=1.0, width=0):
    run = _graph(len(maps), stride, iou, width)
    found = run([*maps], np.asarray(which, np.int32), np.float32(scales), limit, threshold)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _overlaps(box, others):
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = np.prod(np.maximum(sides, 0), 1)
    areas = [np.prod(boxes[..., 2:] - boxes[..., :2], -1) for boxes in (box, others)]
    return both / (sum(areas) - both)


def _slowly(maps, which, scales, limit, threshold, stride=16, iou=1.0):
    """Cell by cell, as `_select`: rows of number, position and box, scale, strength."""
    every = []
    for scale, (attention, numbers) in zip(
        np.float32(scales), (maps[i] for i in which), strict=True
    ):
        for (i, j), strength in np.ndenumerate(attention):
            if strength >= np.float32(threshold):
                box = np.float32((stride * i, stride * j, stride * i, stride * j))
                box += np.float32((-145, -145, 145, 145))
                every.append((numbers[i, j, 0], box / scale, 1 / scale, strength))
    every.sort(key=lambda row: -row[3])
    if iou == 1:
        return every[:limit]
    kept = []
    for row in every:
        boxes = np.reshape([other[1] for other in kept], (-1, 4))
        if len(kept) < limit and (_overlaps(row[1], boxes) <= iou).all():
            kept.append(row)
    return kept


@pytest.mark.parametrize("name", CASES)
def test_it_chooses_as_delfs_own_code(name):
    case = CASES[name]
    which, stride = case["scale_indices"], case["stride"]
    options = (case["max_features"], case["threshold"], stride, case["iou"])
    maps, scales = _golden_maps(stride), SCALES[which]
    found = _select(maps, which, scales, *options)
    np.testing.assert_array_equal(found["features"][:, 0], GOLDEN[name])
    slowly = _slowly(maps, which, scales, *options)
    assert [row[0] for row in slowly] == GOLDEN[name].tolist()
    if f"{name}/boxes" in GOLDEN:
        np.testing.assert_allclose(found["boxes"], GOLDEN[f"{name}/boxes"], atol=1e-3)
    for row, box, position, scale, strength in zip(
        slowly,
        *(found[key] for key in ("boxes", "positions", "scales", "strengths")),
        strict=True,
    ):
        np.testing.assert_allclose(box, row[1], rtol=1e-6, atol=1e-3)
        np.testing.assert_allclose(position, (row[1][:2] + row[1][2:]) / 2, rtol=1e-6, atol=1e-3)
        assert strength == row[3] and scale == pytest.approx(row[2])


@pytest.mark.parametrize("seed", range(3))
def test_ties_across_scales_and_chunks(seed):
    """Strengths of three values: nearly everything ties, within a scale and between scales."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), (5, 3), (7, 9)]
    maps = [
        (rng.integers(0, 3, size).astype(np.float32), rng.random((*size, 1), np.float32))
        for size in sizes
    ]
    which = rng.integers(0, 3, 4)
    for limit, threshold in ((1000, 0), (9, 0), (9, 1), (30, 2), (0, 0), (5, 3)):
        found = _select(maps, which, (1.0, 0.5, 2.0, 1.0), limit, threshold)
        slowly = _slowly(maps, which, (1.0, 0.5, 2.0, 1.0), limit, threshold)
        assert found["features"][:, 0].tolist() == [row[0] for row in slowly]


def test_rows_of_all_scales_stand_in_their_order():
    maps = _golden_maps(16)
    found = _select(maps, (6, 0, 3), SCALES[[6, 0, 3]], 5, 0, width=2)
    np.testing.assert_array_equal(found["rows"], [[0, 0], [1, 1], [2, 2]])
    assert found["features"].shape == (5, 1)


def test_scales_are_exactly_one_at_scale_one():
    """TensorFlow's reciprocal of a row of ones is not: it is approximated in its first numbers."""
    found = _select(_golden_maps(16), (4,), (1.0,), 1000, 0)
    assert (found["scales"] == 1).all()


def test_a_negative_number_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="give a number of features"):
        _select(_golden_maps(16), (4,), (1.0,), -1, 0)
