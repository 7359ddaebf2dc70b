import numpy as np
import pytest

from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.whitening.pairs import pairs_from_csv, pairs_from_labels
from dolg_tf.stage.config import InputError

PHOTOS = DescriptorSet(("a/0", "a/1", "b.c/2", "b/3.5", "b/4"), np.eye(5), {}, "set")


@pytest.fixture
def listed(tmp_path):
    def write(*lines):
        (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "list.csv"

    return write


def test_pairs(listed):
    path = listed("note,positive,query", "x,./a//1.jpg,b/4", "y,b/3.5,b.c/2.JPG")
    queries, positives = pairs_from_csv(path, PHOTOS)
    assert queries.tolist() == [4, 2] and positives.tolist() == [1, 3]


@pytest.mark.parametrize("header", ["path,landmark", "id,landmark_id", "path,label"])
def test_a_landmark_s_photos_are_paired_with_the_next(listed, header, caplog):
    caplog.set_level("INFO")
    rows = ("b/4.jpg,7", "a/1,x", "a/0,7", "gone.jpg,7", "b/3.5,y", "b.c/2,7")
    queries, positives = pairs_from_labels(listed(header, *rows), PHOTOS)
    assert queries.tolist() == [4, 0] and positives.tolist() == [0, 2]
    told = "2 pairs of 3 landmarks; left out: 0 rows of other splits, 1 without descriptor"
    assert told in caplog.text


def test_only_training_photos_are_paired(listed, caplog):
    caplog.set_level("INFO")
    rows = ("a/0,x,train", "a/1,x,query", "b/3.5,x,train", "b/4,x,index", "b.c/2,x,")
    found = pairs_from_labels(listed("path,landmark,split", *rows), PHOTOS)
    assert np.array(found).tolist() == [[0, 3], [3, 2]]
    assert "2 rows of other splits" in caplog.text


@pytest.mark.parametrize(
    ("read", "lines", "told"),
    [
        (pairs_from_csv, ["query,positive", "a/0,a/9"], "line 2: set has no photo 'a/9'"),
        (pairs_from_csv, ["query,positive", "a/0,a/0.jpg"], "line 2: 'a/0' is paired with itself"),
        (pairs_from_csv, ["query,positive"], "no two photos of the same"),
        (pairs_from_csv, ["query,other", "a/0,a/1"], "no column 'positive'"),
        (pairs_from_csv, ["query,positive", "a/0"], "line 2: 1 fields"),
        (pairs_from_labels, ["path,landmark", "a/0,x", "a/1,y"], "no two photos of the same"),
        (
            pairs_from_labels,
            ["path,landmark,split", "a/0,x,index", "a/1,x,query"],
            "same landmark in split train; 2 photos are of other splits",
        ),
        (
            pairs_from_labels,
            ["path,landmark,split", "a/0,x,", "a/1,x,Train"],
            "line 3: split is 'Train', but must be one of train, index, query",
        ),
        (pairs_from_labels, ["path,landmark", "0.jpg,x"], "none of its 1 photos is in .*is 'a/0'"),
        (pairs_from_labels, ["path,landmark", "a/0,x", "a/0,x"], "line 3: 'a/0' is listed twice"),
        (pairs_from_labels, ["landmark", "x"], "no column 'path' or 'id'"),
    ],
)
def test_bad_lists_are_refused(listed, read, lines, told):
    with pytest.raises(InputError, match=told):
        read(listed(*lines), PHOTOS)


def test_an_npy_has_no_ids(listed):
    with pytest.raises(InputError, match="have no ids to match"):
        pairs_from_csv(listed("query,positive"), DescriptorSet(None, np.eye(5), {}, "x.npy"))
