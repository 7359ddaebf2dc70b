"""A stage run as a command: flags in, an exit code out."""

import contextlib
import copy
import inspect
import logging
import os
import pathlib
import re
import select
import signal
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags

from dolg_tf.stage import files, quiet, signals
from dolg_tf.stage.config import (
    InputError,
    default_text,
    define_flags,
    from_flags,
    options,
    words_of,
)

# What moves a terminal's cursor, colours, reorders or cannot be encoded: controls but for tab and
# line feed, marks of writing direction, line separators, halves of surrogate pairs.
_CONTROLS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: str) -> str:
    """Returns the text with its control characters spelled out, as for a terminal: `\\x1b`."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """Returns the text of a name or an error as part of one line: `\\n` for a line feed."""
    return plain(re.sub("[\t\n]", lambda found: repr(found[0])[1:-1], text))


def show(text: str) -> None:
    """Prints the result of a command."""
    print(plain(text))


class _Argument:
    """What is put into a line of the log: a photo's name must not begin a line of its own."""

    def __init__(self, value: str | os.PathLike | BaseException):
        self._value = value

    def __str__(self) -> str:
        return one_line(str(self._value))

    def __repr__(self) -> str:
        return repr(self._value)


class _PlainLines(logging.Formatter):
    def format(self, record):
        record = copy.copy(record)  # other handlers get it as it was
        if isinstance(record.args, tuple):
            texts = (str, os.PathLike, BaseException)
            record.args = tuple(
                _Argument(value) if isinstance(value, texts) else value for value in record.args
            )
        return plain(super().format(record))


def main(stage: Callable, *classes: type) -> typing.NoReturn:
    """Runs `stage(*configs)` as a script of its own, with the flags of `sys.argv`, and exits."""
    run(f"python {sys.argv[0]}", stage, classes, sys.argv[1:])


