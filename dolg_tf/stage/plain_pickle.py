"""Pickles read as data: nothing that they name is imported or called.

This is not a `pickle.Unpickler`. It carries out only the few opcodes that plain values need, in
protocols 0 to 5, on plain dicts, lists, tuples, sets, strings, bytes and numbers.
"""

import codecs
import dataclasses
import pickletools
import re
from collections.abc import Callable, Iterator
from typing import IO

# The pickle of a ResNet-101 DOLG with its optimizer has 0.3 MB and 60,000 opcodes.
_MOST_BYTES, _MOST_OPCODES = 1 << 24, 500_000
_LONGEST_LINE = 1 << 16  # bytes; names of classes, and the strings of protocol 0
_ESCAPES = re.compile(rb"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|[\\'\"nrt])")


class Refused(Exception):
    """Why the content of a file is refused. Callers add the name of the file."""


class Unread:
    """A value that is not looked into, such as a NumPy number beside weights."""


UNREAD = Unread()


@dataclasses.dataclass(frozen=True)
class Global:
    """Something that a pickle names; `make` is run in place of calling it."""

    name: str
    make: Callable | None = None


def hashable(key):
    """Returns a key of a dict or an element of a set.

    Raises:
      Refused: on a tuple: hashing one that holds itself many times over never ends.
    """
    if type(key) is int and abs(key) >= 2**61 - 1:
        raise Refused("its pickle has a huge number as a key")  # such numbers can share one hash
    if type(key) not in (str, bytes, int, float, bool, type(None)):
        raise Refused(f"its pickle has a key of type {type(key).__name__}")
    return key


def set_item(target: dict, key, value) -> None:
    """Sets an item, unless its key is unread.

    Raises:
      Refused: see `hashable`.
    """
    if type(key) is not Unread:
        target[hashable(key)] = value


class _Limited:
    """The beginning of a stream."""

    def __init__(self, stream: IO[bytes], most_bytes: int):
        self._stream, self._most, self._left = stream, most_bytes, most_bytes

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        if size > self._left:
            raise Refused(f"its pickle is larger than {self._most} bytes, or damaged")
        data = read(size)
        self._left -= len(data)
        return data

    def read(self, size: int) -> bytes:
        return self._take(self._stream.read, size)

    def readline(self) -> bytes:
        return self._take(self._stream.readline, _LONGEST_LINE)


def _line(stream: _Limited) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("a line is cut short")
    return line[:-1]


def _escaped(stream: _Limited) -> bytes:
    line = _line(stream)
    if b"\\" in _ESCAPES.sub(b"", line):
        raise ValueError("an unknown escape")
    return line


def _names(stream: _Limited) -> str:
    return f"{_line(stream).decode()}.{_line(stream).decode()}"


def _string(stream: _Limited) -> str:
    """Returns a string of Python 2, which may have any byte, as Latin-1."""
    quoted = _escaped(stream)
    if len(quoted) < 2 or quoted[:1] not in b"'\"" or quoted[-1] != quoted[0]:
        raise ValueError("a string without quotes")
    return codecs.escape_decode(quoted[1:-1])[0].decode("latin-1")


def _unicode(stream: _Limited) -> str:
    return _escaped(stream).decode("raw-unicode-escape")


# Read here, since pickletools takes only ASCII in these.
_READERS = {"GLOBAL": _names, "STRING": _string, "UNICODE": _unicode}


def _opcodes(stream: _Limited) -> Iterator[tuple[str, object]]:
    """Yields name and argument of each opcode, up to the end of the pickle."""
    name = ""
    while name != "STOP":
        code = stream.read(1).decode("latin-1")
        if code not in pickletools.code2op:
            raise ValueError(f"an unknown opcode {code!r}" if code else "it is cut short")
        opcode = pickletools.code2op[code]
        name = opcode.name
        if name not in _ACTIONS:
            raise Refused(f"its pickle has the opcode {name}, which plain values do not need")
        reader = _READERS.get(name) or (opcode.arg and opcode.arg.reader)
        yield name, reader and reader(stream)


def _as(value, *types):
    if type(value) not in types:
        raise Refused(f"its pickle has a value of type {type(value).__name__} where it cannot be")
    return value


