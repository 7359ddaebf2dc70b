"""DELF's `.delg_global` files: byte for byte, hostile ones, and whole folders."""

import os
import struct

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dolg_tf.retrieval import datum_io, descriptors
from dolg_tf.retrieval.datum_io import DatumConfig, convert
from dolg_tf.retrieval.descriptors import DescriptorSet
from dolg_tf.stage.config import InputError


def varint(value):
    found = b""
    while value > 127:
        found, value = found + bytes([value % 128 + 128]), value // 128
    return found + bytes([value])


def length_delimited(number, data):
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def datum_by_hand(array):
    """What protoc's code for DELF's datum.proto writes: packed repeated fields, in their order."""
    dims = b"".join(varint(dim) for dim in array.shape)
    values = struct.pack(f"<{array.size}f", *array.ravel())
    shape = length_delimited(1, length_delimited(1, dims) if dims else b"")
    floats = length_delimited(2, length_delimited(1, values) if values else b"")
    return shape + floats


def test_bytes_of_a_small_example():
    # The example in datum.proto begins so: shape {dim: 3 dim: 2} float_list {value: 1.1 ...}.
    array = np.array([[1.5, -2.0], [0.0, 1.0], [0.5, 4.0]])
    data = bytes.fromhex(
        "0a04 0a020302 121a 0a18 0000c03f 000000c0 00000000 0000803f 0000003f 00008040"
    )
    assert datum_io.encode(array) == data
    np.testing.assert_array_equal(datum_io.decode(data), array)


@pytest.mark.parametrize("shape", [(), (1,), (512,), (3, 2), (2, 3, 200), (0,), (4, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_bytes_and_back(shape, order):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32).copy(order)
    data = datum_io.encode(array)
    assert data == datum_by_hand(array)
    found = datum_io.decode(data)
    assert found.dtype == np.float32 and found.shape == shape
    np.testing.assert_array_equal(found, array)


def test_other_ways_to_write_the_same():
    # Fields in another order, one field in two parts, unpacked values, a field of a later version.
    one = length_delimited(2, length_delimited(1, struct.pack("<f", 1.0)))
    two = length_delimited(2, b"\x0d" + struct.pack("<f", 2.0))
    shape = length_delimited(1, b"\x08\x02")
    later = length_delimited(9, b"later")
    np.testing.assert_array_equal(datum_io.decode(one + later + shape + two), [1.0, 2.0])


ROW = datum_by_hand(np.arange(6, dtype=np.float32))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 values do not make the shape"),
        (b"<html>404</html>", "cut short, or not a DatumProto"),
        (b"\x12\xff\xff\xff\xff\x0f", "cut short, or not a DatumProto"),
        (b"\x0a\x02\x0a\xff" + ROW, "cut short, or not a DatumProto"),
        (ROW[5:], r"6 values do not make the shape \(\)"),
        (datum_by_hand(np.array([1, np.nan])), "not finite"),
        (datum_by_hand(np.array([-np.inf])), "not finite"),
        (length_delimited(1, length_delimited(1, varint(2**63 - 1) * 3)) + ROW[5:], "do not make"),
        (length_delimited(1, length_delimited(1, varint(2**64 - 6))) + ROW[5:], r"\(-6,\)"),
        (length_delimited(1, length_delimited(1, b"\x00" + varint(2**62))), "no array has"),
        (
            length_delimited(1, b"\x0a\x14" + b"".join(map(varint, (2**64 - 2, 2**64 - 3))))
            + ROW[5:],
            "no array has",
        ),
        (length_delimited(1, length_delimited(1, b"\x01" * 500 + b"\x06")) + ROW[5:], "no array"),
    ],
)
def test_hostile_bytes(data, message):
    with pytest.raises(InputError, match=rf"x.delg_global: .*{message}"):
        datum_io.decode(data, "x.delg_global")


def test_every_cut_is_found():
    for length in range(len(ROW)):
        with pytest.raises(InputError, match="cut short"):
            datum_io.decode(ROW[:length])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(st.binary(max_size=40), st.integers(0, len(ROW)), st.integers(0, len(ROW)))
def test_any_damage_is_an_input_error_or_an_array(data, start, end):
    try:
        found = datum_io.decode(ROW[:start] + data + ROW[end:])
    except InputError:
        return
    assert found.dtype == np.float32 and np.isfinite(found).all()


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(max_side=5),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_any_array_there_and_back(array):
    data = datum_io.encode(array)
    assert data == datum_by_hand(array)
    np.testing.assert_array_equal(datum_io.decode(data), array)


def test_files(tmp_path):
    path = tmp_path / "a.b.delg_global"
    path.write_bytes(datum_by_hand(np.array([1, 2])))
    np.testing.assert_array_equal(datum_io.read(path), [1, 2])
    for value in (np.nan, 1e39):
        with np.errstate(over="ignore"), pytest.raises(InputError, match="not finite"):
            datum_io.encode(np.array([value]))
    with pytest.raises(InputError, match="none: no such file"):
        datum_io.read(tmp_path / "none")


# --- whole folders -------------------------------------------------------------------

META = {
    "image_root": "photos",
    "model_hash": "0123",
    "scales": [0.5, 1.0],
    "crop": True,
    "max_side": 0,
    "whitening": None,
    "bad": [{"id": "e", "reason": "gone"}],
}
IDS = ("z/b", "a.c", "a", "z/a")


@pytest.fixture
def written(tmp_path):
    """A descriptor set; its ids are not sorted."""
    rows = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    descriptors.write(tmp_path / "set", DescriptorSet(IDS, rows, META))
    return tmp_path / "set", rows


