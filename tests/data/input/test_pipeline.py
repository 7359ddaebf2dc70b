"""The input pipeline: the same batch for the same (seed, step), and errors that name the record."""

import io
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dolg_tf.data import images
from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import augment, pipeline
from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError

CLASSES, SIZE = 5, 32


def jpeg(number, height=40, width=52, kind="JPEG"):
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((width, height)).save(out, kind)
    return out.getvalue()


def write(folder, split, examples, shards=3):
    for shard in range(shards):
        name = tfrecord.shard_name(split, shard, shards)
        tfrecord.write_shard(folder / name, examples[shard::shards])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """37 training photos, of which one is a PNG, and 11 validation photos."""
    folder = tmp_path_factory.mktemp("records")
    photos = [jpeg(i, kind="PNG" if i == 20 else "JPEG") for i in range(48)]
    examples = [tfrecord.encode(p, f"id{i}", 40, 52, i % CLASSES) for i, p in enumerate(photos)]
    write(folder, "train", examples[:37])
    write(folder, "validation", examples[37:])
    return folder


def config(folder, **changes):
    values = {
        "train_file_pattern": f"{folder}/train-*",
        "validation_file_pattern": f"{folder}/validation-*",
        "num_classes": CLASSES,
        "image_size": SIZE,
    }
    return DataConfig(**values | changes)


def test_turned_photos_are_not_mixed_with_others(tmp_path):
    def records(split, upright, shards=2):
        photos = [tfrecord.encode(jpeg(i), f"{i}", 40, 52, 0, upright=upright) for i in range(4)]
        write(tmp_path, split, photos, shards)

    for upright in (True, False):
        records("train", upright)
        records("validation", upright)
        assert pipeline.TrainingInput(config(tmp_path), 2, 0).upright() is upright
        pipeline._validation_index.cache_clear()
    records("validation", True)
    with pytest.raises(InputError, match=r"train-\*' holds photos not turned by .*validation-\*'"):
        pipeline.TrainingInput(config(tmp_path), 2, 0).upright()
    records("train", True, 1)
    with pytest.raises(InputError, match=r"00001 are turned .*00002 are not"):
        pipeline.TrainingInput(config(tmp_path), 2, 0).upright()


def collect(dataset):
    """Returns the batches of each part of the elements, joined."""
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True)]


def decode_window(encoded, window):
    """Decodes a JPEG's window by itself, which changes its outermost columns by a few levels."""
    if tf.io.is_jpeg(encoded):
        return images.decode_jpeg_crop(encoded, *window)
    top, left, height, width = window
    return images.decode(encoded)[top : top + height, left : left + width]


def test_shapes_and_lengths(folder):
    train = pipeline.TrainingInput(config(folder), 8, 0)
    assert (train.num_photos, train.steps_per_epoch) == (37, 4)
    dataset = train.dataset(0, 6)
    assert dataset.element_spec[0] == tf.TensorSpec((8, SIZE, SIZE, 3), tf.float32)
    assert dataset.element_spec[1] == tf.TensorSpec((8,), tf.int32)
    assert len(list(dataset)) == 6
    pixels = collect(dataset)[0]
    assert pixels.min() > -0.2 and pixels.max() < 1.2 and pixels.std() > 0.1


def test_epoch_is_a_permutation(folder):
    train = pipeline.TrainingInput(config(folder), 1, 3)
    epochs = np.array([train.photos_of_step(step)[0][0] for step in range(3 * 37)]).reshape(3, 37)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(37), (3, 1)))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    assert (epochs[0] != np.arange(37)).sum() > 30
    other = pipeline.TrainingInput(config(folder), 1, 4)
    assert any(other.photos_of_step(step)[0][0] != epochs[0, step] for step in range(37))


def test_last_incomplete_batch_of_an_epoch_is_left_out(folder):
    train = pipeline.TrainingInput(config(folder), 8, 3)
    for epoch in range(3):
        steps = range(4 * epoch, 4 * epoch + 4)
        numbers = np.concatenate([train.photos_of_step(step)[0] for step in steps])
        assert len(set(numbers.tolist())) == 32


def test_draws_differ_between_photos_and_epochs(folder):
    train = pipeline.TrainingInput(config(folder), 8, 3)
    corners = np.concatenate([train.photos_of_step(step)[1].corner for step in range(40)])
    assert len(np.unique(corners, axis=0)) == 320