class _Machine:
    """Stack and memo of a pickle, and what its opcodes do to them."""

    def __init__(self, find: Callable, load: Callable, build: Callable):
        self.stack, self._below = [], []
        # A dict, where Python's own unpickler has an array as long as the largest index.
        self._memo = {}
        self._find, self._load, self._build = find, load, build

    def push(self, value) -> None:
        self.stack.append(value)

    def mark(self, _) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _pop_mark(self) -> list:
        items, self.stack = self.stack, self._below.pop()
        return items

    def put(self, index: int) -> None:
        self._memo[index] = self.stack[-1]

    def memoize(self, _) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def name(self, name: str) -> None:
        self.push(self._find(name))

    def name_of_two(self, _) -> None:
        last, module = _as(self.stack.pop(), str), _as(self.stack.pop(), str)
        self.push(self._find(f"{module}.{last}"))

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.stack.pop() for _ in range(count)][::-1]))

    def tuple_of_marked(self, _) -> None:
        items = self._pop_mark()
        self.push(tuple(items))

    def append(self, _) -> None:
        item = self.stack.pop()
        _as(self.stack[-1], list).append(item)

    def append_marked(self, _) -> None:
        items = self._pop_mark()
        _as(self.stack[-1], list).extend(items)

    def _set(self, items: list) -> None:
        target = _as(self.stack[-1], dict, Unread)
        if type(target) is dict:
            for i in range(0, len(items), 2):
                set_item(target, items[i], items[i + 1])

    def set(self, _) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def set_marked(self, _) -> None:
        items = self._pop_mark()
        self._set(items)

    def add_marked(self, _) -> None:
        items = self._pop_mark()
        _as(self.stack[-1], set).update(map(hashable, items))

    def set_of_marked(self, _) -> None:
        items = self._pop_mark()
        self.push(set(map(hashable, items)))

    def list_of_marked(self, _) -> None:
        items = self._pop_mark()
        self.push(items)

    def dict_of_marked(self, _) -> None:
        items = self._pop_mark()
        self.push({})
        self._set(items)

    def call(self, _) -> None:
        arguments, function = _as(self.stack.pop(), tuple), _as(self.stack.pop(), Global)
        if function.make is None:
            raise Refused(f"its pickle calls {function.name}")
        try:
            self.push(function.make(*arguments))
        except TypeError as error:
            raise Refused(f"its pickle calls {function.name} with wrong arguments") from error

    def build(self, _) -> None:
        state = self.stack.pop()
        self._build(self.stack[-1], state)

    def load(self, _) -> None:
        self.push(self._load(self.stack.pop()))


_ACTIONS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
        _Machine.push,
    ),
    **dict.fromkeys(
        (
            *("STRING", "BINSTRING", "SHORT_BINSTRING"),  # of Python 2
            *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
            *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        ),
        _Machine.push,
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "LIST": _Machine.list_of_marked,
    "DICT": _Machine.dict_of_marked,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "SETITEM": _Machine.set,
    "SETITEMS": _Machine.set_marked,
    "ADDITEMS": _Machine.add_marked,
    "FROZENSET": _Machine.set_of_marked,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": _Machine.memoize,
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_of_two,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load,
}


def _no_names(name: str):
    raise Refused(f"its pickle names {name!r:.200}, and nothing that a file names is ever run here")


def _no_references(identity):
    raise Refused("its pickle refers to something outside it")


def _no_attributes(value, state):
    raise Refused(f"its pickle sets attributes of a {type(value).__name__}")


def unpickle(
    stream: IO[bytes],
    find: Callable[[str], object] = _no_names,
    load: Callable[[object], object] = _no_references,
    build: Callable[[object, object], None] = _no_attributes,
    most_bytes: int = _MOST_BYTES,
    most_opcodes: int = _MOST_OPCODES,
) -> object:
    """Returns the value of the pickle at the position of a stream, and moves to its end.

    By default only plain values are allowed.

    Args:
      stream: of bytes.
      find: returns the replacement of "module.name": a `Global` or `UNREAD`.
      load: returns the replacement of a persistent id.
      build: receives a value and the state that would become its attributes.
      most_bytes, most_opcodes: refuse a longer pickle. An opcode takes at most about 140 bytes of
        memory besides its text, so these bound the memory.

    Raises:
      Refused: on opcodes that plain values do not need, on too many opcodes, and on damage.
    """
    machine = _Machine(find, load, build)
    try:
        for number, (name, argument) in enumerate(_opcodes(_Limited(stream, most_bytes))):
            if number >= most_opcodes:
                raise Refused(f"its pickle has more than {most_opcodes} opcodes")
            _ACTIONS[name](machine, argument)
        return machine.stack[-1]
    except (ValueError, IndexError, KeyError) as error:
        raise Refused(f"its pickle is damaged ({str(error)[:200]})") from error
