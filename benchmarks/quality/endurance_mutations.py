"""Mutated files, each read in a worker process that may die: what `endurance.py` does to readers.

A recipe says which file of a reader's input is changed, and how, so that it can be repeated.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import re
import resource
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping

import numpy as np
from endurance_child import Child, Outcome, begin_child

from dolg_tf.stage.config import InputError

PATIENCE = 60.0  # seconds for one file, on a busy machine
MEMORY = 4 << 30  # bytes that a reader may take beyond what its process has after a sound file
CLEAN = (InputError, FloatingPointError, OSError)  # what a command prints as one line

_LONGEST = 4096  # bytes of one change, but for what is cut off
_ENDS = 512  # half of the changes are within so many bytes of the beginning or the end
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")
_WORDS = (
    *(b"\0", b"\n", b"\r", b'"', b",", b"{", b"[", b"\xff\xfe", b"\xef\xbb\xbf", b"../../x", b"="),
    *(b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"NaN", b"null"),
)
_NUMBERS = (
    *(b"0", b"-1", b"1.5", b"4294967296", b"9223372036854775808", b"1e999", b"nan", b"NaN"),
    *(b"9" * 400, b"true", b"null", b'""', b"[]", b"{}", b"2147483647", b"1000000007"),
)
_FOREIGN = (b"", b"\n", b"<!doctype html><html>", b"\x1f\x8b\x08\0", b"\x89PNG\r\n\x1a\n", b"{}")
_LOG = "log.txt"  # of a worker, in its folder
_INSTEAD = ("nothing", "folder", "loop", "pipe")  # what may stand in the file's place


class Disagreement(Exception):
    """Two readers of ours took the same file for different things."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A change of one file.

    Attributes:
      reader: name of the reader.
      file: the changed file, relative to the reader's input; "" when that is a file.
      edits: (offset, removed bytes, inserted bytes in hexadecimal digits), one after the other.
      instead: what stands in the file's place, one of `_INSTEAD`; "": the file with its edits.
    """

    reader: str
    file: str
    edits: tuple[tuple[int, int, str], ...] = ()
    instead: str = ""


def draw_recipe(reader: str, folder: pathlib.Path, rng: np.random.Generator) -> Recipe:
    """Draws a change of one of the files of a reader's input, which is a folder or a file."""
    if folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        path = found[rng.integers(len(found))]
        name = path.relative_to(folder).as_posix()
    else:
        path, name = folder, ""
    if rng.random() < 0.02:
        return Recipe(reader, name, instead=_INSTEAD[rng.integers(len(_INSTEAD))])
    data, edits = path.read_bytes(), []
    for _ in range(1 if rng.random() < 0.7 else int(rng.integers(2, 5))):
        edits.append(_draw_edit(data, rng))
        data = _edit(data, edits[-1])
    return Recipe(reader, name, tuple(edits))


def _draw_edit(data: bytes, rng: np.random.Generator) -> tuple[int, int, str]:
    size = len(data)
    at = int(rng.integers(size + 1))
    if rng.random() < 0.5:
        at = min(at % _ENDS, size) if rng.random() < 0.7 else max(0, size - at % _ENDS)
    length = min(int(2 ** rng.uniform(0, np.log2(_LONGEST))), size - at)
    kind = rng.choice(("bit", "bytes", "fill", "cut", "drop", "repeat", "insert", "word", "number"))
    if kind == "bit" and at < size:
        return at, 1, bytes([data[at] ^ 1 << int(rng.integers(8))]).hex()
    if kind == "bytes":
        count = min(int(rng.integers(1, 9)), size - at)
        return at, count, rng.bytes(count).hex()
    if kind == "fill":
        return at, length, (b"\0" if rng.random() < 0.5 else b"\xff").hex() * length
    if kind == "cut":
        return (at, size - at, "") if rng.random() < 0.9 else (0, size, _pick(_FOREIGN, rng).hex())
    if kind == "drop":
        return at, length, ""
    if kind == "repeat":
        return at, 0, data[at : at + length].hex()
    if kind == "insert":
        return at, 0, rng.bytes(int(rng.integers(1, 9))).hex()
    if kind == "number" and (found := list(_NUMBER.finditer(data[: 1 << 16]))):
        match = found[rng.integers(len(found))]
        return match.start(), match.end() - match.start(), _pick(_NUMBERS, rng).hex()
    word = _pick(_WORDS, rng)
    return at, min(len(word) if rng.random() < 0.5 else 0, size - at), word.hex()


def _pick(choices: tuple[bytes, ...], rng: np.random.Generator) -> bytes:
    return choices[rng.integers(len(choices))]


def _edit(data: bytes, edit: tuple[int, int, str]) -> bytes:
    at, removed, inserted = edit
    return data[:at] + bytes.fromhex(inserted) + data[at + removed :]