def test_draws_of_a_photo_do_not_depend_on_the_batch_size(folder):
    small, large = (pipeline.TrainingInput(config(folder), batch, 3) for batch in (4, 8))
    halves = [small.photos_of_step(step) for step in (4, 5)]
    expected = tf.nest.flatten(large.photos_of_step(2))
    for first, second, both in zip(*map(tf.nest.flatten, halves), expected, strict=True):
        np.testing.assert_array_equal(np.concatenate([first, second]), both)


def test_resumed_run_sees_the_same_batches(folder):
    train = pipeline.TrainingInput(config(folder), 8, 7)
    whole = collect(train.dataset(0, 9))
    again = pipeline.TrainingInput(config(folder), 8, 7)
    for start in (1, 6):
        tail = collect(again.dataset(start, 9 - start))
        for part, expected in zip(tail, whole, strict=True):
            np.testing.assert_array_equal(part, expected[8 * start :])


def test_workers_and_replicas_share_the_batch(folder):
    train = pipeline.TrainingInput(config(folder), 8, 7)
    whole = collect(train.dataset(2, 3))
    for workers, replicas in [(2, 1), (2, 2)]:
        parts = []
        for worker in range(workers):
            dataset = train.dataset(2, 3, worker, workers, replicas)
            assert dataset.element_spec[0].shape[0] == 8 // workers // replicas
            parts.append([part.reshape(3, -1, *part.shape[1:]) for part in collect(dataset)])
        for part, expected in zip(zip(*parts, strict=True), whole, strict=True):
            joined = np.concatenate(part, axis=1).reshape(expected.shape)
            np.testing.assert_array_equal(joined, expected)


def test_photos_come_with_their_labels_and_their_augmentation(folder):
    data = config(folder)
    train = pipeline.TrainingInput(data, 8, 7)
    index = tfrecord.RecordIndex.open(data.train_file_pattern)
    numbers, draws = train.photos_of_step(5)
    pixels, labels, weights = collect(train.dataset(5, 1))
    np.testing.assert_array_equal(weights, np.ones(8, np.float32))
    for i, number in enumerate(numbers):
        photo = tfrecord.parse(tf.constant(index.read(int(number))))
        assert labels[i] == photo["label"]
        one = tf.nest.map_structure(lambda values: values[i], draws)  # noqa: B023
        window = augment.crop_window(40, 52, one)
        decoded = decode_window(photo["encoded"], window)
        expected = images.to_float(augment.flip(decoded, one.flipped))
        expected = images.resize(expected, SIZE, SIZE)
        expected = augment.lighting(expected, 0.1 * one.lighting)
        np.testing.assert_allclose(pixels[i], expected, atol=1e-6)


def test_augmentation_can_be_switched_off(folder):
    data = config(folder, augment_crop=False, augment_flip=False, augment_lighting=0.0)
    train = pipeline.TrainingInput(data, 37, 0)
    index = tfrecord.RecordIndex.open(data.train_file_pattern)
    pixels = collect(train.dataset(0, 1))[0]
    for number, image in zip(train.photos_of_step(0)[0], pixels, strict=True):
        whole = images.decode(tfrecord.parse(tf.constant(index.read(int(number))))["encoded"])
        expected = images.resize(images.to_float(whole[:, 6:46]), SIZE, SIZE)
        np.testing.assert_allclose(image[:, 2:-2], expected[:, 2:-2], atol=1e-6)
    different = pipeline.TrainingInput(config(folder), 37, 0).dataset(0, 1)
    assert (collect(different)[0] != pixels).any()


def test_dropped_iterators_end(folder):
    """An iterator that is dropped half way must not wait for ever (see RecordIndex.reader)."""
    train = pipeline.TrainingInput(config(folder), 8, 7)
    dataset = train.dataset(0, 1000)
    for _ in range(5):
        next(iter(dataset))


