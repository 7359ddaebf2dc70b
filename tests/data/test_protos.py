import subprocess
import sys

import pytest
import tensorflow as tf

from dolg_tf.data import protos


def test_tensorflow_reads_an_example_and_the_other_way_round():
    message = protos.example_class()()
    for key, values in {"z": [b"a", b""], "é": [1, -1, 2**63 - 1], "a": [0.5, -2.0]}.items():
        feature = message.features.feature.add(key=key).value
        lists = {bytes: feature.bytes_list, int: feature.int64_list, float: feature.float_list}
        lists[type(values[0])].value.extend(values)
    data = message.SerializeToString()
    found = tf.train.Example.FromString(data)
    features = found.features.feature
    assert list(features["z"].bytes_list.value) == [b"a", b""]
    assert list(features["é"].int64_list.value) == [1, -1, 2**63 - 1]
    assert list(features["a"].float_list.value) == [0.5, -2.0]
    assert data.index(b"z") < data.index("é".encode())  # in the order in which they were added
    again = protos.parse(protos.example_class(), found.SerializeToString(deterministic=True))
    assert sorted(entry.key for entry in again.features.feature) == ["a", "z", "é"]


def test_damaged_data_is_a_value_error():
    data = protos.datum_class()(shape={"dim": [2]}, float_list={"value": [1, 2]})
    data = data.SerializeToString()
    assert protos.parse(protos.datum_class(), data).shape.dim == [2]
    with pytest.raises(ValueError):
        protos.parse(protos.datum_class(), data[:-1])


def test_tensorflow_is_not_imported():
    code = (
        "import sys; from dolg_tf.data import protos; protos.example_class(); "
        "from dolg_tf.data.records import shards; assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
