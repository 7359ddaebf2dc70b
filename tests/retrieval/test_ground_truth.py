import collections
import os
import pickle

import numpy as np
import pytest
from peak_memory import peak_below
from PIL import Image
from scipy.io import savemat

from dolg_tf.retrieval import ground_truth
from dolg_tf.retrieval.extract.photos import PhotosConfig, list_photos
from dolg_tf.retrieval.ground_truth import load_ground_truth
from dolg_tf.stage.config import InputError

TRUTH = {
    "imlist": ["i0", "i1", "i2", "i3"],
    "qimlist": ["q0", "q1"],
    "gnd": [
        {"bbx": [1.5, 2, 30, 40], "easy": [3, 0], "hard": [], "junk": [1]},
        {"bbx": [0, 0, 9, 9], "easy": [], "hard": [2], "junk": []},
    ],
}


def _write(path, value):
    path.write_bytes(pickle.dumps(value, protocol=2))
    return path


def _changed(**changes):
    first = TRUTH["gnd"][0] | changes
    return TRUTH | {"gnd": [first, TRUTH["gnd"][1]]}


def _check(found):
    assert found.name == "gnd_x"
    assert found.index_ids == ("i0", "i1", "i2", "i3")
    assert found.query_ids == ("q0", "q1")
    assert [query.box for query in found.queries] == [(1.5, 2, 30, 40), (0, 0, 9, 9)]
    lists = [[list(getattr(q, n)) for n in ("easy", "hard", "junk")] for q in found.queries]
    assert lists == [[[0, 3], [], [1]], [[], [2], []]]
    assert found.queries[0].hard.dtype == np.int64


def test_pickle(tmp_path):
    _check(load_ground_truth(_write(tmp_path / "gnd_x.pkl", TRUTH)))


def test_whether_photos_are_turned(tmp_path):
    for value in (True, False):
        path = _write(tmp_path / "gnd_x.pkl", TRUTH | {"upright": value})
        assert load_ground_truth(path).upright is value
    assert load_ground_truth(_write(tmp_path / "gnd_x.pkl", TRUTH)).upright is False
    with pytest.raises(InputError, match="'upright' must be True or False"):
        load_ground_truth(_write(tmp_path / "gnd_x.pkl", TRUTH | {"upright": 1}))


def test_mat_counts_from_one(tmp_path):
    fields = ("bbx", "easy", "hard", "junk")
    gnd = np.zeros((1, 2), dtype=[(name, object) for name in fields])
    for i, query in enumerate(TRUTH["gnd"]):
        gnd[0, i] = tuple(
            np.array([query[n]], float if n == "bbx" else np.uint16) + (n != "bbx") for n in fields
        )
    cells = {name: np.array(TRUTH[name], object) for name in ("imlist", "qimlist")}
    savemat(tmp_path / "gnd_x.mat", {"gnd": gnd, **cells})
    _check(load_ground_truth(tmp_path / "gnd_x.mat"))
    savemat(tmp_path / "one.mat", {"gnd": gnd[:, :1], **cells, "qimlist": np.array(["q0"], object)})
    assert list(load_ground_truth(tmp_path / "one.mat").queries[0].easy) == [0, 3]


