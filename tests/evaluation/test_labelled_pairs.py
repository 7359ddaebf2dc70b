import pickle

import numpy as np
import pytest

from dolg_tf.evaluation import labelled_pairs
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.rows import Rows
from dolg_tf.stage.config import InputError


@pytest.fixture(autouse=True, params=[(2, 3), (256, 16384)], ids=["blocks", "one block"])
def block_sizes(request, monkeypatch):
    """All pairs once in blocks of 2 queries and 3 index photos, and once in one block."""
    monkeypatch.setattr(labelled_pairs, "_QUERIES", request.param[0])
    monkeypatch.setattr(labelled_pairs, "_ROWS", request.param[1])


def _set(ids, seed=0, root="photos"):
    """Descriptors of small whole numbers, whose products are exact, in two shards."""
    rows = np.random.default_rng(seed).integers(-9, 10, (len(ids), 4)).astype(np.float32)
    half = len(ids) // 2
    return DescriptorSet(tuple(ids), Rows([rows[:half], rows[half:]]), {"image_root": root}, "set")


def _bare(photos):
    return DescriptorSet(None, photos.descriptors, {}, "rows.npy")


def _csv(folder, text):
    path = folder / "some.csv"
    path.write_text(text)
    return path


def _found(pairs):
    """[(query, score, same)], in order of the query and the score."""
    listed = []
    for queries, scores, same in pairs():
        assert scores.dtype == np.float32 and same.dtype == bool
        listed += zip(queries.tolist(), scores.tolist(), same.tolist(), strict=True)
    return sorted(listed)


def _all_pairs(queries, index, kind):
    """The same, pair by pair; `kind(a, b)` of two ids is None if they are no pair."""
    a, b = np.asarray(queries.descriptors), np.asarray(index.descriptors)
    listed = []
    for row, id_ in enumerate(queries.ids):
        for other, other_id in enumerate(index.ids):
            same = kind(id_, other_id)
            if same is not None:
                listed.append((row, float(a[row] @ b[other]), same))
    return sorted(listed)


# --- a list of pairs -----------------------------------------------------------------


def test_listed_pairs(tmp_path):
    queries, index = _set(["q/1", "q/2", "q/3"]), _set(["i/1", "i/2"], seed=1)
    a, b = np.asarray(queries.descriptors), np.asarray(index.descriptors)
    path = _csv(
        tmp_path, "same,id_b,id_a\n1,i/1.PNG,./q//3.jpg\n0,i/2,q/1\ntrue,i/1,q/1\nFalse,i/2,q/3\n"
    )
    pairs = labelled_pairs.listed_pairs(path, queries, index)
    rows = [(2, 0, True), (0, 1, False), (0, 0, True), (2, 1, False)]
    expected = sorted((row, float(a[row] @ b[other]), same) for row, other, same in rows)
    assert _found(pairs) == expected == _found(pairs)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1,2,yes", "line 2: same is 'yes'; it must be 1 or 0"),
        ("1,2,", "line 2: same is ''"),
        ("1,2,1\n9,2,1\n1,8,1", r"1 of 3 pairs have a photo that is not in set, such as '9'"),
        ("1,2,1\n1,9,1", "1 of 2 pairs have a photo that is not in set, such as '9'"),
        ("1,2,1\n3,3.jpg,1", "line 3: '3' is paired with itself"),
        ("1,2,1\n1,3,0\n1,2,0", "line 4: the pair '1', '2' is listed twice"),
        ("1,2,1\n2,1,1", "line 3: the pair '2', '1' is listed twice"),
    ],
)
def test_wrong_lists(tmp_path, lines, message):
    photos = _set("123")
    with pytest.raises(InputError, match=message) as error:
        labelled_pairs.listed_pairs(_csv(tmp_path, f"id_a,id_b,same\n{lines}\n"), photos, photos)
    assert "some.csv" in str(error.value)


def test_one_name_in_two_folders(tmp_path):
    queries, index = _set("12"), _set("12", seed=1, root="other photos")
    path = _csv(tmp_path, "id_a,id_b,same\n1,1,1\n1,2,0\n2,1,0\n")
    assert len(_found(labelled_pairs.listed_pairs(path, queries, index))) == 3


# --- labelled photos -----------------------------------------------------------------

LANDMARKS = {"a1": "a", "a2": "a", "b1": "b", "b2": "b", "b3": "b", "c1": "c"}
LABELS = "landmark,path\n" + "".join(f"{name},{id_}.jpg\n" for id_, name in LANDMARKS.items())
ORDER = ["b2", "x", "a1", "c1", "b1", "y", "a2", "b3"]  # x and y have no label


def _by_landmark(a, b):
    if a == b or a not in LANDMARKS or b not in LANDMARKS:
        return None
    return LANDMARKS[a] == LANDMARKS[b]


def test_pairs_of_one_set_come_once(tmp_path, caplog):
    caplog.set_level("INFO")
    photos = _set(ORDER)
    pairs = labelled_pairs.labelled_pairs(_csv(tmp_path, LABELS), photos, photos)

    def kind(a, b):
        return _by_landmark(a, b) if ORDER.index(a) < ORDER.index(b) else None

    expected = _all_pairs(photos, photos, kind)
    assert len(expected) == 6 * 5 / 2 and sum(same for _, _, same in expected) == 1 + 3
    assert _found(pairs) == expected == _found(pairs)
    assert caplog.messages == ["set: 2 of 8 photos have no label"]


