"""Whatever a file of weights holds: one sentence, nothing run, little memory."""

import json
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
from peak_memory import peak_below

from dolg_tf.stage.config import InputError
from dolg_tf.weights.files.tensors import open_tensors, write_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_files"

# --- files of another kind -----------------------------------------------------------

KINDS = {
    "empty": (b"", "is empty"),
    "text": (b"epoch 1: loss 0.1\n" * 9, "is a text file"),
    "json": (b'{"epoch": {"loss": 0.1}}', "is a text file"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*pull"),
    "html": (b"\n<!DOCTYPE html><title>Sign in</title>", "web page"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "gzip: unpack it first"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "tar": (bytes(257) + b"ustar" + bytes(999), "tar archive: PyTorch's format before 2017"),
    "noise": (bytes(range(255, 0, -1)) * 9, "is not a PyTorch, .npz or .safetensors file"),
    "pickle": (pickle.dumps({"w": [1.0]}), "a Python pickle that torch.save did not write"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_another_kind_are_told(tmp_path, kind, refused):
    data, message = KINDS[kind]
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", message)


def test_folders_missing_files_and_single_arrays_are_told(tmp_path, refused):
    refused(tmp_path, "is a folder")
    refused(tmp_path / "none.pth", "no such file")
    refused(tmp_path / "none.pth" / "none.pth", "no such file")
    np.save(tmp_path / "a.npy", np.zeros(3))
    refused(tmp_path / "a.npy", "is a single array.*savez")


# --- damage --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of one sound file of each format."""
    folder = tmp_path_factory.mktemp("good")
    with np.load(GOLDEN / "tensors.npz") as arrays:
        write_tensors(folder / "a.safetensors", arrays)
    return {
        "zip": (GOLDEN / "tensors.zip.pth").read_bytes(),
        "legacy": (GOLDEN / "tensors.legacy.pth").read_bytes(),
        "NumPy": (GOLDEN / "tensors.npz").read_bytes(),
        "safetensors": (folder / "a.safetensors").read_bytes(),
    }


FORMATS = ("zip", "legacy", "NumPy", "safetensors")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_short_is_refused(tmp_path, good, kind):
    path, data = tmp_path / "a.pth", good[kind]
    for size in np.linspace(0, len(data) - 1, 80).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match=r"a\.pth"):
            open_tensors(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_flipped_bits_are_refused_or_harmless(tmp_path, good, kind):
    """Nothing but `InputError` comes out, and what is read has the shape that was told."""
    path, rng, refusals = tmp_path / "a.pth", np.random.default_rng(0), 0
    with peak_below(32):
        for _ in range(150):
            data = bytearray(good[kind])
            for position in rng.integers(len(data), size=rng.integers(1, 4)):
                data[position] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            try:
                for tensor in open_tensors(path).tensors.values():
                    array = tensor.read()
                    assert (array.shape, array.size) == (tensor.shape, np.prod(tensor.shape))
            except InputError as error:
                assert str(path) in str(error)
                refusals += 1
    assert refusals > 10


def test_a_flipped_bit_of_a_weight_is_noticed_by_the_checksum(tmp_path, good):
    weight = np.load(GOLDEN / "tensors.npz")["float64"].tobytes()
    for kind in ("zip", "NumPy"):
        data = bytearray(good[kind])
        data[good[kind].index(weight) + 5] ^= 1
        (tmp_path / "a.pth").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.pth is damaged .*CRC"):
            open_tensors(tmp_path / "a.pth").tensors["float64"].read()


def test_a_file_that_shrinks_after_it_was_opened_is_refused(tmp_path, good):
    for kind in FORMATS:
        path = tmp_path / "a.pth"
        path.write_bytes(good[kind])
        tensors = open_tensors(path).tensors
        path.write_bytes(b"")
        with pytest.raises(InputError, match=r"fewer bytes|cut short|damaged"):
            tensors["float64"].read()


# --- NumPy ---------------------------------------------------------------------------


def npy(header, data=b""):
    header = header.encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + data


def described(descr="'<f4'", shape="(2,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


NPY = {
    "objects": (npy(described("'|O'"), pickle.dumps([1])), "pickled Python objects"),
    "a pickle": (pickle.dumps({"w": 1}), "no valid .npy header"),
    "text": (npy(described("'<U1'"), bytes(8)), "dtype 'str32', which weights do not have"),
    "records": (npy(described("[('a', '<f4')]"), bytes(8)), "which weights do not have"),
    "times": (npy(described("'<M8[s]'"), bytes(16)), "which weights do not have"),
    "complex": (npy(described("'<c8'"), bytes(16)), "'complex64', which weights do not have"),
    "negative shape": (npy(described(shape="(-2,)"), bytes(8)), "array 'w'|tensor 'w'"),
    "huge shape": (npy(described(shape=f"({2**40},)"), bytes(8)), "cannot have 8 bytes"),
    "overflowing shape": (npy(described(shape=f"({2**62}, 4)"), bytes(8)), "not have 8 bytes"),
    "half a number": (npy(described(), bytes(7)), "cannot have 7 bytes"),
    "more than it says": (npy(described(), bytes(12)), "cannot have 12 bytes"),
    "no shape": (npy(described(shape="None"), bytes(8)), "no valid .npy header"),
    "code": (npy("__import__('os').system('touch canary')\n"), "no valid .npy header"),
    "deep": (npy("(" * 1900), "no valid .npy header"),
    "deeper": (npy("-" * 1900 + "1"), "no valid .npy header"),
    "long": (npy(" " * 3000 + described(), bytes(8)), "no valid .npy header"),
    "version": (b"\x93NUMPY\3\0" + bytes(9), "an unsupported .npy version"),
    "huge header": (b"\x93NUMPY\2\0\xff\xff\xff\xff", "no valid .npy header"),
    "cut": (b"\x93NUM", "no valid .npy header"),
}


@pytest.mark.parametrize("name", NPY)
def test_arrays_that_numpy_should_not_read_are_refused(tmp_path, name, refused):
    data, message = NPY[name]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("w.npy", data)
    refused(tmp_path / "a.npz", message)
    assert not pathlib.Path("canary").exists()


# --- safetensors ---------------------------------------------------------------------


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


SAFETENSORS = {
    "overlap": {"a": entry(), "b": entry(offsets=(4, 12))},
    "a gap": {"a": entry(offsets=(4, 12))},
    "beyond the end": {"a": entry(shape=(3,), offsets=(0, 12))},
    "backwards": {"a": entry(offsets=(8, 0))},
    "another size": {"a": entry(shape=(3,))},
    "negative shape": {"a": entry(shape=(-2,))},
    "huge shape": {"a": entry(shape=(2**62, 2**62))},
    "unknown dtype": {"a": entry("F33")},
    "dtype that is not read": {"a": entry("U16", (4,))},
    "no tensors": {},
    "no entry": {"a": 3},
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_damaged_safetensors_are_refused(tmp_path, name, refused):
    header = json.dumps(SAFETENSORS[name]).encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refused(tmp_path / "a", "a damaged safetensors file|weights do not have")


def test_safetensors_headers_are_bounded(tmp_path, refused):
    for length in (2**63, 2**40, 10**8, 9 * 2**20):
        (tmp_path / "a").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(99))
        refused(tmp_path / "a", f"a header of {length} bytes")
    deep = b'{"a":' * 100_000
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(deep)) + deep)
    refused(tmp_path / "a", "a damaged safetensors file")
    header = f'{{"a": {json.dumps(entry())}, "a": {json.dumps(entry(offsets=(8, 16)))}}}'.encode()
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refused(tmp_path / "a", "a damaged safetensors file")
