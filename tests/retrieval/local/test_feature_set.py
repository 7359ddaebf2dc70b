import json
import shutil

import local_sets
import numpy as np
import pytest
from local_sets import LOCAL_META, draw, same

from dolg_tf.retrieval import descriptors
from dolg_tf.retrieval.local import feature_set, linking, writing
from dolg_tf.retrieval.local.features import LocalFeatures
from dolg_tf.stage import checksums
from dolg_tf.stage.config import InputError

COUNTS = (5, 0, 12, 1, 7)
IDS = ("a/1", "a/2", "b/é 3", "b/4", "c/5")


def photos(dimensions=16, ids=IDS, counts=COUNTS, seed=0):
    rng = np.random.default_rng(seed)
    drawn = zip(ids, counts, strict=True)
    return {id_: draw(rng, n, dimensions, (300 + n, 400)) for id_, n in drawn}


@pytest.fixture
def folder(tmp_path):
    writing.write(tmp_path / "set", photos().items(), LOCAL_META, 13)
    return tmp_path / "set"


@pytest.mark.parametrize("dtype", feature_set.LOCAL_DTYPES)
@pytest.mark.parametrize("dimensions", [16, 13])
def test_round_trip(tmp_path, dtype, dimensions):
    drawn = photos(dimensions)
    writing.write(tmp_path / "set", drawn.items(), LOCAL_META | {"dtype": dtype}, 13)
    found = feature_set.read(tmp_path / "set")
    assert found.ids == IDS and len(found) == 5 and found.counts.tolist() == list(COUNTS)
    assert found.meta["dtype"] == dtype and found.meta["dimensions"] == dimensions
    assert [len(shard.strengths) for shard in found.shards] == [5, 13, 7]
    for id_, one in zip(found.ids, found, strict=True):
        assert one.descriptors.dtype == np.float32 and one.descriptors.shape[1] == dimensions
        if dtype == "bits":
            signs = np.where(drawn[id_].descriptors > 0, 1, -1) / dimensions**0.5
            drawn[id_] = LocalFeatures(*list(vars(drawn[id_]).values())[:3], signs, one.size)
        assert same(one, drawn[id_], {"float32": 0, "float16": 5e-4, "bits": 1e-6}[dtype])


def test_features_of_how_keep_their_length_until_they_are_reduced(tmp_path):
    drawn = photos()
    for one in drawn.values():
        one.descriptors[:] *= 3
        one.descriptors[-1:] = 0
    meta = LOCAL_META | {"kind": "how", "dtype": "float32"}
    writing.write(tmp_path / "set", drawn.items(), meta)
    for id_, found in zip(IDS, feature_set.read(tmp_path / "set"), strict=True):
        np.testing.assert_array_equal(found.descriptors, drawn[id_].descriptors)
        np.testing.assert_allclose(3 * found.directions, found.descriptors, atol=1e-6)
    for other in ({"reduction": "abc"}, {"kind": "dolg"}):
        with pytest.raises(InputError, match="are not of unit norm"):
            writing.write(tmp_path / "other", drawn.items(), meta | other)


def test_bits_are_packed_as_numpy_packs_them(tmp_path):
    drawn = photos(13)
    writing.write(tmp_path / "set", drawn.items(), LOCAL_META | {"dtype": "bits"})
    stored = np.load(tmp_path / "set/descriptors-00000-of-00001.npy")
    np.testing.assert_array_equal(stored[:5], np.packbits(drawn["a/1"].descriptors > 0, axis=1))


def test_features_stay_on_disk(folder):
    found = feature_set.read(folder)
    assert all(isinstance(array, np.memmap) for shard in found.shards for array in shard)
    assert np.load(folder / "offsets.npy").tolist() == [0, 5, 5, 17, 18, 25]
    assert np.load(folder / "sizes.npy").tolist() == [[300 + n, 400] for n in COUNTS]


def test_photos_without_any_feature(tmp_path):
    writing.write(tmp_path / "set", photos(counts=[0] * 5).items(), LOCAL_META)
    found = feature_set.read(tmp_path / "set")
    assert [len(one) for one in found] == [0] * 5 and found[4].descriptors.shape == (0, 16)


def test_a_first_photo_without_features_does_not_say_how_long_they_are(tmp_path):
    nothing, one = draw(np.random.default_rng(0), 0, 2), draw(np.random.default_rng(1), 3, 16)
    writing.write(tmp_path / "set", [("a", nothing), ("b", one)], LOCAL_META | {"dtype": "bits"})
    found = feature_set.read(tmp_path / "set")
    assert found[0].descriptors.shape == (0, 16) and found[1].descriptors.shape == (3, 16)


