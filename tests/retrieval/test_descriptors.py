import errno
import json
import os
import pickle
from unittest import mock

import numpy as np
import pytest
import sealed
from set_meta import META

from dolg_tf.retrieval import descriptors, norms
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.retrieval.rows import Rows, blocks
from dolg_tf.stage.config import InputError

IDS = ("a/1", "a/2", "b/é 3", "b/4", "c/5")
ROWS = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)


@pytest.fixture
def folder(tmp_path):
    descriptors.write(tmp_path / "set", DescriptorSet(IDS, ROWS, META))
    return tmp_path / "set"


@pytest.mark.parametrize("shard_rows", [2, 5, 100])
def test_round_trip(tmp_path, shard_rows):
    descriptors.write(tmp_path / "set", DescriptorSet(IDS, ROWS, META), shard_rows)
    found = descriptors.read(tmp_path / "set")
    assert found.ids == IDS
    np.testing.assert_array_equal(found.descriptors, ROWS)
    assert found.meta == {"format_version": 1, "dtype": "float32", "upright": False, **META}
    shards = sorted(path.name for path in (tmp_path / "set").glob("*.npy"))
    count = -(-5 // shard_rows)
    assert shards == [f"descriptors-{i:05d}-of-{count:05d}.npy" for i in range(count)]


def test_rows_stay_on_disk(folder):
    found = descriptors.read(folder).descriptors
    assert all(isinstance(array, np.memmap) for array in found.arrays)


def test_select_joins_by_id(folder):
    found = descriptors.read(folder)
    np.testing.assert_array_equal(found.select(["c/5", "a/1"]), ROWS[[4, 0]])
    assert found.select(IDS) is found.descriptors


def test_select_tells_what_is_missing(folder):
    with pytest.raises(InputError, match=r"lacks 2 of 3 photos, the first is 'x'"):
        descriptors.read(folder).select(["a/1", "x", "y"])


def test_bare_npy_is_joined_by_row(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    found = descriptors.read(tmp_path / "rows.npy")
    assert found.ids is None
    np.testing.assert_array_equal(found.select(["p", "q"]), ROWS[:2])
    with pytest.raises(InputError, match="5 rows for 6 photos"):
        found.select(list("abcdef"))


@pytest.mark.parametrize(
    ("ids", "rows", "told"),
    [
        (IDS[:4], ROWS, "5 descriptors need as many ids"),
        (("a", "b", "c", "d", "a"), ROWS, "'a' occurs twice"),
        (("a", "b\nc", "d", "e", "f"), ROWS, "is empty or has"),
        (("a", "b", "c\udcff", "d", "e"), ROWS, r"'c\\udcff' cannot be encoded as UTF-8"),
        (IDS, np.where(np.arange(5)[:, None] == 3, np.nan, ROWS), "row 3 is not finite"),
        (IDS, ROWS[:, 0], "float32"),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, ids, rows, told):
    with pytest.raises(InputError, match=told):
        descriptors.write(tmp_path / "set", DescriptorSet(ids, rows, META))
    assert not list(tmp_path.iterdir())


def test_rows_are_counted_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(norms, "_BLOCK", 2)
    rows = ROWS.copy()
    rows[4, 7] = np.inf
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError, match="row 4 is not finite"):
        descriptors.read(tmp_path / "rows.npy")


def test_write_wants_whole_meta(tmp_path):
    with pytest.raises(InputError, match="no 'model_hash'"):
        meta = {key: value for key, value in META.items() if key != "model_hash"}
        descriptors.write(tmp_path / "set", DescriptorSet(IDS, ROWS, meta))


def _truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


SHARD = "descriptors-00000-of-00001.npy"
DAMAGE = {
    "fewer ids": (lambda f: (f / "ids.txt").write_text("a\nb\n"), "5 descriptors for 2 ids"),
    "repeated id": (lambda f: (f / "ids.txt").write_text("a\na\nb\nc\nd\n"), "occurs twice"),
    "no ids": (lambda f: (f / "ids.txt").unlink(), "ids.txt: missing"),
    "no shard": (lambda f: (f / SHARD).unlink(), "0 of 0 descriptor shards"),
    "missing shard": (
        lambda f: (f / SHARD).rename(f / "descriptors-00001-of-00002.npy"),
        "1 of 2 descriptor shards",
    ),
    "half a shard": (lambda f: _truncate(f / SHARD, 150), "not a complete .npy"),
    "empty shard": (lambda f: _truncate(f / SHARD, 0), "not a complete .npy"),
    "a header that is cut": (
        lambda f: (f / SHARD).write_bytes(b"\x93NUMPY\x01\x00\x0e\x00{'shape': (2,\n "),
        "not a complete .npy",
    ),
    "pickled shard": (
        lambda f: np.save(f / SHARD, np.array([{}, 1], object), allow_pickle=True),
        "not a complete .npy",
    ),
    "a pickle": (lambda f: (f / SHARD).write_bytes(pickle.dumps([1, 2])), "not a complete .npy"),
    "integers": (lambda f: np.save(f / SHARD, np.zeros((5, 8), int)), "int64"),
    "infinity": (lambda f: np.save(f / SHARD, np.full((5, 8), np.inf)), "row 0 is not finite"),
    "other version": (
        lambda f: sealed.change(f / "meta.json", format_version=3),
        "format_version is 3",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_read_refuses_damage(folder, damage):
    harm, told = DAMAGE[damage]
    sealed.forget(folder / "meta.json")  # as an older release wrote it
    harm(folder)
    with pytest.raises(InputError, match=told):
        descriptors.read(folder)


def test_what_cannot_be_opened_is_not_called_damaged(folder, monkeypatch):
    error = OSError(errno.EMFILE, "Too many open files")
    monkeypatch.setattr(np, "load", mock.Mock(side_effect=error))
    with pytest.raises(InputError, match=r"00001\.npy cannot be read \(Too many open files\)"):
        descriptors.read(folder)


def test_read_of_nothing(tmp_path):
    with pytest.raises(InputError, match="no such descriptor set"):
        descriptors.read(tmp_path / "none")
    with pytest.raises(InputError, match="no such file"):
        descriptors.read(tmp_path / "none.npy")


def test_finished(folder, tmp_path):
    assert descriptors.finished(tmp_path / "other", META) is None
    assert descriptors.finished(folder, {"model_hash": "abc", "crop": False}).ids == IDS
    with pytest.raises(InputError, match="model_hash='abc', not 'xyz'; delete it or choose"):
        descriptors.finished(folder, {"model_hash": "xyz"})
    both = r"upright=False, not True and with max_side=0, .*, or give --noupright --max_side=0$"
    with pytest.raises(InputError, match=both):
        descriptors.finished(folder, {"upright": True, "max_side": 1024})
    with pytest.raises(InputError, match=r"made of other photos and with .* another --output$"):
        descriptors.finished(folder, {"images": "f", "upright": True})
    (tmp_path / "full").mkdir()
    assert descriptors.finished(tmp_path / "full", META) is None
    (tmp_path / "full" / "other.txt").write_text("x")
    with pytest.raises(InputError, match="is not a descriptor set"):
        descriptors.finished(tmp_path / "full", META)


# --- rows of several arrays -----------------------------------------------------------

RNG = np.random.default_rng(0)
COUNTS = (2, 4, 0, 1)
PARTS = [RNG.standard_normal((n, 3)).astype(np.float16 if n == 4 else "f4") for n in COUNTS]
WHOLE = np.concatenate(PARTS, dtype=np.float32)


@pytest.fixture(params=["arrays", "nested", "one array"])
def rows(request):
    if request.param == "one array":
        return Rows([WHOLE])
    return Rows(PARTS) if request.param == "arrays" else Rows([Rows(PARTS[:2]), *PARTS[2:]])


def test_slices_rows_and_all_are_float32(rows):
    assert rows.shape == (7, 3) and len(rows) == 7
    for start in range(8):
        for stop in range(8):
            np.testing.assert_array_equal(rows[start:stop], WHOLE[start:stop])
    for key in ([], [3], [6, 0, 0, 5], [[1, 2], [6, 3]]):
        np.testing.assert_array_equal(rows[np.array(key, int)], WHOLE[np.array(key, int)])
    np.testing.assert_array_equal(np.asarray(rows), WHOLE)
    assert rows[2:5].dtype == rows[[3]].dtype == np.asarray(rows).dtype == np.float32


def test_blocks_cover_each_row_once(rows):
    for size in (1, 3, 100):
        for whole in (rows, WHOLE):
            found = list(blocks(whole, size))
            assert [start for start, _ in found] == list(range(0, 7, size))
            np.testing.assert_array_equal(np.concatenate([part for _, part in found]), WHOLE)


def test_what_is_not_there_is_refused(rows):
    for key in ([7], [-1], slice(0, 4, 2)):
        with pytest.raises(IndexError):
            rows[key]
    with pytest.raises(ValueError, match="different shapes"):
        Rows([WHOLE, WHOLE[:, :2]])


# --- checksums -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ids.txt", SHARD, "meta.json"])
def test_each_bit_counts(folder, name):
    """In every eighth byte; only the blanks between the values of meta.json mean nothing."""
    file = folder / name
    whole = file.read_bytes()
    for at in range(0, len(whole), 8):
        bit = 1 << at // 8 % 8
        if name == "meta.json" and not 32 < whole[at] ^ bit < 127:
            continue
        file.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        if name == "meta.json" and file.read_text().split() == whole.decode().split():
            continue
        with pytest.raises(InputError, match=rf"{name}.*"):
            descriptors.read(folder)
    file.write_bytes(whole)
    assert descriptors.read(folder).ids == IDS


def test_damage_is_told_with_the_remedy(folder):
    data = bytearray((folder / SHARD).read_bytes())
    data[-2] ^= 1
    (folder / SHARD).write_bytes(data)
    with pytest.raises(InputError, match=rf"{SHARD}: damaged, .*checksum .*extract the set again"):
        descriptors.read(folder)
    sealed.forget(folder / "meta.json")
    descriptors.read(folder)  # of an older release: nobody can tell


def test_an_edit_is_told_from_damage(folder):
    about = json.loads((folder / "meta.json").read_text()) | {"image_root": "moved"}
    (folder / "meta.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match="or delete its key 'crc32c' to keep an edit"):
        descriptors.read(folder)
    sealed.forget(folder / "meta.json")
    assert descriptors.read(folder).meta["image_root"] == "moved"


# --- metadata ------------------------------------------------------------------------


@pytest.mark.parametrize("key", META)
@pytest.mark.parametrize("value", [float("nan"), -1, 2**70, [[[]]], {"a": None}, "x", True])
def test_metadata_of_another_kind_are_named(folder, key, value):
    fits = {"image_root": str, "model_hash": str, "crop": bool, "whitening": (str, dict)}
    sealed.forget(folder / "meta.json")
    sealed.change(folder / "meta.json", **{key: value})
    if isinstance(value, fits.get(key, ())):
        descriptors.read(folder)
        return
    with pytest.raises(InputError, match=rf"meta\.json: {key} is .*; extract the set again"):
        descriptors.read(folder)


# --- norms ---------------------------------------------------------------------------


def test_rows_of_other_norms_are_refused_or_divided(tmp_path, folder):
    lengths = np.float32([[1], [0.1], [1], [30], [1]])
    np.save(tmp_path / "rows.npy", ROWS * lengths)
    told = r"rows\.npy: 2 of 5 rows .* \(norms from 0.1 to 30, the first is row 1\).*--normalize"
    with pytest.raises(InputError, match=told):
        descriptors.read(tmp_path / "rows.npy")
    found = descriptors.read(tmp_path / "rows.npy", normalize=True).descriptors
    np.testing.assert_allclose(found, ROWS, atol=1e-7)
    np.testing.assert_allclose(found[1:4], ROWS[1:4], atol=1e-7)
    np.testing.assert_allclose(found[[3, 0]], ROWS[[3, 0]], atol=1e-7)
    with pytest.raises(InputError, match="2 of 5 rows"):
        descriptors.write(tmp_path / "other", DescriptorSet(IDS, ROWS * lengths, META))
    descriptors.write(
        tmp_path / "other", DescriptorSet(IDS, ROWS * lengths, META), 2, normalize=True
    )
    np.testing.assert_allclose(descriptors.read(tmp_path / "other").descriptors, ROWS, atol=1e-7)


@pytest.mark.parametrize("length", [1e-30, 1e30, 3e38])
def test_extreme_lengths_are_divided(tmp_path, length):
    rows = np.eye(3, 8, dtype=np.float32) * np.float32(length)
    np.save(tmp_path / "rows.npy", rows)
    found = descriptors.read(tmp_path / "rows.npy", normalize=True).descriptors
    np.testing.assert_allclose(found, np.eye(3, 8), atol=1e-6)


def test_rows_of_zeros_are_named(tmp_path, folder):
    rows = ROWS.copy()
    rows[3] = 0
    np.save(tmp_path / "rows.npy", rows)
    with pytest.raises(InputError, match=r"1 of 5 .* \(norms from 0 to 1, the first is row 3\)"):
        descriptors.read(tmp_path / "rows.npy")
    with pytest.raises(InputError, match=r"1 of 5 rows .* zero, the first is row 3.*leave .* out"):
        descriptors.read(tmp_path / "rows.npy", normalize=True)
    sealed.forget(folder / "meta.json")
    np.save(folder / SHARD, rows)
    with pytest.raises(InputError, match=r"the first is row 3, 'b/4'\)"):
        descriptors.read(folder)


@pytest.mark.parametrize("name", ["ids.txt", "meta.json", "descriptors-00000-of-00001.npy"])
def test_a_pipe_or_a_link_to_itself_in_the_place_of_a_file(folder, name):
    """Nobody writes to the pipe: reading it would never end."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for check in (False, True):
        with pytest.raises(InputError, match=f"{name}: not a file"):
            _read(folder, check)
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    for check in (False, True):
        with pytest.raises((InputError, OSError), match=name):
            _read(folder, check)


def _read(folder, check):
    if not check:
        return descriptors.read(folder)
    from dolg_tf.pipelines.checks import check_descriptors

    return check_descriptors(folder)
