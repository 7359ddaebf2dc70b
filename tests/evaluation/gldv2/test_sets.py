import time

import numpy as np
import pytest

from dolg_tf.data.records.label_lists import ListsConfig
from dolg_tf.evaluation.gldv2 import sets
from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage.config import InputError


def _meta(**changes):
    keys = ("image_root", "model_hash", "scales", "crop", "max_side", "whitening")
    return {**dict.fromkeys(keys), "bad": [], **changes}


def _set(ids, width=4, **changes):
    ids = tuple(ids)
    return DescriptorSet(
        ids, np.eye(1, width, dtype=np.float32).repeat(len(ids), 0), _meta(**changes), "the set"
    )


def _written(path, *arguments, **changes):
    descriptors.write(path, _set(*arguments, **changes))
    return str(path)


def test_kaggle_ids():
    assert sets.kaggle_ids(_set(["a/b/c/abc1", "abd2", "x/abe3"])) == ["abc1", "abd2", "abe3"]
    with pytest.raises(InputError, match=r"'x/1' and 'y/1' are both '1'"):
        sets.kaggle_ids(_set(["x/1", "y/1"]))
    with pytest.raises(InputError, match="'x/a b' contains blanks"):
        sets.kaggle_ids(_set(["x/a b"]))


def test_find_queries(caplog):
    caplog.set_level("INFO")
    queries = _set(["a/1", "a/2", "a/3"], bad=[{"id": "a/4", "reason": "a/4.jpg: broken"}])
    names, rows = sets.find_queries(queries, None)
    assert names == ["1", "2", "3", "4"] and rows.tolist() == [0, 1, 2, -1]
    assert caplog.messages == ["1 queries could not be read, the first is '4': no prediction"]
    caplog.clear()
    names, rows = sets.find_queries(queries, ["3", "4", "1"])
    assert names == ["3", "4", "1"] and rows.tolist() == [2, -1, 0]
    assert "1 queries could not be read, the first is '4'" in caplog.messages[0]
    assert "1 photos of the set are not among the queries" in caplog.messages[1]
    with pytest.raises(InputError, match=r"lacks 2 of the 3 wanted .* '5', its ids are like '1'"):
        sets.find_queries(queries, ["5", "1", "6"])
    caplog.clear()
    names, rows = sets.find_queries(queries, ["x/3.jpg", "4.jpg", "1"])
    assert names == ["x/3.jpg", "4.jpg", "1"] and rows.tolist() == [2, -1, 0]
    assert "the set: 2 of 3 photos are found by their names without suffix" in caplog.messages[0]


def test_very_many_bad_photos_are_joined_in_no_time():
    queries = _set(
        (f"a/{i}" for i in range(20_000)), bad=[{"id": f"b/x{i}"} for i in range(20_000)]
    )
    start = time.process_time()
    _, rows = sets.find_queries(queries, None)
    assert time.process_time() - start < 2 and np.count_nonzero(rows < 0) == 20_000


def test_sets_go_together(tmp_path):
    queries, index = (_written(tmp_path / name, [f"{name}/1"]) for name in "qi")
    assert [found.ids for found in sets.read_sets(queries, index)[:2]] == [("q/1",), ("i/1",)]
    others = _written(tmp_path / "n", ["n/2"])
    assert sets.read_sets(queries, index).non_landmarks is None
    assert sets.read_sets(queries, index, others).non_landmarks.source == others
    cases = {
        "model_hash 'other', .* None": _written(tmp_path / "m", ["1"], model_hash="other"),
        r"scales \[2.0\], .* None": _written(tmp_path / "s2", ["1"], scales=[2.0]),
        "whitening 'pca', .* None": _written(tmp_path / "w", ["1"], whitening="pca"),
        "width 5, .* 4": _written(tmp_path / "l", ["1"], 5),
        "no descriptors": _written(tmp_path / "e", []),
        "no such descriptor set": str(tmp_path / "none"),
    }
    for message, path in cases.items():
        with pytest.raises(InputError, match=message):
            sets.read_sets(queries, path)
    np.save(tmp_path / "bare.npy", np.eye(1, 4, dtype=np.float32))
    with pytest.raises(InputError, match="no ids"):
        sets.read_sets(str(tmp_path / "bare.npy"), index)
    # In another folder, but the same photo.
    same = _written(tmp_path / "s", ["x/1"])
    with pytest.raises(InputError, match=r"1 photos of .*/q are also in --non_landmarks"):
        sets.read_sets(queries, others, same)
    with pytest.raises(InputError, match=r"1 photos of .*/i are also in --non_landmarks"):
        sets.read_sets(others, index, same)


def test_landmarks_of_gldv2(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("id,url,landmark_id\nabc1,http://x,70\nabd2,http://y,8\nabe3,http://z,70\n")
    lists = ListsConfig(images_dir=".", train_csv=str(path))
    labels, landmarks = sets.read_landmarks(lists, _set(["a/b/e/abe3", "a/b/d/abd2"]))
    # Numbers ascend as numbers.
    assert landmarks == ["8", "70"] and labels.tolist() == [1, 0]
    with pytest.raises(InputError, match=r"1 of 2 photos .* no landmark in .*train\.csv.*'abf4'"):
        sets.read_landmarks(lists, _set(["abc1", "abf4"]))
    clean = tmp_path / "train_clean.csv"
    clean.write_text("landmark_id,images\n5,abc1 abe3\n")
    lists = ListsConfig(images_dir=".", train_clean_csv=str(clean), train_csv=str(path))
    labels, landmarks = sets.read_landmarks(lists, _set(["abe3"]))
    assert landmarks == ["5"] and labels.tolist() == [0]


def test_landmarks_of_an_own_list(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(
        "path,landmark,split\ntower/1.jpg,tower,train\narch/1.jpg,arch,train\narch/2.jpg,arch,index\n"
    )
    lists = ListsConfig(labels_csv=str(path))
    labels, landmarks = sets.read_landmarks(lists, _set(["tower/1", "arch/1"]))
    assert landmarks == ["arch", "tower"] and labels.tolist() == [1, 0]
    labels, _ = sets.read_landmarks(lists, _set(["mine/tower/1", "mine/arch/1.png"]))
    assert labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="the first is 'arch/2', its photos are like 'arch/1'"):
        sets.read_landmarks(lists, _set(["arch/2"]))
    path.write_text("path,landmark\n1.jpg,my tower\n")
    with pytest.raises(InputError, match="'my tower' contains blanks"):
        sets.read_landmarks(lists, _set(["1"]))
