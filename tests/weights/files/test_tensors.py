"""State dicts are read bit for bit in every format, and lazily."""

import io
import json
import pathlib
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from dolg_tf.stage.config import InputError
from dolg_tf.weights.files.tensors import check_suffix, open_tensors, write_tensors
from dolg_tf.weights.files.torch_pickle import read_pickle

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "torch_files"
SUFFIXES = (".pyth", ".pth", ".pt", ".npz", ".safetensors")


def same(array, expected):
    """Whether two arrays agree in shape, dtype and every bit."""
    return (
        isinstance(array, np.ndarray)
        and (array.shape, array.dtype) == (expected.shape, expected.dtype)
        and array.tobytes() == expected.tobytes()
    )


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "layer.weight": rng.standard_normal((3, 4, 5)).astype(np.float32),
        "layer.bias": rng.standard_normal(3),
        "half": rng.standard_normal(3).astype(np.float16),
        "num_batches_tracked": np.array(2**40),
        "p": np.array(3.0, np.float32),
        "bytes": np.arange(3, dtype=np.uint8),
        "small": np.arange(-3, 3, dtype=np.int8),
        "short": np.arange(3, dtype=np.int16),
        "int": np.arange(3, dtype=np.int32),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
        "not_finite": np.array([np.nan, np.inf, -0.0], np.float32),
        "file": np.ones((1, 2), np.float32),  # a name that numpy.savez cannot take
    }


@pytest.fixture
def repacked(tmp_path):
    """Function that writes a PyTorch archive again with other entries."""

    def make(change, compression=zipfile.ZIP_STORED, source="tensors.zip.pth"):
        with zipfile.ZipFile(GOLDEN / source) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(tmp_path / "repacked.pth", "w", compression) as archive:
            for name, data in change(entries).items():
                archive.writestr(name, data)
        return tmp_path / "repacked.pth"

    return make


# --- reading -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy"])
@pytest.mark.parametrize("name", ["tensors", "checkpoint"])
def test_what_pytorch_saved_is_read_bit_for_bit(name, kind):
    file = open_tensors(GOLDEN / f"{name}.{kind}.pth")
    with np.load(GOLDEN / f"{name}.npz") as expected:
        assert file.format == f"PyTorch ({kind})"
        assert list(file.tensors) == list(expected)
        for key, tensor in file.tensors.items():
            array = tensor.read()
            assert same(array, expected[key]) and array.shape == tensor.shape
            assert array.flags.c_contiguous
            named = "bfloat16" if key == "bfloat16" else expected[key].dtype.name
            assert tensor.dtype == named


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_what_lies_beside_the_weights_is_named(kind):
    file = open_tensors(GOLDEN / f"checkpoint.{kind}.pth")
    assert file.beside == (
        *("epoch", "optimizer_state", "adam", "schedule", "cfg", "best", "history"),
        *("random_state", "kinds"),
    )
    assert open_tensors(GOLDEN / f"tensors.{kind}.pth").beside == ()


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_the_state_dict_is_found_under_other_names(repacked, key):
    def rename(entries):
        old, new = (struct.pack("<I", len(k)) + k.encode() for k in ("model_state", key))
        name = "checkpoint.zip/data.pkl"
        return entries | {name: entries[name].replace(b"X" + old, b"X" + new)}

    path = repacked(rename, source="checkpoint.zip.pth")
    with np.load(GOLDEN / "checkpoint.npz") as expected:
        assert list(open_tensors(path).tensors) == list(expected)


def test_deflated_and_moved_archives_are_read(repacked):
    def move(entries):
        return {name.partition("/")[2]: data for name, data in entries.items()}

    for path in (repacked(dict, zipfile.ZIP_DEFLATED), repacked(move)):
        tensors = open_tensors(path).tensors
        with np.load(GOLDEN / "tensors.npz") as expected:
            assert all(same(tensors[key].read(), expected[key]) for key in expected)


def test_big_endian_files_are_read(repacked, tmp_path, arrays):
    """Every storage of the archive byte-swapped, as a big-endian machine writes it."""
    little = open_tensors(GOLDEN / "tensors.zip.pth").tensors

    def turn(entries):
        sizes = [4, 2, 2, 8, 1, 2, 4, 8, 1, 1, 4, 8, 4, 4, 4, 4, 4]
        turned = {"tensors.zip/byteorder": b"big"}
        for number, size in enumerate(sizes):
            name = f"tensors.zip/data/{number}"
            raw = np.frombuffer(entries[name], np.uint8)
            turned[name] = raw.reshape(-1, size)[:, ::-1].tobytes()
        assert {name for name in entries if "/data/" in name} == {*list(turned)[1:]}
        return entries | turned

    for key, tensor in open_tensors(repacked(turn)).tensors.items():
        assert same(tensor.read(), little[key].read()), key
    big = {key: array.astype(array.dtype.newbyteorder(">")) for key, array in arrays.items()}
    del big["file"]
    np.savez(tmp_path / "big.npz", **big)
    tensors = open_tensors(tmp_path / "big.npz").tensors
    assert all(same(tensors[key].read(), arrays[key]) for key in big)


