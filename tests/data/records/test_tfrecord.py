"""TFRecords of our own hand against TensorFlow's writer, reader and parser."""

import os
import threading

import numpy as np
import pytest
import tensorflow as tf

from dolg_tf.data.records import tfrecord
from dolg_tf.stage.config import InputError


def naive_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("length", [0, 1, 8, 10_000])
def test_checksum(length):
    data = np.random.default_rng(length).bytes(length)
    assert tfrecord.masked_crc32c(data) == naive_crc32c(data)


def test_checksum_of_the_standard():
    # RFC 3720, B.4: the CRC-32C of 32 zeros is 0x8A9136AA.
    crc = 0x8A9136AA
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert tfrecord.masked_crc32c(bytes(32)) == masked


@pytest.mark.parametrize("label", [0, 1, 127, 128, 203_093, None])
def test_example_equals_tensorflows(label):
    jpeg = os.urandom(300)
    features = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
        "image/id": tf.train.Feature(bytes_list=tf.train.BytesList(value=["é/0".encode()])),
        "image/colorspace": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"RGB"])),
        "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"JPEG"])),
    }
    numbers = {"height": 600, "width": 800, "channels": 3, "class/label": label}
    for key, value in numbers.items():
        if value is not None:
            int64 = tf.train.Int64List(value=[value])
            features[f"image/{key}"] = tf.train.Feature(int64_list=int64)
    expected = tf.train.Example(features=tf.train.Features(feature=features))
    data = tfrecord.encode(jpeg, "é/0", 600, 800, label)
    assert tf.train.Example.FromString(data) == expected
    assert data == expected.SerializeToString(deterministic=True)


@pytest.fixture
def shards(tmp_path):
    """Three files of 3, 0 and 300 records, with payloads of 0 to 9000 bytes."""
    rng = np.random.default_rng(0)
    examples = [
        tfrecord.encode(rng.bytes(int(rng.integers(0, 9000))), f"id{i}", 4, 5, i)
        for i in range(303)
    ]
    for shard, part in enumerate([examples[:3], [], examples[3:]]):
        path = tmp_path / tfrecord.shard_name("train", shard, 3)
        assert tfrecord.write_shard(path, part) == len(part)
    return tmp_path, examples


def test_tensorflow_reads_what_was_written(shards):
    folder, examples = shards
    paths = sorted(str(path) for path in folder.glob("train-*-of-00003"))
    found = [data.numpy() for data in tf.data.TFRecordDataset(paths)]  # verifies the checksums
    assert found == examples
    photo = tfrecord.parse(tf.constant(found[7]))
    assert photo["id"] == b"id7" and photo["label"] == 7 and photo["label"].dtype == tf.int64
    assert (
        photo["encoded"]
        == tf.train.Example.FromString(found[7])
        .features.feature["image/encoded"]
        .bytes_list.value[0]
    )


def test_any_record_can_be_read(shards):
    folder, examples = shards
    index = tfrecord.RecordIndex.open(f"{folder}/train-*")
    assert len(index) == 303
    read = index.reader()
    for number in np.random.default_rng(1).permutation(303)[:60]:
        assert index.read(number) == examples[number]
        assert read(tf.constant(number)).numpy() == examples[number]
    assert index.where(2).endswith("train-00000-of-00003, record 2")
    assert index.where(3).endswith("train-00002-of-00003, record 0")
    dataset = tf.data.Dataset.range(303).map(read, num_parallel_calls=4)
    assert list(dataset.as_numpy_iterator()) == examples


def test_tensorflows_files_can_be_read(tmp_path):
    path = str(tmp_path / "train-00000-of-00001")
    with tf.io.TFRecordWriter(path) as writer:
        for i in range(5):
            writer.write(b"x" * (i + 1) * 50)
    index = tfrecord.RecordIndex.open(path)
    assert [len(index.read(i)) for i in range(len(index))] == [50, 100, 150, 200, 250]


def test_many_threads_read(shards):
    folder, examples = shards
    index = tfrecord.RecordIndex.open(f"{folder}/train-*")
    wrong = []

    def work(seed):
        for number in np.random.default_rng(seed).permutation(303):
            if index.read(number) != examples[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_test_records_have_no_label():
    data = tf.constant(tfrecord.encode(b"jpeg", "a", 1, 1, None))
    assert set(tfrecord.parse(data, labelled=False)) == {"encoded", "id"}
    assert tfrecord.parse(data)["label"] == -1


def test_failed_shard_leaves_nothing(tmp_path):
    def examples():
        yield b"fine, long enough"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        tfrecord.write_shard(tmp_path / "train-00000-of-00001", examples())
    assert not list(tmp_path.iterdir())


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"no file matches '.*/nothing-\*'.*`dolg records`"):
        tfrecord.RecordIndex.open(f"{tmp_path}/nothing-*")


def test_no_record(tmp_path):
    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [])
    with pytest.raises(InputError, match="no records in 1 files"):
        tfrecord.RecordIndex.open(f"{tmp_path}/train-*")


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_truncated_file_is_named(tmp_path, cut):
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [b"a" * 40] * 3)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - cut])
    where = "record 1 at byte 56" if cut > 56 else "record 2 at byte 112"
    with pytest.raises(InputError, match=f"train-00000-of-00001, {where}: the file ends inside"):
        tfrecord.RecordIndex.open(str(path))


@pytest.mark.parametrize("data", [b"id,url,landmark_id\n" * 9, bytes(1000), b"\x05" + bytes(40)])
def test_foreign_file_is_named(tmp_path, data):
    path = tmp_path / "train-00000-of-00001"
    path.write_bytes(data)
    with pytest.raises(InputError, match="record 0 at byte 0: this is not a TFRecord file"):
        tfrecord.RecordIndex.open(str(path))


def test_damaged_header_in_the_middle(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [b"a" * 40] * 3)
    data = bytearray(path.read_bytes())
    data[56 + 9] ^= 1  # the checksum of the second header
    path.write_bytes(data)
    with pytest.raises(InputError, match="record 1 at byte 56: this is not a TFRecord file"):
        tfrecord.RecordIndex.open(str(path))


def test_damaged_payload_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [b"a" * 40] * 3)
    data = bytearray(path.read_bytes())
    data[56 + 20] ^= 1
    path.write_bytes(data)
    index = tfrecord.RecordIndex.open(str(path))
    assert index.read(0) == b"a" * 40
    with pytest.raises(InputError, match="record 1: the checksum is wrong"):
        index.read(1)
    with pytest.raises(tf.errors.DataLossError):
        index.reader()(tf.constant(1, tf.int64))