def run(source, output, **options):
    convert(DatumConfig(input=str(source), output=str(output), **options))


@pytest.mark.parametrize("name", ["a.delg_global", "dolg_meta.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused(written, tmp_path, name):
    """Nobody writes to it: reading it would never end."""
    run(written[0], tmp_path / "folder")
    (tmp_path / "folder" / name).unlink()
    os.mkfifo(tmp_path / "folder" / name)
    with pytest.raises(InputError, match=f"{name}: not a file"):
        run(tmp_path / "folder", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_pipe_in_the_place_of_rows_is_refused(tmp_path):
    os.mkfifo(tmp_path / "rows.npy")
    with pytest.raises(InputError, match=r"rows\.npy: not a file"):
        run(tmp_path / "rows.npy", tmp_path / "folder")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_set_to_folder_and_back(written, tmp_path, dtype):
    path, rows = written
    rows = rows.astype(dtype)
    descriptors.write(path, DescriptorSet(IDS, rows, META | {"dtype": dtype}))
    run(path, tmp_path / "folder")
    for id_, row in zip(IDS, rows, strict=True):
        # As DELF's perform_retrieval.py opens it.
        assert (tmp_path / "folder" / f"{id_}.delg_global").read_bytes() == datum_by_hand(row)
    run(tmp_path / "folder", tmp_path / "again")
    again, before = descriptors.read(tmp_path / "again"), descriptors.read(path)
    assert again.ids == IDS and again.meta == before.meta
    np.testing.assert_array_equal(again.descriptors, rows)


def test_folder_of_delf_itself(written, tmp_path):
    path, rows = written
    run(path, tmp_path / "folder")
    (tmp_path / "folder/dolg_meta.json").unlink()
    with pytest.raises(InputError, match="which network made it; give --model_hash"):
        run(tmp_path / "folder", tmp_path / "again")
    run(tmp_path / "folder", tmp_path / "again", model_hash="delg-r50")
    found = descriptors.read(tmp_path / "again")
    assert found.ids == tuple(sorted(IDS)) and found.meta["model_hash"] == "delg-r50"
    assert found.meta["image_root"] == str((tmp_path / "folder").resolve())
    np.testing.assert_array_equal(found.select(IDS), rows)


def test_outputs_that_stand(written, tmp_path):
    path, _ = written
    run(path, tmp_path / "folder")
    with pytest.raises(InputError, match="folder exists; give --overwrite"):
        run(path, tmp_path / "folder")
    (tmp_path / "folder/old.delg_global").write_bytes(ROW)
    run(path, tmp_path / "folder", overwrite=True)
    assert not (tmp_path / "folder/old.delg_global").exists()
    with pytest.raises(InputError, match="directory of something else"):
        run(path, tmp_path, overwrite=True)
    with pytest.raises(InputError, match="directory of something else"):
        run(tmp_path / "folder", tmp_path / "folder", overwrite=True)
    run(tmp_path / "folder", path, overwrite=True)
    for shard in path.glob("descriptors-*.npy"):  # as an index, which has a meta.json too
        shard.rename(path / "index.faiss")
    with pytest.raises(InputError, match="set is not a descriptor set, and --overwrite"):
        run(tmp_path / "folder", path, overwrite=True)
    assert (path / "index.faiss").exists()


def test_folder_that_lost_a_file_or_has_one_more(written, tmp_path):
    path, _ = written
    folder = tmp_path / "folder"
    run(path, folder)
    (folder / "z/a.delg_global").rename(folder / "b.delg_global")
    with pytest.raises(InputError, match=r"4 files for 4 ids .*first odd one is 'b'"):
        run(folder, tmp_path / "again")
    (folder / "b.delg_global").unlink()
    with pytest.raises(InputError, match=r"3 files for 4 ids .*first odd one is 'z/a'"):
        run(folder, tmp_path / "again")
    with pytest.raises(InputError, match=r"--model_hash=other contradicts .*'0123'"):
        run(folder, tmp_path / "again", model_hash="other")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ROW, r"a.delg_global: shape \(6,\); .* as long as the first of the folder \(8\)"),
        (ROW[:-1], "a.delg_global: cut short"),
        (datum_by_hand(np.ones((1, 8), np.float32)), r"a.delg_global: shape \(1, 8\)"),
    ],
)
def test_damaged_file_is_named(written, tmp_path, data, message):
    path, _ = written
    run(path, tmp_path / "folder")
    (tmp_path / "folder/a.delg_global").write_bytes(data)
    with pytest.raises(InputError, match=message):
        run(tmp_path / "folder", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("id_", ["/etc/x", "../x", "a/../../x", "a//b", "./b"])
def test_ids_that_are_no_paths(tmp_path, id_):
    descriptors.write(tmp_path / "set", DescriptorSet((id_,), np.eye(1, 4), META))
    with pytest.raises(InputError, match="must be a path relative to a folder"):
        run(tmp_path / "set", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_inputs_that_are_neither(tmp_path):
    with pytest.raises(InputError, match=r"--input=.*none: no such folder"):
        run(tmp_path / "none", tmp_path / "output")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"neither a descriptor set .* nor a folder with files"):
        run(tmp_path / "empty", tmp_path / "output")
    np.save(tmp_path / "rows.npy", np.eye(2, 4, dtype=np.float32))
    with pytest.raises(InputError, match="has no ids to name the files by"):
        run(tmp_path / "rows.npy", tmp_path / "output")