def apply(recipe: Recipe, source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a reader's input from `source` to `target`, changed by a recipe."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    path = target / recipe.file if recipe.file else target
    data = path.read_bytes()
    if not recipe.instead:
        for edit in recipe.edits:
            data = _edit(data, edit)
        path.write_bytes(data)
        return
    path.unlink()
    if recipe.instead == "folder":
        path.mkdir()
    elif recipe.instead == "loop":
        path.symlink_to(path.name)
    elif recipe.instead == "pipe":
        os.mkfifo(path)


def digest(value) -> str:
    """Returns a hash of what a reader returned: arrays, dataclasses, containers, plain values."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found, value) -> None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value):
        _add(found, {field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        _add(found, [[key, value[key]] for key in sorted(value, key=str)])
    elif isinstance(value, list | tuple | np.ndarray):
        found.update(f"{len(value)} items".encode())
        for item in value:
            _add(found, item)
    else:
        found.update(repr(value).encode(errors="surrogatepass") + b"\0")


# --- workers ----------------------------------------------------------------------------------


def judge(reader, recipe: Recipe, target: pathlib.Path, sound: str) -> Outcome:
    """Reads a mutated input in this process.

    Args:
      reader: of `endurance_readers.READERS`.
      recipe: how `target` was changed.
      target: the mutated input.
      sound: `digest` of what the sound input gives.
    """
    try:
        found = digest(reader.read(target))
    except CLEAN as error:
        named = (pathlib.PurePath(recipe.file or target.name).name, target.name)
        words = " ".join(str(error).split())
        if not any(name in words for name in named):
            return Outcome("wrong", f"the error does not name the file: {words:.300}")
        return Outcome("clean", f"{words:.300}")
    except Disagreement as error:
        return Outcome("wrong", str(error))
    except Exception:  # not swallowed: what no command turns into a line is a failure, and counted
        return Outcome("traceback", traceback.format_exc(limit=-6)[-2000:])
    if found == sound:
        return Outcome("same")
    return Outcome("wrong", "taken in silence") if reader.sound else Outcome("other")


def _work(pipe, readers: dict, world, scratch: pathlib.Path) -> None:
    """Reads what it is told to until the pipe is closed; a worker's main function."""
    begin_child(scratch / _LOG)
    logging.disable(logging.WARNING)
    sound = {}
    while True:
        try:
            name, recipe = pipe.recv()
        except EOFError:
            return
        reader = readers[name]
        source = reader.make(world)
        target = scratch / ".".join(["attacked", *source.name.split(".")[1:]])
        if name not in sound:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            apply(Recipe(name, _first_file(source)), source, target)
            sound[name] = digest(reader.read(target))
            if digest(reader.read(target)) != sound[name]:
                raise RuntimeError(f"{name}: two readings of the sound input differ")
            most = _virtual() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
        if recipe is None:
            pipe.send(source)
            continue
        apply(recipe, source, target)
        pipe.send(judge(reader, recipe, target, sound[name]))


def _first_file(source: pathlib.Path) -> str:
    if source.is_file():
        return ""
    return min(path for path in source.rglob("*") if path.is_file()).relative_to(source).as_posix()


def _virtual() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


class Worker(Child):
    """A process that reads mutated inputs."""

    def __init__(self, readers: dict, world, scratch: pathlib.Path, patience: float = PATIENCE):
        super().__init__(_work, readers, world, scratch)
        self._scratch, self._patience = scratch, patience

    def start(self) -> None:
        """Starts the process, in an empty folder."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir(parents=True)
        super().start()

    def make(self, name: str) -> pathlib.Path:
        """Returns the path of a reader's sound input, which the worker makes and reads.

        Raises:
          RuntimeError: when that fails.
        """
        answer = self._ask((name, None), 900)
        if isinstance(answer, Outcome):
            raise RuntimeError(f"{name}: the sound input: {answer.words}")
        return answer

    def judge(self, recipe: Recipe) -> Outcome:
        """Returns what became of a mutated input."""
        self.make(recipe.reader)  # so that a new process has read the sound one
        return self._ask((recipe.reader, recipe), self._patience)

    def _last_words(self) -> str:
        return ": " + (self._scratch / _LOG).read_text(errors="replace")[-1500:]


def mutate(
    readers: dict, shares: Mapping[str, int], worker: Worker, seed: int
) -> Iterator[tuple[Recipe, Outcome]]:
    """Reads mutated inputs of each reader.

    Args:
      readers: by name.
      shares: how many mutations each reader gets.
      worker: where they are read.
      seed: of the mutations.
    """
    log = logging.getLogger(__name__)
    for place, (name, count) in enumerate(shares.items()):
        rng, start, kinds = np.random.default_rng([seed, place]), time.monotonic(), {}
        source = worker.make(name)
        for _ in range(count):
            recipe = draw_recipe(name, source, rng)
            outcome = worker.judge(recipe)
            kinds[outcome.kind] = kinds.get(outcome.kind, 0) + 1
            yield recipe, outcome
        log.info("%s: %d files in %.0f s: %s", name, count, time.monotonic() - start, kinds)


def share_out(readers: dict, total: int) -> dict[str, int]:
    """Divides a number of mutations among readers by their shares."""
    whole = sum(reader.share for reader in readers.values())
    return {name: -(-total * reader.share // whole) for name, reader in readers.items()}