@pytest.mark.parametrize(("batch", "workers", "replicas"), [(4, 1, 1), (4, 2, 1), (8, 2, 2)])
def test_validation_counts_every_photo_once(folder, batch, workers, replicas):
    data = config(folder)
    index = tfrecord.RecordIndex.open(data.validation_file_pattern)
    counted, steps = [], set()
    for worker in range(workers):
        dataset, number = pipeline.validation_dataset(data, batch, worker, workers, replicas)
        assert number == 11
        assert dataset.element_spec[0].shape == (batch // workers // replicas, SIZE, SIZE, 3)
        steps.add(len(list(dataset)))
        pixels, labels, weights = collect(dataset)
        assert labels.dtype == np.int32 and weights.dtype == np.float32
        counted += [
            (label, image)
            for label, image in zip(labels[weights == 1], pixels[weights == 1], strict=True)
        ]
        assert set(np.unique(weights)) <= {0, 1}
    assert len(steps) == 1 and len(counted) == 11
    photos = [tfrecord.parse(tf.constant(index.read(i))) for i in range(11)]
    assert sorted(int(label) for label, _ in counted) == sorted(int(p["label"]) for p in photos)
    if workers == 1:
        for (label, image), photo in zip(counted, photos, strict=True):
            assert label == photo["label"]
            whole = images.decode(photo["encoded"])  # 0.875 of 40 is 35
            expected = images.resize(images.to_float(whole[2:37, 8:43]), SIZE, SIZE)
            np.testing.assert_allclose(image[:, 2:-2], expected[:, 2:-2], atol=1e-6)


def test_too_few_photos(folder):
    with pytest.raises(InputError, match="holds 37 photos, less than one batch of 38; lower --ba"):
        pipeline.TrainingInput(config(folder), 38, 0)


@pytest.mark.parametrize(("workers", "replicas"), [(3, 1), (2, 3)])
def test_batch_that_cannot_be_shared(folder, workers, replicas):
    with pytest.raises(InputError, match="--batch_size"):
        pipeline.TrainingInput(config(folder), 8, 0).dataset(0, 1, 0, workers, replicas)


def test_no_records(tmp_path):
    with pytest.raises(InputError, match="`dolg records` makes"):
        pipeline.TrainingInput(config(tmp_path), 8, 0)
    with pytest.raises(InputError, match="`dolg records` makes"):
        pipeline.validation_dataset(config(tmp_path), 8)


BAD = {
    "label": (tfrecord.encode(jpeg(1), "bad", 40, 52, CLASSES), "has label 5, but --num_classes=5"),
    "no label": (tfrecord.encode(jpeg(1), "bad", 40, 52, None), "has no label"),
    "cut": (tfrecord.encode(jpeg(1)[:300], "bad", 40, 52, 1), "cannot be decoded"),
    "schema": (
        tf.train.Example().SerializeToString() + b"\x12\x02hi",
        "no image/encoded, which DELG's schema needs",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_record_is_named(tmp_path, kind):
    example, message = BAD[kind]
    examples = [tfrecord.encode(jpeg(i), f"id{i}", 40, 52, 0) for i in range(12)]
    examples[7] = example
    for split in ("train", "validation"):
        write(tmp_path, split, examples, shards=2)
    data = config(tmp_path)
    message = rf"-00001-of-00002, record 3.*{message}"

    train = pipeline.TrainingInput(data, 4, 0)
    batches, step = iter(train.dataset(0, 3)), 0
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        while True:
            next(batches)
            step += 1
    found = train.describe(error.value, step)
    assert isinstance(found, InputError)
    with pytest.raises(InputError, match=f"train{message}"):
        raise found

    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        list(pipeline.validation_dataset(data, 4)[0])
    with pytest.raises(InputError, match=f"validation{message}"):
        raise pipeline.describe_validation(error.value, data)


def test_damaged_record_is_named(tmp_path):
    examples = [tfrecord.encode(jpeg(i), f"id{i}", 40, 52, 0) for i in range(4)]
    write(tmp_path, "train", examples, shards=1)
    path = tmp_path / "train-00000-of-00001"
    damaged = bytearray(path.read_bytes())
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    train = pipeline.TrainingInput(config(tmp_path), 4, 0)
    with pytest.raises(tf.errors.DataLossError) as error:
        list(train.dataset(0, 1))
    with pytest.raises(InputError, match="train-00000-of-00001, record 3: the checksum is wrong"):
        raise train.describe(error.value, 0)


def test_error_that_no_record_explains_stays(folder):
    error = tf.errors.InternalError(None, None, "something else")
    assert pipeline.TrainingInput(config(folder), 8, 0).describe(error, 0) is error


@pytest.mark.slow
def test_memory_does_not_grow(folder):
    def resident():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    batches = iter(pipeline.TrainingInput(config(folder), 20, 0).dataset(0, 400))
    sizes = [resident() for step, _ in enumerate(batches, 1) if step % 100 == 0]
    assert sizes[-1] < sizes[0] + 5  # MB, while 6,000 photos of 12 kB each go by
