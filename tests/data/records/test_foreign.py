"""Records of other people: what they lack is said in words."""

import gzip
import zlib

import pytest
from small_records import CLASSES, SIZE, example

from dolg_tf.data import protos
from dolg_tf.data.config import DataConfig
from dolg_tf.data.records import foreign, tfrecord
from dolg_tf.data.records.foreign import schema_fault
from dolg_tf.data.records.verify import verify_file
from dolg_tf.stage.config import InputError


def _record(**features):
    """A record of bytes and whole numbers, without DELG's prefix."""
    message = protos.example_class()()
    for key, value in features.items():
        feature = message.features.feature.add(key=key.replace("__", "/")).value
        kind = feature.bytes_list if isinstance(value[0], bytes) else feature.int64_list
        kind.value.extend(value)
    return message.SerializeToString()


KAGGLE = _record(image=[b"jpeg"], image_name=[b"x"], target=[3])
OURS = {"image__encoded": [b"jpeg"], "image__id": [b"x"]}
FOREIGN = {
    "Kaggle's": (KAGGLE, r"no image/encoded, .* its keys are: image, image_name, target"),
    "a label of bytes": (
        _record(**OURS, image__class__label=[b"1"]),
        "image/class/label is bytes, not int64",
    ),
    "an id of numbers": (_record(**OURS | {"image__id": [7]}), "image/id is int64, not bytes"),
    "two photos": (
        _record(**OURS | {"image__encoded": [b"a", b"b"]}),
        "image/encoded has 2 values, not one",
    ),
    "nothing": (b"", "no image/encoded, .* its keys are: none"),
    "no message": (b"\xff\xff\xff", "not a tf.train.Example"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_keeps_a_record_out_is_said(name, tmp_path):
    data, told = FOREIGN[name]
    assert schema_fault(data)
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [data] * 3)
    index = tfrecord.RecordIndex.open(str(path))
    with pytest.raises(InputError, match=rf"train-00000-of-00001, record 0: {told}.*dolg records"):
        foreign.refuse_foreign(index)


def test_our_own_are_sound_and_one_of_them_is_enough(tmp_path):
    assert not schema_fault(example(0)) and not schema_fault(example(0, None))
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [KAGGLE, KAGGLE, example(0)])
    foreign.refuse_foreign(tfrecord.RecordIndex.open(str(path)))


def test_verify_names_type_and_keys(tmp_path):
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [KAGGLE, FOREIGN["a label of bytes"][0]])
    reasons = [fault.reason for fault in verify_file(str(path)).faults]
    assert reasons[0] == (
        "none of the keys of DELG's schema; its keys are: image, image_name, target"
    )
    assert "image/class/label is bytes, not one int64" in reasons


@pytest.mark.parametrize(
    ("pack", "told"), [(gzip.compress, "gzip.*gunzip -c"), (zlib.compress, "zlib.*pigz")]
)
def test_compressed_files_are_named(tmp_path, pack, told):
    path = tmp_path / "train-00000-of-00001"
    tfrecord.write_shard(path, [example(0)])
    path.write_bytes(pack(path.read_bytes()))
    with pytest.raises(InputError, match=f"compressed with {told}"):
        tfrecord.RecordIndex.open(str(path))
    (fault,) = verify_file(str(path)).faults
    assert "compressed with" in fault.reason


@pytest.mark.parametrize("skip", [False, True])
def test_training_refuses_them_before_it_starts(tmp_path, skip):
    """Skipping is no remedy: it would leave nothing."""
    from dolg_tf.data.input import pipeline

    tfrecord.write_shard(tmp_path / "train-00000-of-00001", [KAGGLE] * 8)
    data = DataConfig(
        train_file_pattern=f"{tmp_path}/train-*",
        num_classes=CLASSES,
        image_size=SIZE,
        skip_bad_records=skip,
    )
    with pytest.raises(InputError, match="no image/encoded") as error:
        pipeline.TrainingInput(data, 4, 0)
    assert "skip" not in str(error.value)
