"""Pickles are data: what pickle.load gives on plain values, and nothing else, in little memory."""

import codecs
import io
import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peak_memory import peak_below

from dolg_tf.stage.plain_pickle import UNREAD, Global, Refused, unpickle


def read(data, **options):
    return unpickle(io.BytesIO(data), **options)


SCALARS = st.none() | st.booleans() | st.integers(-(2**600), 2**600) | st.text(max_size=99)
SCALARS |= st.floats(allow_nan=False)
BYTES = st.lists(st.binary(max_size=300) | st.sets(st.text(max_size=9) | st.integers(-9, 9)))
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=9) | st.integers(-9, 9), inner, max_size=5)
    ),
    max_leaves=40,
)


@pytest.mark.parametrize("protocol", range(6))
@given(value=VALUES)
@settings(max_examples=60, deadline=None)
def test_plain_values_are_what_pickle_load_gives(protocol, value):
    # The same object three times: memoized, and fetched from the memo.
    data = pickle.dumps([value, "again", value, {"x": value}, "again"], protocol)
    found, expected = read(data), pickle.loads(data)
    assert found == expected and repr(found) == repr(expected)  # 1 is not True


@pytest.mark.parametrize("protocol", (4, 5))
@given(value=BYTES)
@settings(max_examples=60, deadline=None)
def test_bytes_and_sets_are_what_pickle_load_gives(protocol, value):
    value += [bytearray(b"x")] * (protocol == 5) + [b"long" * 100, frozenset("ab")]
    assert read(pickle.dumps(value, protocol)) == value


def test_a_long_list_comes_in_several_batches_and_frames():
    value = {"imlist": [f"photo_{n:06d}" for n in range(20_000)], "rows": list(range(5000))}
    for protocol in range(6):
        assert read(pickle.dumps(value, protocol)) == value


PYTHON_2 = {  # cPickle and pickle.dumps of Python 2.7 of ['caf\xe9', u'\u4e2d', 5, 7L, True, "o'n"]
    "0": rb"""(lp0
S'caf\xe9'
p1
aV\u4e2d
p2
aI5
aL7L
aI01
aS"o'n"
p3
a.""",
    "1": b"]q\0(U\4caf\xe9q\1X\3\0\0\0\xe4\xb8\xadq\2K\5L7L\nI01\nU\3o'nq\3e.",
    "2": b"\x80\2]q\0(U\4caf\xe9q\1X\3\0\0\0\xe4\xb8\xadq\2K\5\x8a\1\7\x88T\3\0\0\0o'nq\3e.",
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_strings_of_python_2_are_read_as_latin_1(protocol):
    found = read(PYTHON_2[protocol])
    assert found == ["café", "中", 5, 7, True, "o'n"] and found[4] is True
    assert found == pickle.loads(PYTHON_2[protocol], encoding="latin1")


def test_the_real_ground_truths_are_read_as_pickle_load_reads_them(ground_truths):
    for name in ("gnd_roxford5k.pkl", "gnd_rparis6k.pkl"):
        data = (ground_truths / name).read_bytes()
        expected = pickle.loads(data, encoding="latin1")
        for again in (data, *(pickle.dumps(expected, protocol) for protocol in range(6))):
            assert read(again) == expected


def test_the_stream_stands_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1], 4) + b"behind")
    assert unpickle(stream) == [1] and stream.read() == b"behind"


def test_names_are_looked_up_alike_in_all_protocols():
    calls = []

    def find(name):
        calls.append(name)
        return Global(name, lambda *arguments: UNREAD)

    for protocol in range(6):
        assert read(pickle.dumps(codecs.encode, protocol), find=find).name == "_codecs.encode"
    assert calls == ["_codecs.encode"] * 6
    assert read(pickle.dumps(b"\xff", 2), find=find) is UNREAD  # called with plain arguments


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


