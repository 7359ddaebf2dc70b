"""NumPy's arrays in pickles: what pickle.load gives on plain ones, and nothing else."""

import io
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peak_memory import peak_below

from dolg_tf.data.pickled_arrays import Arrays, opened
from dolg_tf.stage.plain_pickle import Refused, unpickle

MOST = 1 << 20


def read(data, most=MOST):
    made = Arrays(most)
    return unpickle(io.BytesIO(data), made.find, build=made.build, most_bytes=most)


DTYPES = st.sampled_from(["i1", "<i4", ">i8", "u2", "f2", "<f8", ">f4", "?", "S3", "<U4", ">U2"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=2, max_dims=2))
)


@pytest.mark.parametrize("protocol", range(6))
@given(value=ARRAYS)
@settings(max_examples=40, deadline=None)
def test_arrays_and_their_elements_are_what_pickle_load_gives(protocol, value):
    whole = [value, value.T, value[0], value.ravel()[0], "again", value]
    found = [opened(one) for one in read(pickle.dumps(whole, protocol))]
    for one, expected in zip(found[:3], whole, strict=False):
        np.testing.assert_array_equal(one, expected)
        assert one.dtype == expected.dtype and one.shape == expected.shape
    expected = whole[3].item()
    assert type(found[3]) is type(expected) and repr(found[3]) == repr(expected)


@pytest.mark.parametrize("protocol", range(6))
def test_names_of_both_versions_of_numpy(protocol):
    new = pickle.dumps(np.arange(3), protocol)
    if protocol < 4:  # these write names line by line
        old = new.replace(b"cnumpy._core.", b"cnumpy.core.")
        assert old != new
        assert opened(read(old)).tolist() == [0, 1, 2]
    assert opened(read(new)).tolist() == [0, 1, 2]
    assert opened(read(pickle.dumps(np.zeros(0), protocol))).tolist() == []
    assert read(pickle.dumps({"a": {1, 2}, "b": b"", "c": frozenset("x")}, protocol)) == {
        "a": {1, 2},
        "b": b"",
        "c": {"x"},
    }


class _Own(np.ndarray):
    pass


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("value", "told"),
    [
        (np.array([[1], "x"], object), r"array of objects; write it with \.tolist"),
        (np.zeros(2, [("a", "i4")]), r"type 'V4'; write it with \.tolist"),
        (np.zeros(2, "M8[s]"), r"type 'M8'; write it with \.tolist"),
        (np.zeros(2, "c16"), r"type 'c16'; write it with \.tolist"),
        (np.zeros((1, 1, 1)), r"shape \(1, 1, 1\); write it as a list"),
        (np.zeros(2).view(_Own), r"_Own|class of its own"),
        (range(3), "names '.*range'"),
        (1j, "names '.*complex'"),
    ],
)
def test_others_are_refused(protocol, value, told):
    with pytest.raises(Refused, match=told):
        read(pickle.dumps(value, protocol))


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _array(shape=b"K\1\x85", state=None, dtype=b"i8"):
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\1b\x87R"
    of_type = b"cnumpy\ndtype\n" + text(dtype.decode()) + b"\x89\x88\x87R"
    return made + (state or b"(K\1" + shape + of_type + b"\x89C\x08" + bytes(8) + b"tb")


def test_the_pickle_of_the_next_test_is_right():
    assert opened(read(b"\x80\4" + _array() + b".")).tolist() == [0]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (_array(shape=b"K\2\x85"), "shape .* has 8 bytes"),
        (_array(shape=b"J\xff\xff\xff\xff\x85"), "shape"),
        (_array(shape=b"N\x85"), "shape"),
        (_array(shape=b"K\1"), "shape"),
        (_array(shape=b"K\0\x8a\x09" + b"\xff" * 8 + b"\x7f\x86"), "shape .* has 8 bytes"),
        (_array(dtype=b"O8"), "array of objects"),
        (_array(dtype=b"i3"), "wrong arguments"),
        (_array(dtype=b"U999999999"), "wrong arguments"),
        (_array(dtype=b"U99999999"), "has 8 bytes"),
        (_array(state=b"K\1\x85b"), "without elements"),
        (_array(state=b"K\1b"), "sets attributes"),
        (_array(state=b"(K\1K\1\x85NN]tb"), "array of objects"),
        (b"cnumpy\ndtype\nK\1\x85R", "of type 1"),
        (b"cnumpy\ndtype\n" + text("i4") + b"\x85RK\1K\1\x86b", "order of bytes"),
        (b"cnumpy.core.multiarray\n_reconstruct\nK\1\x85R", "class of its own"),
        (b"cnumpy.core.multiarray\nscalar\nNK\1\x86R", "wrong arguments|objects"),
        (b"cnumpy\nfromfile\n", "names 'numpy.fromfile'"),
        (b"cnumpy\nndarray\n)R", "calls numpy.ndarray"),
        (b"c_codecs\nencode\n" + text("x") + text("utf-8") + b"\x86R", "other than bytes"),
        (b"c_codecs\nencode\n" + text("中") + text("latin1") + b"\x86R", "damaged"),
        (b"c__builtin__\nset\nK\1\x85R", "set of something other"),
        (b"ccollections\ndefaultdict\nK\1\x85R", "dict of something other"),
    ],
)
def test_hostile_arrays_are_refused(data, told):
    with peak_below(4), pytest.raises(Refused, match=told):
        opened(read(b"\x80\4" + data + b"."))


def test_what_gets_no_elements_is_refused():
    whole = read(b"\x80\4" + _array(state=b"0"[:0] or b"\x94") + b".")
    with pytest.raises(Refused, match="without elements"):
        opened(whole)


def test_copies_are_bounded():
    long = text("x" * (MOST // 4)) + b"q\1"
    encode = b"c_codecs\nencode\nh\1" + text("latin1") + b"\x86R"
    with peak_below(8), pytest.raises(Refused, match="more of its bytes than there are"):
        read(b"\x80\4](" + long + encode * 1000 + b"e.")
    size = MOST // 8
    dtype = b"cnumpy\ndtype\n" + text(f"U{size // 4}") + b"\x85Rq\1C" + b"\0" * 0
    data = dtype.removesuffix(b"C") + b"B" + struct.pack("<I", size) + bytes(size) + b"q\2"
    scalar = b"cnumpy.core.multiarray\nscalar\nh\1h\2\x86R"
    with peak_below(8), pytest.raises(Refused, match="more of its bytes than there are"):
        read(b"\x80\4](" + data + scalar * 1000 + b"e.")