def test_rows_are_found_by_id(folder):
    found = feature_set.read(folder)
    assert found.rows_of(["c/5", "a/1"]).tolist() == [4, 0]
    assert found.rows_of(IDS).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match=r"lacks 2 of 3 photos, the first is 'x'.*--local"):
        found.rows_of(["a/1", "x", "y"])
    with pytest.raises(IndexError):
        found[5]


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("part", feature_set.Stored._fields)
def test_a_flipped_bit_is_found_when_its_photo_is_read(folder, part):
    flip(folder / f"{part}-00001-of-00003.npy", 140)
    found = feature_set.read(folder)
    assert len(found[0]) == 5 and len(found[4]) == 7
    with pytest.raises(InputError, match=r"set: the features of 'b/é 3' are damaged.*extract"):
        found[2]


@pytest.mark.parametrize("name", ["ids.txt", "offsets.npy", "sizes.npy", "sums.npy", "meta.json"])
def test_damaged_tables_are_refused(folder, name):
    flip(folder / name, -2)
    with pytest.raises(InputError, match=f"{name}.*(damaged|UTF-8|not JSON)"):
        feature_set.read(folder)


@pytest.mark.parametrize(
    "name", ["offsets.npy", "sums.npy", "ids.txt", "positions-00001-of-00003.npy"]
)
def test_missing_files_are_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(InputError, match=r"offsets\.npy|sums\.npy|ids\.txt|not all shards"):
        feature_set.read(folder)


def test_a_cut_shard_is_refused(folder):
    path = folder / "descriptors-00002-of-00003.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"descriptors-00002-of-00003.npy: not a complete"):
        feature_set.read(folder)


def test_shards_of_another_shape_are_refused(folder):
    np.save(folder / "scales-00000-of-00003.npy", np.zeros(4, np.float32))
    with pytest.raises(InputError, match=r"scales-00000.*float32 \(4,\), not float32 \(5,\)"):
        feature_set.read(folder)
    np.save(folder / "scales-00000-of-00003.npy", np.zeros(5))
    with pytest.raises(InputError, match=r"scales-00000.*float64"):
        feature_set.read(folder)


def test_features_outside_the_shards_are_refused(folder):
    for part in feature_set.Stored._fields:
        path = folder / f"{part}-00002-of-00003.npy"
        np.save(path, np.load(path)[:-1])
    with pytest.raises(InputError, match="'c/5' are outside the shards"):
        feature_set.read(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("dtype", "int8"), ("dimensions", -1), ("threshold", "x"), ("bad", 3)]
)
def test_odd_metadata_are_refused(folder, key, value):
    meta = json.loads((folder / "meta.json").read_text())
    del meta["crc32c"]["meta.json"]
    sums = meta.pop("crc32c")
    checksums.write_json(folder / "meta.json", meta | {key: value}, sums)
    with pytest.raises(InputError, match=f"meta.json: {key} is"):
        feature_set.read(folder)


def test_what_is_no_set_is_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no such local feature set"):
        feature_set.read(tmp_path / "none")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match=r"not a local feature set.*OUTPUT\.local"):
        feature_set.read(tmp_path / "other")
    with pytest.raises(InputError, match="is a local feature set; give the descriptor set"):
        descriptors.read(folder)


def test_wrong_features_are_refused_and_nothing_is_left(tmp_path):
    rng = np.random.default_rng(0)
    odd = {
        "not finite": draw(rng, 2),
        "unit norm": draw(rng, 2),
        "of 9 numbers, not 16": draw(rng, 2, 9),
    }
    odd["not finite"].positions[0, 0] = np.nan
    odd["unit norm"].descriptors[1] *= 2
    for told, features in odd.items():
        with pytest.raises(InputError, match=told):
            writing.write(tmp_path / "set", [("a", draw(rng, 2)), ("b", features)], LOCAL_META)
    with pytest.raises(InputError, match="occurs twice"):
        writing.write(tmp_path / "set", [("a", draw(rng, 2))] * 2, LOCAL_META)
    assert not list(tmp_path.iterdir())


def test_a_feature_without_direction_is_kept(tmp_path):
    features = draw(np.random.default_rng(0), 2)
    features.descriptors[1] = 0
    writing.write(tmp_path / "set", [("a", features)], LOCAL_META)
    assert not feature_set.read(tmp_path / "set")[0].descriptors[1].any()


# --- joining ----------------------------------------------------------------------------


def check(path, drawn):
    found = feature_set.read(path)
    assert found.ids == tuple(drawn)
    for id_, one in zip(found.ids, found, strict=True):
        assert same(one, drawn[id_], 5e-4)
    return found