# A pair of pairs of pairs ...: 2 ** 60 when walked.
SHARED = text("x") + b"](" + b")q\0" + b"h\0h\0\x86q\0" * 60 + b"eh\0" + b"K\1"
REFUSED = {
    "INST": (b"(ios\nsystem\n", "opcode INST"),
    "GLOBAL": (b"cos\nsystem\n", "names 'os.system'"),
    "STACK_GLOBAL": (text("os") + text("system") + b"\x93", "names 'os.system'"),
    "STACK_GLOBAL of a number": (text("os") + b"K\1\x93", "of type int where it cannot be"),
    "OBJ": (b"(cos\nsystem\no", "names 'os.system'"),
    "OBJ alone": (b"(o", "opcode OBJ"),
    "NEWOBJ": (b")\x81", "opcode NEWOBJ"),
    "NEWOBJ_EX": (b"))}\x92", "opcode NEWOBJ_EX"),
    "EXT1": (b"\x82\1", "opcode EXT1"),
    "EXT4": (b"\x84\1\0\0\0", "opcode EXT4"),
    "PERSID": (b"Pstorage\n", "opcode PERSID"),
    "BINPERSID": (b"NQ", "refers to something outside"),
    "BUILD": (b"})b", "sets attributes of a dict"),
    "REDUCE": (b"N)R", "of type NoneType where it cannot be"),
    "LONG4": (b"\x8b\4\0\0\0\0\0\0\1", "opcode LONG4"),
    "BINUNICODE8": (b"\x8d\1\0\0\0\0\0\0\0a", "opcode BINUNICODE8"),
    "huge bytes": (b"\x8e\0\0\0\0\0\1\0\0", "larger than 16777216 bytes, or damaged"),
    "huge bytearray": (b"\x96" + b"\xff" * 8, "damaged .*sys.maxsize"),
    "DUP": (b"}2", "opcode DUP"),
    "POP": (b"0", "opcode POP"),
    "unknown": (b"\xff", "damaged .*unknown"),
    "huge string": (b"X\xff\xff\xff\x7f", "larger than 16777216 bytes, or damaged"),
    "long line": (b"S'" + b"x" * 70000 + b"'\n", "damaged .*cut short"),
    "string without quotes": (b"Sx\n", "damaged .*quotes"),
    "string with one quote": (b"S'\n", "damaged .*quotes"),
    "unknown escape": (b"S'\\q'\n", "damaged .*escape"),
    "tuple in a set": (b"\x8f(" + SHARED[8:-5] + b"\x90", "a key of type tuple"),
    "set in a set": (b"(\x8f\x91", "a key of type set"),
    "elements of a list": (b"](K\1\x90", "of type list where it cannot be"),
    "tuple for a key": (b"}(" + SHARED + b"u", "a key of type tuple"),
    "list for a key": (b"}]K\1s", "a key of type list"),
    "list for a key of DICT": (b"(]K\1d", "a key of type list"),
    "items of a list": (b"](" + text("a") * 2 + b"u", "of type list where it cannot be"),
    "odd items": (b"}(" + text("a") + b"u", "damaged"),
    "odd items of DICT": (b"(K\1d", "damaged"),
    "elements of a dict": (b"})a", "of type dict where it cannot be"),
    "nothing": (b"", "damaged"),
    "memo of nothing": (b"\x94", "damaged"),
    "mark without end": (b"(", "damaged"),
    "no mark": (b"t", "damaged"),
    "no mark for LIST": (b"l", "damaged"),
    "unknown memo": (b"h\7", "damaged"),
    "no number": (b"Ix\n", "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pickles_are_refused(name):
    data, message = REFUSED[name]
    with peak_below(1), pytest.raises(Refused, match=message):
        read(b"\x80\2" + data + b".")


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x7f", b"r\x00\xca\x9a;", b"p2147483647\n"])
def test_a_huge_memo_index_takes_no_memory(put):
    """Python's own unpickler makes an array as long: 2 to 30 GB for these 10 bytes."""
    with peak_below(1):
        assert read(b"\x80\2}" + put + b".") == {}


def test_every_cut_of_a_pickle_is_refused():
    for protocol in range(6):
        whole = pickle.dumps({"a": [1, 2.5, "é", (None, True)], "b": 2**70}, protocol)
        for length in range(len(whole)):
            with pytest.raises(Refused, match="damaged"):
                read(whole[:length])


def test_keys_that_hash_alike_are_refused():
    # Numbers that differ by a multiple of 2^61 - 1 have one hash: a dict of many takes hours.
    keys = {k * (2**61 - 1): None for k in range(1, 100)}
    with pytest.raises(Refused, match="huge number as a key"):
        read(pickle.dumps(keys, 2))


@pytest.mark.parametrize("code", [b"]\x94", b"}\x94", b"(", b")\x85", b"N\x85\x94"])
def test_opcodes_bound_the_memory(code):
    data = b"\x80\4" + code * 60_000
    with peak_below(60_000 * len(code) * 140 / 2**20):
        with pytest.raises(Refused, match="more than 50000 opcodes"):
            read(data, most_opcodes=50_000)
        with pytest.raises(Refused, match="larger than 40000 bytes"):
            read(data, most_bytes=40_000)