def test_numpy_arrays_by_columns_and_deflated_are_read(tmp_path):
    array = np.arange(24.0).reshape(2, 3, 4)
    np.savez_compressed(tmp_path / "a.npz", columns=np.asfortranarray(array), rows=array)
    file = open_tensors(tmp_path / "a.npz")
    assert file.format == "NumPy" and list(file.tensors) == ["columns", "rows"]
    assert same(file.tensors["columns"].read(), array)


def test_safetensors_bfloat16_is_read_exactly(tmp_path):
    exact = np.array([[1.0, -2.5], [3.140625, np.inf]], np.float32)
    raw = (exact.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + raw)
    file = open_tensors(tmp_path / "a")  # told by content, not by suffix
    assert (file.format, file.beside) == ("safetensors", ("__metadata__",))
    assert file.tensors["w"].dtype == "bfloat16" and same(file.tensors["w"].read(), exact)


def test_safetensors_own_writer_is_read(tmp_path, arrays):
    save_file(arrays, tmp_path / "a.safetensors")
    tensors = open_tensors(tmp_path / "a.safetensors").tensors
    assert set(tensors) == set(arrays)
    assert all(same(tensors[key].read(), arrays[key]) for key in arrays)


@pytest.mark.parametrize("suffix", [".pyth", ".npz", ".safetensors"])
def test_only_what_is_asked_for_is_read(tmp_path, suffix):
    large = {f"w{i}": np.full(1 << 21, i, np.float32) for i in range(4)}
    write_tensors(tmp_path / f"a{suffix}", large)
    open_tensors(tmp_path / f"a{suffix}")  # what is imported now does not count
    tracemalloc.start()
    file = open_tensors(tmp_path / f"a{suffix}")
    opened = tracemalloc.get_traced_memory()[1]
    array = file.tensors["w2"].read()
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 5 << 20 and read < 1.5 * array.nbytes
    assert same(array, large["w2"])


# --- writing -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_bit_for_bit_and_always_the_same(tmp_path, arrays, suffix):
    path = tmp_path / f"a{suffix}"
    odd = {"turned": np.arange(6.0).reshape(2, 3).T, "big": np.arange(3, dtype=">f4")}
    write_tensors(path, arrays | odd)
    tensors = open_tensors(path).tensors
    assert set(tensors) == {*arrays, *odd}
    assert all(same(tensors[key].read(), arrays[key]) for key in arrays)
    assert same(tensors["turned"].read(), np.ascontiguousarray(odd["turned"]))
    assert same(tensors["big"].read(), np.arange(3, dtype=np.float32))
    if suffix != ".safetensors":  # which sorts them
        assert list(tensors) == [*arrays, *odd]
    before = path.read_bytes()
    write_tensors(path, arrays | odd)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_pytorch_file_is_as_torch_load_wants_it(tmp_path, arrays):
    write_tensors(tmp_path / "a.pyth", arrays)
    raw = (tmp_path / "a.pyth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pyth") as archive:
        assert archive.testzip() is None and archive.read("archive/byteorder") == b"little"
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            lengths = struct.unpack_from("<HH", raw, entry.header_offset + 26)
            assert (entry.header_offset + 30 + sum(lengths)) % 64 == 0  # to be mapped into memory
        names = archive.namelist()
    assert names[:2] == ["archive/data.pkl", "archive/byteorder"]
    assert {f"archive/data/{i}" for i in range(len(arrays))} <= set(names)


def test_neither_reading_nor_writing_needs_pytorch(tmp_path, arrays):
    write_tensors(tmp_path / "a.pyth", arrays)
    open_tensors(tmp_path / "a.pyth")
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a.h5", np.zeros(1), r"a\.h5 must end in one of \.pyth, "),
        ("a.npz", np.array(["x"]), "w has dtype <U1, which"),
        ("a.pyth", np.zeros(1, np.complex64), "w has dtype complex64, which"),
        ("a.safetensors", np.array([None]), "w has dtype object, which"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, array, message):
    with pytest.raises(InputError, match=message):
        write_tensors(tmp_path / name, {"w": array})
    assert not list(tmp_path.iterdir())


def test_a_written_checkpoint_has_its_state_dict_where_the_authors_code_looks(tmp_path):
    write_tensors(tmp_path / "a.pyth", {"w": np.ones(3, np.float32)})
    with zipfile.ZipFile(tmp_path / "a.pyth") as archive:
        top, _ = read_pickle(io.BytesIO(archive.read("archive/data.pkl")))
    assert list(top) == ["model_state"] and list(top["model_state"]) == ["w"]


@pytest.mark.parametrize("length", [640, 896, 1152, 1408, 648])
def test_a_header_whose_length_looks_like_a_pickle_is_safetensors_all_the_same(tmp_path, length):
    def write(padding):
        metadata = {"note": "x" * padding}
        save_file({"w": np.ones(3, np.float32)}, tmp_path / "a.safetensors", metadata)
        return struct.unpack("<Q", (tmp_path / "a.safetensors").read_bytes()[:8])[0]

    assert write(length - write(0)) == length
    assert list(open_tensors(tmp_path / "a.safetensors").tensors) == ["w"]


def test_a_suffix_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"back\.bin must end in one of \.pyth"):
        check_suffix(tmp_path / "back.bin")