def run(
    program: str,
    stage: Callable,
    classes: Sequence[type],
    arguments: Sequence[str],
    recipes: Mapping[str, pathlib.Path] | None = None,
    continues: bool = False,
) -> typing.NoReturn:
    """Runs `stage(*configs)` with flags from the command line and exits.

    Exit codes: 0 done, 1 bad input or a failure, 130 interrupted, 143 terminated.

    Args:
      program: the command as the user typed it, without flags.
      stage: the function that does the work; its docstring opens the help.
      classes: the configuration dataclasses that it takes, in order.
      arguments: the flags.
      recipes: flagfiles that `--recipe` takes by name; None: the command has no recipes.
      continues: whether the same command continues after an interruption.
    """
    signals.install(program)
    define_flags(*classes)
    flags.DEFINE_bool("help", False, "show this help", short_name="h")
    # oneDNN's convolutions are the faster ones on processors without AVX-512 too, where
    # TensorFlow leaves them off.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    quiet.hush_tensorflow()
    if sys.stdout is None:  # closed
        sys.stdout = pathlib.Path(os.devnull).open("w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # as standard error, whatever it can encode
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_PlainLines("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[lines])
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its font cache
    with exit_code(program, continues):
        rest = _parse(with_recipe(arguments, recipes or {}), flags.FLAGS)
        if flags.FLAGS.help:
            show(_help_text(program, stage.__doc__ or "", classes, recipes or {}))
        else:
            stage(*_configs(classes, rest, flags.FLAGS))
    sys.exit(0)


def read_flags(arguments: Sequence[str], *classes: type) -> tuple:
    """Returns the configurations that a command would make of these flags.

    Raises:
      InputError, flags.Error: as the command, for flags that it refuses.
    """
    values = flags.FlagValues()
    define_flags(*classes, values=values)
    return _configs(classes, _parse(arguments, values), values)


@contextlib.contextmanager
def exit_code(program: str, continues: bool = False) -> Iterator[None]:
    """Turns what the block raises into one line on the terminal and an exit code.

    Args:
      program: the command as the user typed it.
      continues: whether the same command continues after an interruption.
    """
    try:
        with signals.working(program):
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(signals.tell(signals.received() or signal.SIGINT))
    except Exception as error:
        if signals.received():  # what libraries made of it
            sys.exit(signals.tell(signals.received()))
        if isinstance(error, BrokenPipeError) and _stdout_is_lost():
            sys.exit(1)  # whoever read the output has gone: `dolg ... | head`
        message = _one_line(error, continues)
        if message is None:
            sys.exit(plain("".join(traceback.format_exception(error)).rstrip()))
        _stdout_is_lost()
        sys.exit(plain(f"{program}: error: {message}"))


def _one_line(error: Exception, continues: bool) -> str | None:
    """Returns what to say of an error that the user can mend; None: it is a fault of ours."""
    told = isinstance(error, OSError) and error.errno is None  # by us, with a remedy
    if not told and (number := files.full_disk(error)):
        what, reason = getattr(error, "filename", None) or "the output", os.strerror(number)
        kept = "the finished parts are kept" if continues else "what was there before is kept"
        then = "continues" if continues else "begins anew"
        return f"{what}: {reason}; {kept}: make room, and the same command {then}"
    if isinstance(error, (flags.Error, InputError, FloatingPointError, OSError)):
        text = str(error).removeprefix("ERROR:: ").strip()
        return re.sub(r"[ \t]*\n\s*", " ", text)
    return None


def _stdout_is_lost() -> bool:
    """Returns whether standard output cannot be written; then what is left of it is dropped."""
    try:
        sys.stdout.flush()
        reader = select.poll()
        reader.register(1, 0)
        if not reader.poll(0):  # unbuffered, there is nothing to flush
            return False
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


def with_recipe(arguments: Sequence[str], recipes: Mapping[str, pathlib.Path]) -> list[str]:
    """Returns the arguments with `--recipe=NAME` replaced by its flagfile.

    Raises:
      InputError: when there is no such recipe.
    """
    found, words = [], iter(arguments)
    for word in words:
        name, _, value = word.lstrip("-").partition("=")
        if recipes and word.startswith("-") and name == "recipe":
            value = value or next(words, "")
            if value not in recipes:
                known = ", ".join(recipes)
                wrong = f"--recipe={value} is unknown; it must be"
                if not value or value.startswith("-"):
                    wrong = "--recipe needs a name:"
                raise InputError(f"{wrong} one of {known}")
            word = f"--flagfile={recipes[value]}"
        found.append(word)
    return found


def _parse(arguments: Sequence[str], values: flags.FlagValues) -> list[str]:
    """Sets the flags, with the lines of flagfiles in their place, and returns the other words.

    Read once, since a flagfile may be a pipe. `--flag=value # comment` in a flagfile is refused:
    absl would take the comment for value. On the command line ` #` is part of the value, and so it
    is on a line of a flagfile that holds the value alone; see `config.to_flagfile`.
    """
    words = values.read_flags_from_files(list(arguments))
    for word in words:
        if word.startswith("-") and " #" in word and word not in arguments:
            raise InputError(f"{word!r}: a flagfile takes comments only on lines of their own")
    return values(["", *words])[1:]


def _configs(classes: Sequence[type], rest: list[str], values: flags.FlagValues) -> tuple:
    if rest and not words_of(*classes):
        raise InputError(f"{rest[0]!r} is not a flag; write --name=value")
    return tuple(from_flags(cls, values, rest=rest) for cls in classes)


def _help_text(
    program: str, doc: str, classes: Sequence[type], recipes: Mapping[str, pathlib.Path]
) -> str:
    field = words_of(*classes)
    taken = f" {field.name.upper()} [{field.name.upper()} ...]" if field else ""
    usage = f"usage: {program}{taken} [--flagfile=FILE] [--flag=value ...]"
    lines = [usage.replace(" [--flag=", " [--recipe=NAME] [--flag=") if recipes else usage, ""]
    if doc:
        lines += [inspect.cleandoc(doc).split("\n\n")[0], ""]
    if recipes:
        text = f"the flags of a recipe, which later flags override (one of {', '.join(recipes)})"
        lines += ["  --recipe", *_wrapped(text)]
    if field:
        lines += [f"  {field.name.upper()}", *_wrapped(f"{field.metadata['words']} (required)")]
    for cls in classes:
        # Those that must be given first, also when a stage inherits others.
        for field in sorted(options(cls), key=lambda field: default_text(field) != "required"):
            meta, default = field.metadata, default_text(field)
            notes = [default] + ([meta["unit"]] if meta["unit"] else [])
            if meta["choices"]:
                notes.append("one of " + ", ".join(meta["choices"]))
            lines += [f"  --{field.name}", *_wrapped(f"{meta['help']} ({'; '.join(notes)})")]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