class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["top", "inside"])
def test_hostile_pickle_is_not_run(tmp_path, place):
    trap = tmp_path / "executed"
    hostile = _Hostile(trap)
    value = hostile if place == "top" else _changed(easy=[hostile])
    path = _write(tmp_path / "gnd_x.pkl", value)
    with pytest.raises(InputError, match=r"refused.*system"):
        load_ground_truth(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists(), "the trap itself does not work"


def _as_numpy(dtype):
    queries = [
        {key: np.array(value, float if key == "bbx" else dtype) for key, value in query.items()}
        for query in TRUTH["gnd"]
    ]
    return {"imlist": np.array(TRUTH["imlist"]), "qimlist": np.array(TRUTH["qimlist"], "S")} | {
        "gnd": queries
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<i8", ">u2"])
def test_arrays(tmp_path, dtype, protocol):
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(_as_numpy(dtype), protocol))
    _check(load_ground_truth(tmp_path / "gnd_x.pkl"))


def test_numbers_of_numpy_tuples_sets_and_bytes(tmp_path):
    first, second = TRUTH["gnd"]
    first = first | {"bbx": tuple(map(np.float32, first["bbx"])), "easy": {3, 0}}
    first["junk"] = [np.int64(1)]
    own = {"imlist": tuple(map(np.str_, TRUTH["imlist"])), "qimlist": [b"q0", np.bytes_("q1")]}
    own["gnd"] = (first, collections.OrderedDict(second))
    _check(load_ground_truth(_write(tmp_path / "gnd_x.pkl", own)))


@pytest.mark.parametrize("box", [None, [], np.zeros(0), "missing"])
def test_a_query_without_box_is_the_whole_photo(tmp_path, box):
    value = _changed(bbx=box)
    if isinstance(box, str):
        del value["gnd"][0]["bbx"]
    found = load_ground_truth(_write(tmp_path / "gnd_x.pkl", value))
    assert [query.box for query in found.queries] == [None, (0, 0, 9, 9)]


def test_one_list_is_enough(tmp_path):
    for key in ("easy", "hard"):
        value = TRUTH | {"gnd": [{key: [2]}, {"easy": [1], "junk": []}]}
        first, second = load_ground_truth(_write(tmp_path / "gnd_x.pkl", value)).queries
        assert getattr(first, key).tolist() == [2] and second.easy.tolist() == [1]
        assert not len(second.hard) and not len(first.junk)


def test_the_original_protocol(tmp_path):
    value = TRUTH | {"gnd": [{"bbx": [0, 0, 9, 9], "ok": [2, 0], "junk": [1]}, {"ok": []}]}
    found = load_ground_truth(_write(tmp_path / "gnd_x.pkl", value))
    assert found.original and found.queries[0].easy.tolist() == [0, 2]
    assert found.queries[0].junk.tolist() == [1] and not len(found.queries[0].hard)
    assert not load_ground_truth(_write(tmp_path / "gnd_x.pkl", TRUTH)).original


def test_a_query_listed_often_is_kept_once(tmp_path):
    value = {"imlist": [f"i{n}" for n in range(3000)], "qimlist": ["q"] * 3000}
    value["gnd"] = [{"easy": list(range(3000))}] * 3000
    path = _write(tmp_path / "gnd_x.pkl", value)
    with peak_below(4):
        found = load_ground_truth(path)
    assert found.queries[0] is found.queries[2999]


def test_queries_that_share_their_rows_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(ground_truth, "_MOST_ROWS", 5)
    rows = [0, 1]
    value = TRUTH | {"qimlist": ["a", "b", "c"], "gnd": [{"easy": rows} for _ in "abc"]}
    path = _write(tmp_path / "gnd_x.pkl", value)
    with pytest.raises(InputError, match="list more than 5 rows together"):
        load_ground_truth(path)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([1], "must be a dict"),
        ({}, "'imlist' must be a list of photo names; the file has no key"),
        (TRUTH | {"imlist": []}, "'imlist' is empty"),
        (TRUTH | {"qimlist": ["q0", 1]}, "'qimlist' must be a list"),
        (TRUTH | {"gnd": TRUTH["gnd"][:1]}, "one entry for each of 2"),
        (TRUTH | {"gnd": [1, 2]}, r"query 0 \(q0\): must be a dict"),
        (_changed(bbx=[1, 2, 3]), "no 'bbx' of four numbers.*; it has 3$"),
        (_changed(bbx=np.zeros(1000)), "no 'bbx' of four numbers.*; it has 1,000$"),
        (_changed(bbx=[0.5] * 1000), "no 'bbx' of four numbers.*; it has 1,000$"),
        (_changed(easy=np.zeros(1000, np.int16)), "'easy' lists 1,000 rows of 4; list each once"),
        (_changed(bbx="whole"), "no 'bbx' of four numbers.*leave it out"),
        (_changed(bbx=[1, 2, 3, None]), "no 'bbx' of four"),
        (_changed(bbx=[1, 2, 3, [4]]), "no 'bbx' of four"),
        (_changed(bbx=[1, 2, 3, float("nan")]), "'bbx' is"),
        (_changed(easy=[4]), r"'easy' has row 4, but the index has rows 0 to 3"),
        (_changed(easy=[-1]), "'easy' has row -1"),
        (_changed(easy=[0.5]), "whole numbers"),
        (_changed(easy=[0, 0]), "'easy' has row 0 twice"),
        (_changed(easy=[1]), r"query 0 \(q0\): row 1 is in 'easy' and 'junk'; keep"),
        (_changed(easy=np.array([0.0, 1])), "whole numbers.*but has 0.0"),
        (_changed(easy=np.array([True])), "whole numbers.*but has True"),
        (_changed(easy=np.array([[0, 1]])), r"'easy' must be a list.*write \[\] for none"),
        (_changed(easy=np.array([[0], "x"], object)), r"refused: .*array of objects; .*tolist"),
        (_changed(easy=["0"]), "but has '0'"),
        (_changed(easy=3), "'easy' must be a list"),
        (TRUTH | {"gnd": [{"ok": [1], "hard": []}] * 2}, "'ok' belongs to the original protocol"),
        (TRUTH | {"gnd": [{"ok": [1]}, {"easy": [1]}]}, "some queries have 'ok', but q1 does not"),
        (TRUTH | {"gnd": [{"good": [1], "bbx": None}] * 2}, "it has 'good', 'bbx', but no list"),
        (TRUTH | {"gnd": np.zeros(2)}, "query 0 .*must be a dict"),
        (TRUTH | {"imlist": ["a", "b", "a", "c"]}, "'imlist' has 'a' twice"),
        (TRUTH | {"imlist": {"a", "b"}}, "'imlist' must be a list of photo names, but is a set"),
        (TRUTH | {"imlist": [1, 2]}, "but has 1 at place 0; write strings"),
        (TRUTH | {"imlist": [b"\xff"]}, "is not UTF-8"),
        (TRUTH | {"imlist": np.array([["a"]])}, "'imlist' must be a list"),
        (_changed(easy=[[0], [1, 2]]), "'easy' must be a list"),
        (_changed(easy=[[0], [1]]), "'easy' must be a list"),
        (_changed(easy=[2**80]), "'easy' has row 1208925819614629174706176, but"),
        (_changed(easy=[2**800]), "'easy' has row .int., but"),
        (_changed(easy=None), "'easy' must be a list"),
        (_changed(bbx=[1, 2, 3, 10**400]), "no 'bbx'"),
    ],
)
def test_wrong_structure(tmp_path, value, told):
    with pytest.raises(InputError, match=told):
        load_ground_truth(_write(tmp_path / "gnd_x.pkl", value))


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_all_protocols(tmp_path, protocol):
    (tmp_path / "gnd_x.pkl").write_bytes(pickle.dumps(TRUTH, protocol))
    _check(load_ground_truth(tmp_path / "gnd_x.pkl"))


