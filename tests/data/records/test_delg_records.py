"""DELG's reader reads our records; our reader, parser and verifier read those of DELG's builder."""

import numpy as np
import pytest
import tensorflow as tf
from gldv2_files import files_of, jpeg, settings, write_gldv2

from dolg_tf.data.records import tfrecord, verify
from dolg_tf.data.records.build import build_records
from dolg_tf.data.records.example import parse_example


def delg_spec():
    """What DELG's training reader asks for: numbers default to 0, strings to empty ones."""
    numbers = ("image/height", "image/width", "image/channels", "image/class/label")
    strings = ("image/format", "image/id", "image/filename", "image/encoded")
    spec = {key: tf.io.FixedLenFeature([], tf.int64, default_value=0) for key in numbers}
    return spec | {key: tf.io.FixedLenFeature([], tf.string, default_value="") for key in strings}


def delg_example(number, label=None):
    """One record as DELG's builder makes it, with the order of keys that protobuf chose."""
    with_numbers = {"image/height": 24, "image/width": 30, "image/channels": 3}
    if label is not None:
        with_numbers["image/class/label"] = label
    with_strings = {
        "image/colorspace": b"RGB",
        "image/format": b"JPEG",
        "image/id": f"id{number}".encode(),
        "image/encoded": jpeg(number),
    }
    int64, string = tf.train.Int64List, tf.train.BytesList
    features = {k: tf.train.Feature(int64_list=int64(value=[v])) for k, v in with_numbers.items()}
    features |= {k: tf.train.Feature(bytes_list=string(value=[v])) for k, v in with_strings.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_delgs_reader_reads_ours(tmp_path):
    write_gldv2(tmp_path)
    build_records(settings(tmp_path))
    paths = sorted(str(path) for path in (tmp_path / "records").glob("*-of-*"))
    found = [tf.io.parse_single_example(d, delg_spec()) for d in tf.data.TFRecordDataset(paths)]
    assert len(found) == 16 and {int(photo["image/class/label"]) for photo in found} == {0, 1, 2}
    for photo in found:
        assert tf.io.decode_jpeg(photo["image/encoded"]).shape == (24, 30, 3)
        stored = [int(photo[f"image/{key}"]) for key in ("height", "width", "channels")]
        assert stored == [24, 30, 3] and photo["image/format"] == b"JPEG"
        assert len(photo["image/id"].numpy()) == 16


@pytest.mark.parametrize("split", ["train", "test"])
def test_ours_reads_delgs(tmp_path, split):
    paths = [tmp_path / f"{split}-{shard:05d}-of-00002" for shard in range(2)]
    labels = [203_093, 0, 5, 7] if split == "train" else [None] * 4
    for shard, path in enumerate(paths):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for number in range(shard, 4, 2):
                writer.write(delg_example(number, labels[number]))
    pattern = f"{tmp_path}/{split}-*"
    index = tfrecord.RecordIndex.open(pattern)
    for place, number in enumerate([0, 2, 1, 3]):
        photo = tfrecord.parse(tf.constant(index.read(place)), labelled=split == "train")
        assert photo["id"] == f"id{number}".encode() and photo["encoded"] == jpeg(number)
        assert split == "test" or photo["label"] == labels[number]
    found = verify.verify_records(verify.VerifyConfig(file_pattern=pattern, processes=1))
    classes = 4 if split == "train" else 0
    assert found == {"files": 2, "records": 4, "classes": classes}
    assert len(files_of(tmp_path)) == 2


def test_parser_equals_tensorflows():
    rng = np.random.default_rng(0)
    extremes = [0, 1, 127, 128, 2**31, 2**63 - 1, -1, -(2**63)]
    for _ in range(50):
        features = {}
        for number in range(rng.integers(0, 6)):
            kind = rng.integers(3)
            size = int(rng.integers(0, 5))
            if kind == 0:
                values = rng.choice(extremes, size)
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
            elif kind == 1:
                strings = [rng.bytes(int(rng.integers(0, 300))) for _ in range(size)]
                feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=strings))
            else:
                floats = tf.train.FloatList(value=rng.normal(size=size))
                feature = tf.train.Feature(float_list=floats)
            features[f"key/é{number}"] = feature
        example = tf.train.Example(features=tf.train.Features(feature=features))
        expected = {
            key: list(feature.bytes_list.value) + list(feature.int64_list.value)
            for key, feature in features.items()
        }
        assert parse_example(example.SerializeToString()) == expected


def test_parser_takes_unpacked_integers_and_unknown_fields():
    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    int64s = b"\x08\x05" + b"\x08\x96\x01"  # 5 and 150, one by one
    entry = field(1, b"n") + field(2, field(3, int64s))
    unknown = b"\x3d1234" + b"\x3912345678" + b"\x18\x01"  # 4 bytes, 8 bytes, a number
    data = field(1, field(1, entry) + unknown) + field(9, b"later")
    assert tf.train.Example.FromString(data).features.feature["n"].int64_list.value == [5, 150]
    assert parse_example(data) == {"n": [5, 150]}


def test_parser_refuses_what_tensorflow_refuses():
    data = delg_example(0, 300)
    # A message may lawfully end between two fields: only at the outermost level that is the end.
    for cut in [*range(1, 60), len(data) - 1]:
        with pytest.raises(ValueError):
            parse_example(data[:cut])
    with pytest.raises(ValueError):
        parse_example(b"\x0f\x01")
