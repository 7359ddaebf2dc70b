"""Pickles read as data: nothing that they name is imported or called.

This is no `pickle.Unpickler`. `pickletools` splits a pickle into opcodes, and the few that
torch.save writes are carried out here on plain dicts, lists, tuples, strings and numbers.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import IO

from dolg_tf.weights.files.arrays import Refused

# The pickle of a ResNet-101 DOLG with its optimizer has 0.3 MB and 60,000 opcodes. An opcode makes
# at most one small object, so these bound the memory.
_MOST_BYTES, _MOST_OPCODES = 1 << 24, 500_000


class Unread:
    """A value that is no weight and is not looked into, such as a NumPy number."""


UNREAD = Unread()


@dataclasses.dataclass(frozen=True)
class Global:
    """Something that a pickle names; `make` is what stands here for calling it."""

    name: str
    make: Callable | None = None


def set_item(target: dict, key, value) -> None:
    """Sets an item; one whose key is not read is left out.

    Raises:
      Refused: on a tuple for a key: hashing one that holds itself many times over never ends.
    """
    if type(key) is int and abs(key) >= 2**61 - 1:
        raise Refused("its pickle has a huge number for a key")  # such ones hash alike
    if type(key) in (str, int, float, bool, type(None)):
        target[key] = value
    elif type(key) is not Unread:
        raise Refused(f"its pickle has a {type(key).__name__} for a key")


class _Limited:
    """The beginning of a stream."""

    def __init__(self, stream: IO[bytes]):
        self._stream, self._left = stream, _MOST_BYTES

    def _take(self, read: Callable[[int], bytes], size: int) -> bytes:
        if size > self._left:
            raise Refused(f"its pickle is larger than {_MOST_BYTES} bytes, or damaged")
        data = read(size)
        self._left -= len(data)
        return data

    def read(self, size: int) -> bytes:
        return self._take(self._stream.read, size)

    def readline(self) -> bytes:
        line = self._take(self._stream.readline, 1000)
        if b"\\" in line:  # an escape, which no name has
            raise Refused("its pickle is damaged: get the file again")
        return line


def _as(value, *types):
    if type(value) not in types:
        raise Refused(f"its pickle has a {type(value).__name__} where none can be")
    return value


class _Machine:
    """A pickle's stack and memo, and what its opcodes do to them."""

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

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def name(self, argument: str) -> None:
        self.push(self._find(argument.replace(" ", ".", 1)))

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


# What torch.save writes with its pickle protocol 2, and two strings of Python 2.
_ACTIONS: dict[str, Callable[[_Machine, object], None]] = {
    "PROTO": lambda machine, version: None,
    "STOP": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "BINSTRING": _Machine.push,
    "SHORT_BINSTRING": _Machine.push,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple_of_marked,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_marked,
    "SETITEM": _Machine.set,
    "SETITEMS": _Machine.set_marked,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load,
}


def unpickle(
    stream: IO[bytes],
    find: Callable[[str], object],
    load: Callable[[object], object],
    build: Callable[[object, object], None],
) -> object:
    """Returns the value of the pickle that begins here; the stream stands behind it then.

    Args:
      stream: of bytes.
      find: gives what stands for "module.name": a `Global` or `UNREAD`.
      load: gives what a persistent id stands for.
      build: is told of a value and what would become its attributes.

    Raises:
      Refused: on other opcodes than torch.save's, too many of them, and damage.
    """
    machine = _Machine(find, load, build)
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(_Limited(stream))):
            if number >= _MOST_OPCODES:
                raise Refused(f"its pickle has more than {_MOST_OPCODES} opcodes")
            if opcode.name not in _ACTIONS:
                raise Refused(
                    f"its pickle has the opcode {opcode.name}, which torch.save does not write; "
                    "save it again with torch.save and its own pickle_protocol"
                )
            _ACTIONS[opcode.name](machine, argument)
        return machine.stack[-1]
    except (ValueError, IndexError, KeyError) as error:
        raise Refused(f"its pickle is damaged ({str(error)[:200]}): get the file again") from error
