"""MATLAB files: what SciPy writes is read as SciPy reads it; damaged ones end in one error."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_below
from scipy.io import loadmat, savemat

from dolg_tf.retrieval.mat_file import NotRead, read

TEXT = st.text("aé中 z", max_size=6).filter(lambda text: text == text.rstrip(" "))
DTYPES = st.sampled_from(["f8", "f4", "i1", "u2", "i4", "u4", "i8", "u8", "u1"])
NUMBERS = st.tuples(st.lists(st.integers(0, 99), max_size=5), DTYPES).map(
    lambda drawn: np.array([drawn[0]], drawn[1])
)


def cells(inner):
    def cell(values):
        made = np.empty((1, len(values)), object)
        made[0, :] = values
        return made

    return st.lists(inner, max_size=4).map(cell)


@st.composite
def structs(draw, inner):
    names = draw(st.lists(st.sampled_from(["bbx", "easy", "hard", "a_long_name_1"]), unique=True))
    made = np.empty((1, draw(st.integers(1, 3))), [(name, object) for name in names or ["one"]])
    for name in made.dtype.names:
        for place in range(made.shape[1]):
            made[name][0, place] = draw(inner)
    return made


VALUES = st.recursive(TEXT | NUMBERS, lambda inner: cells(inner) | structs(inner), max_leaves=12)


def plain(value):
    """What `read` gives for a value that SciPy read."""
    if value.dtype.names:
        return [{name: plain(one[name]) for name in value.dtype.names} for one in value.ravel("F")]
    if value.dtype.kind == "O":
        return [plain(one) for one in value.ravel("F")]
    if value.dtype.kind == "U":
        found = [str(one) for one in value.ravel()]
        return found[0] if len(found) == 1 else found or ""
    return value.ravel("F").tolist()


def listed(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: listed(one) for key, one in value.items()}
    return [listed(one) for one in value] if isinstance(value, list) else value


def written(compressed=True, **values):
    stream = io.BytesIO()
    savemat(stream, values, do_compression=compressed)
    return stream.getvalue()


@pytest.fixture(scope="session")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("mat") / "some.mat"


def read_bytes(file, data, most_bytes=1 << 20, most_values=10_000):
    file.write_bytes(data)
    return read(file, ("a", "b"), most_bytes, most_values)


@given(value=VALUES, compressed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_scipy_writes_is_read_as_scipy_reads_it(file, value, compressed):
    data = written(compressed, a=value, other=np.arange(3), b=[["ab"], ["c"]])
    found, expected = read_bytes(file, data), loadmat(io.BytesIO(data))
    assert set(found) == {"a", "b"} and found["b"] == ["ab", "c"]
    assert listed(found["a"]) == plain(expected["a"])


def test_the_other_order_of_bytes(file):
    """Drawn by hand: SciPy writes the machine's order only."""
    flags = struct.pack(">IIII", 6, 8, 6, 0)  # of doubles
    shape, name = struct.pack(">IIii", 5, 8, 1, 2), struct.pack(">HHc3x", 1, 1, b"a")
    body = flags + shape + name + struct.pack(">IIHHxxxx", 4, 4, 7, 9)
    data = b"x" * 124 + b"\1\0MI" + struct.pack(">II", 14, len(body)) + body
    assert read_bytes(file, data)["a"].tolist() == [7, 9]
    assert loadmat(io.BytesIO(data))["a"].tolist() == [[7, 9]]


def test_other_values_are_refused_where_they_are_wanted(file):
    for value, told in ((1j, "no cell, struct, text or real number"), (deep(9), "lie too deep")):
        with pytest.raises(NotRead, match=told):
            read_bytes(file, written(a=value))
        assert read_bytes(file, written(other=value, b=2.0))["b"].tolist() == [2]


def opaque(name):
    """Returns a variable such as a string object of MATLAB: it has a name and no shape."""
    small = struct.pack("<I", len(name) << 16 | 1) + name.ljust(4, b"\0")
    whole = struct.pack("<IIII", 6, 8, 17, 0)
    whole += small if len(name) <= 4 else struct.pack("<II", 1, len(name)) + name.ljust(8, b"\0")
    return struct.pack("<II", 14, len(whole)) + whole


def test_objects_of_matlab_are_passed_over_unless_they_are_wanted(file):
    for name in (b"s", b"text", b"a_string"):
        assert read_bytes(file, written(b=2.0) + opaque(name))["b"].tolist() == [2]
    with pytest.raises(NotRead, match="no cell, struct, text or real number"):
        read_bytes(file, written(b=2.0) + opaque(b"a"))


def deep(levels):
    value = "x"
    for _ in range(levels):
        cell = np.empty((1, 1), object)
        cell[0, 0] = value
        value = cell
    return value


def test_other_versions_are_named(file):
    with pytest.raises(NotRead, match=r"MATLAB 7\.3; save it with -v7"):
        read_bytes(file, b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + b"\x89HDF\r\n\x1a\n")
    for data in (b"", b"x" * 1000):
        with pytest.raises(NotRead, match="not a MATLAB file"):
            read_bytes(file, data)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_flipped_bit_and_every_cut_is_read_or_refused(file, compressed):
    query = {"bbx": np.array([[1.0, 2, 3, 4]]), "easy": np.array([[1, 2]], "u2"), "name": "caf"}
    data = written(compressed, a=np.array([query, query], object), b=np.array(["x", "yz"], object))
    refused = 0
    for at in range(len(data)):
        for damaged in (data[:at], *(flipped(data, at, bit) for bit in (0, 3, 7))):
            try:
                read_bytes(file, damaged)
            except NotRead as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 200
    assert refused > len(data)


def flipped(data, at, bit):
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_bombs_are_bounded(file):
    head = written(a=1.0)[:128]
    packed = zlib.compress(bytes(50 << 20), 9)
    bomb = head + struct.pack("<II", 15, len(packed)) + packed
    with peak_below(4), pytest.raises(NotRead, match="holds too much"):
        read_bytes(file, bomb)
    empty = struct.pack("<II", 14, 0) * 20_000
    body = struct.pack("<IIIIIIIIHH4s", 6, 8, 1, 0, 5, 8, 1, 20_000, 1, 1, b"a") + empty
    with peak_below(4), pytest.raises(NotRead, match="too many values"):
        read_bytes(file, head + struct.pack("<II", 14, len(body)) + body)
    rows = struct.pack("<IIIIIIIIHH4s", 6, 8, 4, 0, 5, 8, 2**30, 0, 1, 1, b"a")  # of no letter
    with peak_below(2):
        found = read_bytes(file, head + struct.pack("<II", 14, len(rows)) + rows)
    assert found == {"a": ""}
    with pytest.raises(NotRead, match="larger than 1000 bytes"):
        read_bytes(file, head + bytes(1000), most_bytes=1000)
