"""Bad records and damaged files: skipped, counted and named under --skip_bad_records."""

import os

import numpy as np
import pytest
import tensorflow as tf
from small_records import CLASSES, SIZE, example

from dolg_tf.data.config import DataConfig
from dolg_tf.data.input import pipeline
from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError

BAD = {2: "has label 5", 4: "has no label", 7: "cannot be decoded", 8: "DELG's schema", 11: "check"}


@pytest.fixture
def data(tmp_path):
    """Twelve records, of which those of BAD are bad; training and validation alike."""
    examples = [example(i) for i in range(12)]
    examples[2] = example(2, CLASSES)
    examples[4] = example(4, None)
    examples[7] = example(7, data=b"no photo at all")
    examples[8] = tf.train.Example().SerializeToString() + b"\x12\x02hi"
    for split in ("train", "validation"):
        path = tmp_path / tfrecord.shard_name(split, 0, 1)
        tfrecord.write_shard(path, examples)
        damaged = bytearray(path.read_bytes())
        damaged[-100] ^= 1
        path.write_bytes(damaged)
    return DataConfig(
        train_file_pattern=f"{tmp_path}/train-*",
        validation_file_pattern=f"{tmp_path}/validation-*",
        num_classes=CLASSES,
        image_size=SIZE,
        skip_bad_records=True,
    )


def collect(dataset):
    return [np.concatenate(part) for part in zip(*dataset.as_numpy_iterator(), strict=True)]


def test_bad_training_records_have_no_weight_and_are_named(data):
    train = pipeline.TrainingInput(data, 4, 0)
    pixels, labels, weights = collect(train.dataset(0, 3))
    numbers = np.concatenate([train.photos_of_step(step)[0] for step in range(3)])
    bad = np.isin(numbers, list(BAD))
    np.testing.assert_array_equal(weights, np.where(bad, 0, 1).astype(np.float32))
    np.testing.assert_array_equal(labels, np.where(bad, 0, 1))
    assert (pixels[bad] == 0).all() and (pixels[~bad].std(axis=(1, 2, 3)) > 0.05).all()
    faults = [fault for step in range(3) for fault in train.faults_of_step(step)]
    assert len(faults) == len(BAD)
    for number, message in BAD.items():
        where = f"train-00000-of-00001, record {number}"
        assert any(f"{where}:" in fault or f"{where} (" in fault for fault in faults)
        assert any(message in fault for fault in faults if where in fault)
    ids = [name for step in range(3) for name in train.ids_of_step(step)]
    for number, name in zip(numbers, ids, strict=True):
        if number in (8, 11):
            assert name.endswith(f"train-00000-of-00001, record {number}")
        else:
            assert name == f"id{number}"


def test_bad_validation_records_have_no_weight(data):
    dataset, count = pipeline.validation_dataset(data, 8)
    pixels, labels, weights = collect(dataset)
    assert count == 12
    np.testing.assert_array_equal(np.flatnonzero(weights), sorted(set(range(12)) - set(BAD)))
    assert (pixels[list(BAD)] == 0).all() and (labels[list(BAD)] == 0).all()


def test_dropped_iterator_of_skipping_input_ends(data):
    for _ in range(3):
        next(iter(pipeline.TrainingInput(data, 4, 0).dataset(0, 1000)))


# --- damaged files ------------------------------------------------------------------------


def write(folder, shard, data):
    path = folder / tfrecord.shard_name("train", shard, 4)
    tfrecord.write_shard(path, data)
    return path


def test_readable_head_of_damaged_files_is_used(tmp_path, caplog):
    payloads = [b"a%d" % i * 20 for i in range(3)]
    write(tmp_path, 0, payloads)
    cut, torn, foreign = (write(tmp_path, shard, payloads) for shard in (1, 2, 3))
    cut.write_bytes(cut.read_bytes()[:-1])
    size = len(cut.read_bytes()) // 3 + 1
    damaged = bytearray(torn.read_bytes())
    damaged[size + 9] ^= 1  # the checksum of the second length
    torn.write_bytes(damaged)
    foreign.write_bytes(b"id,url,landmark_id\n" * 9)
    with pytest.raises(InputError, match="train-00001-of-00004, record 2 at byte 112: the file en"):
        tfrecord.RecordIndex.open(f"{tmp_path}/train-*")

    index = tfrecord.RecordIndex.open(f"{tmp_path}/train-*", skip_damaged=True)
    assert [index.read(i) for i in range(len(index))] == payloads + payloads[:2] + payloads[:1]
    expected = [(1, 2, "ends inside"), (2, 1, "is damaged"), (3, 0, "is not a TFRecord file")]
    assert len(index.left_out) == len(caplog.records) == 3
    for found, line, (shard, record, message) in zip(
        index.left_out, caplog.messages, expected, strict=True
    ):
        assert f"train-{shard:05d}-of-00004, record {record} at byte" in found
        assert message in found and found in line


def test_empty_file_is_said_once(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path, 0, [])
    write(tmp_path, 1, [example(i) for i in range(4)])
    data = DataConfig(train_file_pattern=f"{tmp_path}/train-*", num_classes=2, image_size=SIZE)
    train = pipeline.TrainingInput(data, 4, 0)
    assert collect(train.dataset(0, 1))[2].sum() == 4
    assert len(caplog.messages) == 1
    assert "train-00000-of-00004: 1 of 2 files have no record" in caplog.messages[0]


def test_only_empty_files(tmp_path):
    for shard in range(2):
        write(tmp_path, shard, [])
    with pytest.raises(InputError, match="no records in 2 files"):
        tfrecord.RecordIndex.open(f"{tmp_path}/train-*", skip_damaged=True)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "folder", "broken link"])
def test_what_is_no_file_is_named_at_once(tmp_path, kind, skip):
    write(tmp_path, 0, [example(0)])
    path = tmp_path / tfrecord.shard_name("train", 1, 4)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"train-00001-of-00004 (is not a regular|cannot be read)"):
        tfrecord.RecordIndex.open(f"{tmp_path}/train-*", skip_damaged=skip)


def test_file_that_vanishes_is_named(tmp_path):
    path = write(tmp_path, 0, [example(i) for i in range(4)])
    data = DataConfig(train_file_pattern=f"{tmp_path}/train-*", num_classes=2, image_size=SIZE)
    train = pipeline.TrainingInput(data, 4, 0)
    path.unlink()
    with pytest.raises(tf.errors.NotFoundError) as error:
        list(train.dataset(0, 1))
    with pytest.raises(InputError, match=r"train-00000-of-00004, record [0-3] cannot be read: No"):
        raise train.describe(error.value, 0)
