"""PyTorch files made to harm: nothing that they name is run, no size is believed."""

import contextlib
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
from peak_memory import peak_below

from dolg_tf.stage.config import InputError
from dolg_tf.weights.files.tensors import open_tensors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "torch_files"
MAGIC = (GOLDEN / "tensors.legacy.pth").read_bytes()[:15]
MEGABYTE = 1 << 20


def read(path):
    """Reads all that a file holds."""
    return {name: tensor.read() for name, tensor in open_tensors(path).tensors.items()}


# --- pickles -------------------------------------------------------------------------


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


def call(name, *arguments):
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n(".encode() + b"".join(arguments) + b"tR"


def tensor(
    *, key="0", kind="FloatStorage", size=6, offset=0, shape=(2, 3), strides=(3, 1), view=b""
):
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode()
    storage += text(key) + text("cpu") + number(size) + (view and b"(" + view + b"t") + b"tQ"
    places = number(offset) + numbers(*shape) + numbers(*strides)
    return call("torch._utils._rebuild_tensor_v2", storage, places, b"\x89N")


def mapping(*items):
    """A dict of name, value, name, value ..."""
    return b"}(" + b"".join(text(x) if isinstance(x, str) else x for x in items) + b"u"


GOOD = mapping("w", tensor())


@pytest.fixture
def archive(tmp_path):
    """Function that writes a PyTorch archive around a pickled value."""

    def make(value, root="archive/", compression=zipfile.ZIP_STORED, **more):
        path = tmp_path / "a.pth"
        entries = {"data.pkl": b"\x80\2" + value + b".", "byteorder": b"little"}
        entries |= {"data/0": np.arange(6, dtype="<f4").tobytes(), **more}
        with zipfile.ZipFile(path, "w", compression) as file:
            for name, data in entries.items():
                file.writestr(root + name, data)
        return path

    return make


def test_the_archives_of_these_tests_are_sound(archive):
    np.testing.assert_array_equal(read(archive(GOOD))["w"], [[0, 1, 2], [3, 4, 5]])


class _Runs:
    def __init__(self, function, *arguments):
        self.value = function, arguments

    def __reduce__(self):
        return self.value


def _attacks(canary):
    return {
        "os.system": _Runs(os.system, f"touch {canary}"),
        "eval": _Runs(eval, f"open({str(canary)!r}, 'w').close()"),
        "exec": _Runs(exec, f"open({str(canary)!r}, 'w').close()"),
        "open": _Runs(open, str(canary), "w"),
        "getattr": _Runs(getattr, _Runs(open, str(canary), "w"), "close"),
    }


@pytest.mark.parametrize("attack", _attacks(""))
@pytest.mark.parametrize("place", ["top", "state", "beside", "parameter", "attributes", "key"])
def test_nothing_that_a_pickle_names_is_run(archive, tmp_path, attack, place, refused):
    canary = tmp_path / "canary"
    pickled = pickle.dumps(_attacks(canary)[attack], protocol=2)
    with contextlib.suppress(TypeError):  # some go on with what open() gave
        pickle.loads(pickled)  # the attack is a live one
    assert canary.exists()
    canary.unlink()
    value = pickled[2:-1]
    parameter = "torch._utils._rebuild_parameter_with_state"
    hidden = {
        "top": value,
        "state": mapping("w", tensor(), "x", value),
        "beside": mapping(
            "model_state", GOOD, "optimizer_state", mapping("lr", b"](" + value + b"e")
        ),
        "parameter": mapping("w", call(parameter, tensor(), b"\x89", b"N", value)),
        "attributes": call("collections.OrderedDict")
        + b"("
        + text("w")
        + tensor()
        + b"u"
        + value
        + b"b",
        "key": b"}" + value + text("x") + b"s",
    }[place]
    refused(archive(hidden), "holds a '.*', which is neither.*ever run.*state_dict")
    (tmp_path / "legacy.pth").write_bytes(legacy(hidden))
    refused(tmp_path / "legacy.pth", "holds a '.*', which is neither")
    assert not canary.exists()


NAMES = {
    "argparse.Namespace": "'argparse.Namespace'",
    "omegaconf.dictconfig.DictConfig": "'omegaconf.dictconfig.DictConfig'",
    "torch._utils._rebuild_tensor_v2.__globals__": "__globals__",
    "torch.load": "'torch.load'",
    "torch.QInt8Storage": "'torch.QInt8Storage'",
    "torch.serialization.load": "'torch.serialization.load'",
    "numpy.load": "'numpy.load'",
    "collections.OrderedDict.fromkeys": "fromkeys",
    "dolg_tf.weights.files.torch_pickle._unread": "_unread",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_class_is_named_with_the_remedy(archive, name, refused):
    value = mapping("w", tensor(), "args", call(name))
    refused(archive(value), f"holds a '.*{NAMES[name].strip(chr(39))}.*state_dict")


def test_numbers_and_arrays_of_numpy_stand_beside_unread(archive):
    value = mapping("w", tensor(), "best", pickle.dumps(np.float64(0.5), 2)[2:-1])
    file = open_tensors(archive(value))
    assert list(file.tensors) == ["w"] and file.beside == ("best",)


def test_attributes_of_a_state_dict_change_nothing(archive):
    attributes = mapping("items", number(1), "__class__", number(2), "_metadata", b"}")
    value = call("collections.OrderedDict") + b"(" + text("w") + tensor() + b"u" + attributes + b"b"
    assert list(read(archive(value))) == ["w"]


DEEP = b"]" + b"](" * 20_000 + b"e" * 20_000
PICKLES = {
    "OBJ": (b"(cos\nsystem\no", "holds a 'os.system'"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93", "holds a 'os.system'"),
    "huge memo index, alone": (b"}r\xff\xff\xff\x7f", "holds no tensors"),
    "deep": (DEEP, "holds a list"),
    "storage for a function": (b"ctorch\nFloatStorage\n)R", "calls FloatStorage"),
    "text for a function": (text("x") + b")R", "of type str where it cannot be"),
    "list for arguments": (b"ccollections\nOrderedDict\n]R", "of type list where it cannot be"),
    "wrong arguments": (call("torch._utils._rebuild_parameter"), "with wrong arguments"),
    "attributes of a list": (b"]}b", "sets attributes of a list"),
    "numbers of a tensor": (tensor() + b"(" + tensor() + b"NNNNtb", "attributes of a View"),
    "persistent text": (text("storage") + b"Q", "refers to something that is not a storage"),
    "persistent module": (b"(" + text("module") + b"NNNNtQ", "not a storage"),
    "no type of storage": (b"(" + text("storage") * 4 + number(1) + b"tQ", "impossible storage"),
    "negative storage": (tensor(size=-6), "impossible storage"),
    "a tensor of not a storage": (call("torch._utils._rebuild_tensor_v2", b"NNNN"), "other than a"),
    "a parameter of no tensor": (call("torch._utils._rebuild_parameter", b"N"), "other than a"),
    "a negated tensor": (
        tensor()[:-2] + mapping("neg", b"\x88") + b"tR",
        r"save it again after \.resolve_neg",
    ),
    "an escape in a name": (b"ccollections\nOrdered\\qDict\n", "holds a 'collections.Ordered"),
    "a list": (b"](" + tensor() + b"e", "holds a list, not a state dict"),
    "a tensor": (tensor(), "holds a View"),
    "no tensors": (mapping("epoch", number(3)), "holds no tensors"),
    "a number for a name": (b"}" + number(3) + tensor() + b"s", "a int for a name"),
    "a terminal's codes": (mapping("\x1b[2Jw", tensor()), r"'\\x1b.*impossible name"),
    "a long name": (mapping("w" * 10**6, tensor()), "impossible name"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_torch_does_not_write_are_refused(archive, name, refused):
    value, message = PICKLES[name]
    refused(archive(value), message)


def test_a_mapping_made_over_and_over_fills_no_memory(archive):
    """3,000 OrderedDicts of the same 3,000 pairs would be 9 million items."""
    pairs = b"](" + b"".join(number(i) + number(i) + b"\x86" for i in range(3000)) + b"eq\0"
    again = b"](ccollections\nOrderedDict\nq\1" + b"h\1h\0\x85R" * 3000 + b"e"
    value = mapping("w", tensor(), "pairs", pairs, "again", again)
    with peak_below(24):
        assert list(read(archive(value))) == ["w"]


def test_damaged_pickles_are_refused_or_harmless(tmp_path):
    """Nothing but `InputError` comes out, also when the checksum agrees with the damage."""
    with zipfile.ZipFile(GOLDEN / "tensors.zip.pth") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path, rng, refusals = tmp_path / "a.pth", np.random.default_rng(1), 0
    name = "tensors.zip/data.pkl"
    with peak_below(32):
        for _ in range(250):
            data = bytearray(entries[name])
            for position in rng.integers(len(data), size=rng.integers(1, 5)):
                data[position] = rng.integers(256)
            with zipfile.ZipFile(path, "w") as archive:
                for key, value in (entries | {name: bytes(data)}).items():
                    archive.writestr(key, value)
            try:
                read(path)
            except InputError as error:
                assert str(path) in str(error)
                refusals += 1
    assert refusals > 100


def legacy(value, *storages, protocol=1001, keys=("0",)):
    """The bytes of a file before PyTorch 1.6."""
    keys = b"](" + b"".join(map(text, keys)) + b"e"
    parts = [b"\x80\2" + part + b"." for part in (number(protocol), b"}", value, keys)]
    return MAGIC + b"".join([*parts, *storages])


SIX = struct.pack("<q6f", 6, *range(6))


def test_files_of_the_first_pytorch_are_read(tmp_path):
    """Strings and pairs of Python 2, parameters, tensors without hooks, views of storages."""

    def old(value):
        return b"U" + bytes([len(value)]) + value.encode()

    storage = b"(" + old("storage") + b"ctorch\nFloatStorage\n" + old("0") + old("cpu") + number(6)
    storage += b"(" + old("view") + number(1) + number(5) + b"ttQ"
    places = number(1) + numbers(2, 2) + numbers(2, 1)
    rebuilt = call("torch._utils._rebuild_tensor", storage, places)
    parameter = call("torch.nn.parameter.Parameter", rebuilt) + b"(\x88\x89" + b"}tb"
    pair = b"](" + old("w") + parameter + b"e"
    value = call("collections.OrderedDict", b"](" + pair + b"e")
    (tmp_path / "a.pth").write_bytes(legacy(value, SIX))
    np.testing.assert_array_equal(read(tmp_path / "a.pth")["w"], [[2, 3], [4, 5]])


OLD = {
    "protocol": (legacy(GOOD, SIX, protocol=1000), "another version"),
    "keys": (legacy(GOOD, SIX, keys=()), "has no storage '0'"),
    "other keys": (legacy(GOOD, SIX, SIX, keys=("0", "1")), "contradicts itself on storage '1'"),
    "size": (legacy(GOOD, struct.pack("<q5f", 5, *range(5))), "on storage '0'"),
    "negative size": (legacy(GOOD, struct.pack("<q", -1)), "on storage '0'"),
    "no size": (legacy(GOOD), "is cut short"),
    "cut": (legacy(GOOD, SIX[:-1]), "is cut short"),
    "two sizes": (
        legacy(mapping("w", tensor(), "x", tensor(size=7)), SIX),
        "two storages '0'",
    ),
    "a view that leads out": (
        legacy(mapping("w", tensor(view=(text("v") + number(3) + number(4)))), SIX),
        "reaches beyond its storage",
    ),
    "no view": (legacy(mapping("w", tensor(view=text("v"))), SIX), "impossible view"),
    "a tensor before its view": (
        legacy(mapping("w", tensor(offset=-1, view=text("v") + number(1) + number(5))), SIX),
        "impossible offset",
    ),
    "a tensor beyond its view": (
        legacy(mapping("w", tensor(view=text("v") + number(0) + number(5))), SIX),
        "needs more than the 5 numbers",
    ),
}


@pytest.mark.parametrize("name", OLD)
def test_legacy_files_that_disagree_with_themselves_are_refused(tmp_path, refused, name):
    data, message = OLD[name]
    (tmp_path / "a.pth").write_bytes(data)
    refused(tmp_path / "a.pth", message)


TENSORS = {
    "negative shape": {"shape": (-2, 3)},
    "negative stride": {"strides": (-3, 1)},
    "negative offset": {"offset": -1},
    "offset beyond the end": {"offset": 1},
    "stride beyond the end": {"strides": (4, 1)},
    "huge shape": {"shape": (2**40, 3)},
    "huge stride": {"strides": (2**61, 1)},
    "huge offset": {"offset": 2**61},
    "overflowing shape": {"shape": (2**32, 2**32)},
    "overflowing stride": {"strides": (2**64, 1)},
    "empty, but huge": {"shape": (0, 2**61)},
    "the same number again and again": {"shape": (2**30,), "strides": (0,)},
    "too many axes": {"shape": (1,) * 65, "strides": (1,) * 65},
    "strides for other axes": {"strides": (1,)},
    "no number for an axis": {"shape": (None, 3)},
    "truth for an axis": {"shape": (True, 3)},
    "no number for an offset": {"offset": None},
    "another dtype": {"kind": "DoubleStorage"},
    "more than the storage has": {"size": 7},
    "huge storage": {"size": 2**61},
    "no such storage": {"key": "1"},
    "a path for a storage": {"key": "../../../../etc/passwd"},
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_do_not_fit_their_bytes_are_refused(archive, name):
    path = archive(mapping("w", tensor(**TENSORS[name])))
    with peak_below(8), pytest.raises(InputError, match=r"a\.pth"):
        open_tensors(path)  # before any is read


def test_a_tensor_spread_over_a_large_storage_is_refused(archive, refused):
    size = 1 << 22
    value = mapping("w", tensor(size=size, shape=(2,), strides=(size - 1,)))
    refused(archive(value, **{"data/0": bytes(4 * size)}), "far apart.*contiguous")


# --- zip archives --------------------------------------------------------------------


def test_zip_bombs_are_refused(archive, refused):
    path = archive(GOOD, compression=zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data/1", bytes(40 * MEGABYTE))
    refused(path, "unpacks to 41943.* bytes from 18.*zip bomb")


def test_an_entry_with_more_inside_than_it_says_is_refused(archive, refused):
    """32 MB of zeros under the size of six numbers, in both of the places that tell it."""
    path = archive(GOOD, compression=zipfile.ZIP_DEFLATED, **{"data/0": bytes(32 * MEGABYTE)})
    data, said = path.read_bytes(), struct.pack("<I", 32 * MEGABYTE)
    assert data.count(said) == 2
    path.write_bytes(data.replace(said, struct.pack("<I", 24)))
    refused(path, "CRC")


def test_a_pickle_without_end_is_refused(archive, refused):
    refused(archive(text("a" * 17 * MEGABYTE)), "larger than 16777216 bytes")
    refused(archive(text("a" * 30 * MEGABYTE), compression=zipfile.ZIP_DEFLATED), "zip bomb")
    refused(archive(b"]" * 510_000), "more than 500000 opcodes", megabytes=128)


def test_a_huge_directory_is_refused(tmp_path, refused):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as file:
        for i in range(1000):
            file.writestr(f"{i:05000d}", b"")
    refused(path, "directory is too large", megabytes=64)


def _patched(path, flag=None, compression=None):
    """Sets the flags or the compression of every entry, in both of the places that tell them."""
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = data.find(signature)
        while start >= 0:
            if flag is not None:
                struct.pack_into("<H", data, start + at, flag)
            if compression is not None:
                struct.pack_into("<H", data, start + at + 2, compression)
            start = data.find(signature, start + 4)
    path.write_bytes(data)
    return path


def test_archives_of_other_kinds_are_told(archive, tmp_path, refused):
    refused(_patched(archive(GOOD), flag=1), "is encrypted: save it without a password")
    refused(_patched(archive(GOOD), compression=12), "an unsupported compression")
    refused(archive(GOOD, **{"constants.pkl": b""}), "TorchScript program.*state_dict")
    refused(archive(GOOD, **{"code/x.py": b""}), "TorchScript program")
    refused(archive(GOOD, byteorder=b"middle"), "little or big endian")
    assert list(read(archive(GOOD, root="a/../b/"))) == ["w"]  # nothing is ever unpacked
    with zipfile.ZipFile(archive(GOOD), "a") as file:
        file.writestr("other/data.pkl", b"")
    refused(tmp_path / "a.pth", "more than one data.pkl")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(archive(GOOD), "a") as file:
        file.writestr("archive/data/0", bytes(24))
    refused(tmp_path / "a.pth", "two entries of the same name")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as file:
        file.writestr("../../word/document.xml", b"<w/>")
    refused(tmp_path / "a.pth", "neither PyTorch .* nor .npz")
    with zipfile.ZipFile(tmp_path / "a.pth", "w"):
        pass
    refused(tmp_path / "a.pth", "neither PyTorch .* nor .npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]