def test_a_small_file_takes_little_memory(tmp_path):
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(b"\x80\2}r\x00\xca\x9a;.")  # an object in slot 1,000,000,000 of the memo
    with peak_below(1), pytest.raises(InputError, match="'imlist' must be a list"):
        load_ground_truth(path)
    pairs = [0]
    for _ in range(60):
        pairs = [pairs, pairs]  # 2 ** 60 numbers, if it became an array
    _write(path, _changed(easy=pairs))
    with peak_below(1), pytest.raises(InputError, match="'easy' must be a list"):
        load_ground_truth(path)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (_changed(easy=np.zeros(1 << 21, np.int16)), "lists 2,097,152 rows of 4"),
        (_changed(bbx=np.zeros(1 << 20, np.float32)), "it has 1,048,576"),
        (TRUTH | {"imlist": np.zeros(1 << 20, "S1")}, "'imlist' has 1,048,576 photos; 1,000 are"),
        (TRUTH | {"gnd": np.zeros(1 << 20, np.int8)}, "'gnd' must have one entry for each of 2"),
    ],
    ids=["rows", "box", "names", "queries"],
)
def test_long_arrays_are_refused_as_they_are(tmp_path, monkeypatch, value, told):
    monkeypatch.setattr(ground_truth, "_MOST_PHOTOS", 1000)
    path = tmp_path / "gnd_x.pkl"
    path.write_bytes(pickle.dumps(value, protocol=4))
    with peak_below(8), pytest.raises(InputError, match=told) as caught:
        load_ground_truth(path)
    assert len(str(caught.value)) < 300


