"""The lists of classes beside the records."""

import hashlib

import numpy as np
import pytest

from dolg_tf.data.records import classes
from dolg_tf.stage.config import InputError


def test_written_and_read_again(tmp_path):
    pattern = f"{tmp_path}/train-*"
    assert classes.landmarks_sha256(pattern) is None
    assert classes.count_landmarks(pattern) is None
    classes.write_classes(tmp_path, [7, "a,b", "é"], np.array([3, 0, 5_000_000_000]))
    text = (tmp_path / "relabeling.csv").read_text(encoding="utf-8")
    assert text == 'new_label,old_label\n0,7\n1,"a,b"\n2,é\n'
    assert (tmp_path / "class_counts.csv").read_text() == "label,photos\n0,3\n1,0\n2,5000000000\n"
    counts = classes.read_class_counts(pattern, 3)
    assert counts.dtype == np.int64 and counts.tolist() == [3, 0, 5_000_000_000]
    assert classes.count_landmarks(pattern) == 3
    assert classes.landmarks_sha256(pattern) == hashlib.sha256(text.encode()).hexdigest()
    before = classes.landmarks_sha256(pattern)
    (tmp_path / "relabeling.csv").write_bytes(text.replace("\n", "\r\n").encode())  # as DELG does
    assert classes.landmarks_sha256(pattern) == before
    classes.write_classes(tmp_path, [7, "a", "é"], np.array([3, 0, 5]))
    assert classes.landmarks_sha256(pattern) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file (photos of each class); count them"),
        (b"", "line 1: no column 'label'"),
        (b"label,count\n0,1\n", "line 1: no column 'photos', only label,count"),
        (b"label,photos\n0,1\n2,1\n", "line 3: '2,1' must be 1 and a count"),
        (b"label,photos\n0,1\n1,-1\n", "line 3: '1,-1' must be 1 and a count"),
        (b"label,photos\n0,1\n1,2,3\n", "line 3: 3 fields, the header has 2"),
        (b"label,photos\n0,1\n", "lists 1 classes, --num_classes=2; correct the flag, or"),
        (b"label,photos\n0,1\n1,1\n2,1\n", "lists 3 classes, --num_classes=2"),
        (b"label,photos\n0,\xff\n", "not UTF-8 (byte 0xff"),
    ],
)
def test_wrong_counts(tmp_path, text, message):
    if text is not None:
        (tmp_path / "class_counts.csv").write_bytes(text)
    with pytest.raises(InputError) as error:
        classes.read_class_counts(f"{tmp_path}/train-*", 2)
    assert message in str(error.value)
    remedy = (
        f"dolg verify --file_pattern='{tmp_path}/train-*' "
        f"--num_classes=2 --class_counts_csv={tmp_path}/class_counts.csv"
    )
    assert remedy in str(error.value)