def test_pairs_of_two_sets(tmp_path, caplog):
    """A photo in both sets is not paired with itself."""
    caplog.set_level("INFO")
    queries, index = _set(["a1", "x", "b1", "c1"], seed=1), _set(["b3", "a1", "b1", "a2"])
    pairs = labelled_pairs.labelled_pairs(_csv(tmp_path, LABELS), queries, index)
    expected = _all_pairs(queries, index, _by_landmark)
    assert len(expected) == 3 * 4 - 2
    assert _found(pairs) == expected
    assert caplog.messages[0] == "set: 1 of 4 photos have no label"
    assert caplog.messages[1].endswith(
        "some.csv: 1 of 6 labelled photos have no descriptor, such as 'b2'"
    )


def test_blanks_and_another_image_root(tmp_path, caplog):
    photos = _set([f"mine/{id_}" for id_ in LANDMARKS])
    text = LABELS.replace("a,a2", '" a ",a2')
    pairs = labelled_pairs.labelled_pairs(_csv(tmp_path, text), photos, photos)
    found = _found(pairs)
    assert len(found) == 6 * 5 / 2 and sum(same for _, _, same in found) == 1 + 3
    assert caplog.messages == ["set: all 6 photos are found in the folder 'mine/'"]
    text = "id_a,id_b,same\na1,b1, True\na2,b2,0\n"
    assert len(_found(labelled_pairs.listed_pairs(_csv(tmp_path, text), photos, photos))) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,landmark\na1,a\na1.jpg,b\n", "line 3: 'a1.jpg' has two landmarks, 'a' and 'b'"),
        ("path,landmark\na1,\n", "line 2: an empty landmark"),
        ("path,landmark\n,a\n", "line 2: an empty path"),
        ("path,landmark\nphotos/a1.jpg,a\n", "no photo of set, whose first is 'b2'"),
        ("path,place\na1,a\n", "no column 'landmark' or 'label' or 'landmark_id'"),
    ],
)
def test_wrong_labels(tmp_path, text, message):
    photos = _set(ORDER)
    with pytest.raises(InputError, match=message) as error:
        labelled_pairs.labelled_pairs(_csv(tmp_path, text), photos, photos)
    assert "some.csv" in str(error.value)


def test_rows_need_names(tmp_path):
    photos = _set(ORDER)
    path = _csv(tmp_path, "id_a,id_b,same,path,landmark\na1,b1,1,a1,a\n")
    for read in (labelled_pairs.listed_pairs, labelled_pairs.labelled_pairs):
        for sets in ((photos, _bare(photos)), (_bare(photos), photos)):
            with pytest.raises(InputError, match=r"rows\.npy: the rows of an \.npy have no ids"):
                read(path, *sets)


# --- a ground truth ------------------------------------------------------------------

QUERIES, INDEX = ("q1", "i2", "q3"), tuple(f"i{row}" for row in range(9))
ROWS = (  # easy, hard, junk; the second query is itself in the index, and listed as easy
    ([4, 0], [7], [1, 8]),
    ([2, 3], [], []),
    ([], [], [5]),
)


@pytest.fixture
def task(tmp_path):
    gnd = [
        {"bbx": [0, 0, 1, 1], "easy": easy, "hard": hard, "junk": junk} for easy, hard, junk in ROWS
    ]
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps({"imlist": list(INDEX), "qimlist": list(QUERIES), "gnd": gnd}))
    return path


def _by_task(a, b):
    easy, hard, junk = ROWS[QUERIES.index(a)]
    row = INDEX.index(b)
    return None if a == b or row in junk else row in easy + hard


def test_pairs_of_a_ground_truth(task):
    in_order = _set(QUERIES, seed=1), _set(INDEX)
    expected = _all_pairs(*in_order, _by_task)
    assert len(expected) == 7 + 8 + 8 and sum(same for _, _, same in expected) == 3 + 1
    found = labelled_pairs.task_pairs(task, *in_order)
    assert _found(found) == expected == _found(found)
    # In another order, among other photos.
    shuffled = []
    for photos, more in zip(in_order, (["q0"], ["i10", "i11"]), strict=True):
        ids = list(photos.ids[::-1]) + more
        rows = np.concatenate([photos.descriptors[:][::-1], np.full((len(more), 4), 99)])
        shuffled.append(DescriptorSet(tuple(ids), rows.astype(np.float32), {}, "set"))
    assert _found(labelled_pairs.task_pairs(task, *shuffled)) == expected
    assert _found(labelled_pairs.task_pairs(task, *map(_bare, in_order))) == expected


def test_one_set_of_queries_and_index(task):
    both = _set([*INDEX, "q3", "q1"])
    row_of = {id_: row for row, id_ in enumerate(both.ids)}
    parts = [
        DescriptorSet(ids, both.descriptors[[row_of[id_] for id_ in ids]])
        for ids in (QUERIES, INDEX)
    ]
    found = labelled_pairs.task_pairs(task, both, both)
    assert _found(found) == _all_pairs(*parts, _by_task)
    rows = _bare(both)
    with pytest.raises(InputError, match="give a descriptor set"):
        labelled_pairs.task_pairs(task, rows, rows)


def test_a_photo_of_the_ground_truth_without_descriptor(task):
    with pytest.raises(InputError, match="lacks 1 of 3 photos, the first is 'q3'"):
        labelled_pairs.task_pairs(task, _set(QUERIES[:2]), _set(INDEX))
    with pytest.raises(InputError, match="lacks 1 of 9 photos, the first is 'i8'"):
        labelled_pairs.task_pairs(task, _set(QUERIES), _set(INDEX[:-1]))