def test_long_arrays_of_matlab_are_refused_as_they_are(tmp_path):
    gnd = np.zeros(1, dtype=[("easy", object)])
    gnd[0]["easy"] = np.ones(1 << 24, np.uint8)
    names = np.array(["a", "b"], object)
    savemat(tmp_path / "gnd_x.mat", {"imlist": names, "qimlist": names[:1], "gnd": gnd})
    with peak_below(150), pytest.raises(InputError, match="'easy' lists 16,777,216 rows of 2"):
        load_ground_truth(tmp_path / "gnd_x.mat")


def test_damaged_files(tmp_path):
    whole = pickle.dumps(TRUTH)
    path = tmp_path / "gnd_x.pkl"
    for damaged in (b"", b"not a pickle", *(whole[:n] for n in range(1, len(whole), 7))):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"refused|must be"):
            load_ground_truth(path)
    (tmp_path / "gnd_x.mat").write_bytes(b"MATLAB 5.0 or so" * 20)
    with pytest.raises(InputError, match="refused: it is not a MATLAB file"):
        load_ground_truth(tmp_path / "gnd_x.mat")
    with pytest.raises(InputError, match="no such file"):
        load_ground_truth(tmp_path / "none.pkl")


@pytest.mark.parametrize(("name", "photos"), [("gnd_roxford5k", 4993), ("gnd_rparis6k", 6322)])
def test_the_real_ones(ground_truths, name, photos):
    found = load_ground_truth(ground_truths / f"{name}.pkl")
    assert (len(found.index_ids), len(found.queries)) == (photos, 70)
    with (ground_truths / f"{name}.pkl").open("rb") as file:
        truth = pickle.load(file)["gnd"][7]
    for label in ("easy", "hard", "junk"):
        np.testing.assert_array_equal(getattr(found.queries[7], label), np.sort(truth[label]))


SFM = {
    "cids": ["0a1b2c3d", "ffffee99", "00aa11bb"],
    "qidx": np.array([2, 0]),
    "gnd": [{"ok": np.array([1]), "junk": np.array([2])}, {"ok": [2], "junk": [0]}],
}


def test_the_validation_set_of_sfm120k(tmp_path):
    found = load_ground_truth(_write(tmp_path / "val.pkl", SFM))
    assert found.index_ids == ("3d/2c/1b/0a1b2c3d", "99/ee/ff/ffffee99", "bb/11/aa/00aa11bb")
    assert found.query_ids == ("bb/11/aa/00aa11bb", "3d/2c/1b/0a1b2c3d")
    assert [query.easy.tolist() for query in found.queries] == [[1], [2]]
    assert [query.junk.tolist() for query in found.queries] == [[2], [0]]
    assert found.original and not found.upright and found.queries[0].box is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"qidx": [3, 0]}, "'qidx' has 3, but must have rows of 'cids', 0 to 2"),
        ({"qidx": 3}, "'qidx' must be a list"),
        ({"cids": ["../../etc", "b" * 8, "c" * 8]}, "cid '../../etc' is not letters and digits"),
        ({"qidx": [0]}, "'gnd' must have one entry for each of 1 queries"),
    ],
)
def test_a_wrong_validation_set_of_sfm120k_is_told(tmp_path, changes, told):
    with pytest.raises(InputError, match=told):
        load_ground_truth(_write(tmp_path / "val.pkl", SFM | changes))


def test_its_photos_are_found_without_a_suffix(tmp_path):
    path = _write(tmp_path / "val.pkl", SFM)
    for id_ in load_ground_truth(path).index_ids:
        file = tmp_path / "ims" / id_
        file.parent.mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(file, "JPEG")
    for subset, count in (("query", 2), ("index", 3)):
        settings = PhotosConfig(
            images=str(path), image_root=f"{tmp_path}/ims", subset=subset, output=""
        )
        photos = list_photos(settings).photos
        assert len(photos) == count and all(photo.path.is_file() for photo in photos)