def test_join_links_and_leaves_gaps(tmp_path, folder):
    """Old shards are not copied: they are the same files."""
    more = photos(ids=("d", "e"), counts=(40, 3), seed=1)
    writing.write(tmp_path / "more", more.items(), LOCAL_META)
    old, new = feature_set.read(folder), feature_set.read(tmp_path / "more")
    parts = [(old, np.array([4, 1, 2])), (new, np.arange(2))]
    linking.join(tmp_path / "joined", parts, shard_features=10)
    drawn = photos() | more
    found = check(tmp_path / "joined", {i: drawn[i] for i in ("c/5", "a/2", "b/é 3", "d", "e")})
    assert [len(shard.strengths) for shard in found.shards] == [13, 7, 43]
    files = [(folder, "1-of-00003"), (folder, "2-of-00003"), (tmp_path / "more", "0-of-00001")]
    for shard, (source, name) in enumerate(files):
        for part in feature_set.Stored._fields:
            one = tmp_path / f"joined/{part}-0000{shard}-of-00003.npy"
            assert one.samefile(source / f"{part}-0000{name}.npy")
    assert (tmp_path / "joined/starts.npy").exists()
    shutil.rmtree(folder)
    check(tmp_path / "joined", {i: drawn[i] for i in ("c/5", "a/2", "b/é 3", "d", "e")})


def test_join_copies_where_there_are_no_links(tmp_path, folder, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    linking.join(tmp_path / "joined", [(feature_set.read(folder), np.arange(5))], shard_features=10)
    check(tmp_path / "joined", photos())


def test_join_in_place(folder):
    old = feature_set.read(folder)
    linking.join(folder, [(old, np.array([0, 2]))])
    kept = {id_: photos()[id_] for id_ in ("a/1", "b/é 3")}
    check(folder, kept)
    assert same(old[4], photos()["c/5"], 5e-4)  # what was open does not change


def test_shards_of_which_little_is_left_are_copied(tmp_path, folder):
    linking.join(tmp_path / "joined", [(feature_set.read(folder), np.array([0, 3]))])
    found = check(tmp_path / "joined", {id_: photos()[id_] for id_ in ("a/1", "b/4")})
    assert sum(len(shard.strengths) for shard in found.shards) == 6


def test_a_set_that_grows_photo_by_photo_has_few_shards_and_copies_little(tmp_path, monkeypatch):
    copied, write = 0, writing.SetWriter.add_stored

    def counting(self, id_, size, stored, digest):
        nonlocal copied
        copied += len(stored.strengths)
        write(self, id_, size, stored, digest)

    rng, drawn = np.random.default_rng(0), {}
    for number in range(24):
        drawn[f"{number:02d}"] = draw(rng, 3)
        monkeypatch.setattr(writing.SetWriter, "add_stored", write)
        writing.write(tmp_path / "one", [(f"{number:02d}", drawn[f"{number:02d}"])], LOCAL_META)
        monkeypatch.setattr(writing.SetWriter, "add_stored", counting)
        parts = [tmp_path / "all", tmp_path / "one"] if number else [tmp_path / "one"]
        sets = [feature_set.read(part) for part in parts]
        linking.join(tmp_path / "all", [(one, np.arange(len(one))) for one in sets])
        assert len(feature_set.read(tmp_path / "all").shards) <= 1 + np.log2(number + 1)
    check(tmp_path / "all", drawn)
    assert copied <= 3 * 24 * 5


def test_join_refuses_what_does_not_fit(tmp_path, folder):
    old = feature_set.read(folder)
    for name, drawn, meta in (
        ("dimensions", photos(9, IDS, COUNTS), LOCAL_META),
        ("dtype", photos(), LOCAL_META | {"dtype": "bits"}),
    ):
        writing.write(tmp_path / name, drawn.items(), meta)
        other = feature_set.read(tmp_path / name)
        with pytest.raises(InputError, match=f"{name} has {name}"):
            linking.join(tmp_path / "joined", [(old, np.arange(5)), (other, np.arange(5))])
    with pytest.raises(InputError, match="occurs twice"):
        linking.join(tmp_path / "joined", [(old, np.array([0, 0]))])
    assert not (tmp_path / "joined").exists()


def test_what_is_compared(folder):
    source, made = feature_set.how_made(feature_set.read(folder))
    assert source == str(folder) and set(feature_set.SAME_SPACE) <= set(made)
    assert local_sets.LOCAL_META["kind"] == made["kind"] and not made["bits"]
